"""Where and how to compute: device, precision, compilation. The methods know nothing of it."""

import ctypes
import fcntl
import getpass
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from apm_core.errors import ConfigError
from apm_core.settings.text import fingerprint


@dataclass(frozen=True)
class Plain:
    """How long plain work takes on a kind of device."""

    flops: float  # per second
    value_s: float  # of a value that a layer writes, for estimates alone
    step_s: float  # overhead of a step


# The figures of a CPU are measured on two cores in float32, those of a GPU are reckoned for bf16
# and captured steps.
PLAIN = {
    "cpu": Plain(1.0e11, 3.0e-9, 2.0e-3),
    "cuda": Plain(3.0e13, 0.0, 2.0e-4),  # what writing takes is in its flops
}
# Seconds of plain work from which compiling pays on a GPU, whatever the network: it makes a step
# about twice as fast and costs, there and back, 10 to 40 s. On a CPU each network states its own.
COMPILE_FROM_S = 60.0


@dataclass(frozen=True)
class Compute:
    """Device, arithmetic and compilation of one job."""

    device: torch.device
    precision: str = "float32"  # or "bf16": autocast, parameters stay float32
    compile: str = "auto"  # "on", "off", or "auto": when the job is long enough to earn it back
    graphs: bool = False  # steps are captured as CUDA graphs
    kernels: bool = False  # blocks of networks run in kernels of our own
    side_by_side: int = 1  # trainings at once
    report: Callable[[str], None] = lambda _: None  # receives one-line notes, e.g. of a fallback

    def autocast(self) -> torch.autocast:
        """The context in which networks run forward."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def exact(self) -> "Compute":
        """The same device in plain float32."""
        return replace(self, precision="float32", compile="off", graphs=False, kernels=False)

    def groups(self, works: Sequence[Any]) -> list[Sequence[Any]]:
        """`works` in groups of those that run side by side."""
        return [
            works[at : at + self.side_by_side] for at in range(0, len(works), self.side_by_side)
        ]

    def describe(self) -> str:
        """The hardware, for the record: a GPU's name, or the CPU's with its number of threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{_cpu_name()}, {torch.get_num_threads()} threads"

    def clock(self) -> float:
        """Seconds, after all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def compiled(
        self, function: Callable, *, flops: float, steps: int, compile_from_s: float
    ) -> Callable:
        """`function` compiled for static shapes, if `steps` calls with `flops` operations in all
        are worth it.

        `compile_from_s` is that of the network (`FlatNet`). The decision depends on the planned
        work only, never on a clock, so that a resumed run takes the same path.
        """
        if not self._worth(flops, steps, compile_from_s):
            return function
        if self.device.type == "cpu" and not _compiler():
            self.report(
                "no C++ compiler (c++, g++ or clang++) found: running uncompiled, 2 to 4 times"
                " slower"
            )
            return function
        return _WithFallback(function, self.report)

    def wants_kernels(self, *, flops: float, steps: int, compile_from_s: float) -> bool:
        """Whether networks run in kernels of our own: on a CPU, where they are compiled too, if the
        work is worth it.
        """
        there = self.device.type != "cpu" or self._worth(flops, steps, compile_from_s)
        return self.kernels and there

    def _worth(self, flops: float, steps: int, compile_from_s: float) -> bool:
        worth = worth_compiling(self.device.type, flops, steps, compile_from_s)
        return self.compile == "on" or (self.compile == "auto" and worth)


def worth_compiling(device: str, flops: float, steps: float, compile_from_s: float) -> bool:
    """Whether work on a kind of device is long enough to earn back its compilation."""
    plain = PLAIN[device]
    least = compile_from_s if device == "cpu" else COMPILE_FROM_S
    return flops / plain.flops + steps * plain.step_s > least


class Graphs:
    """Steps as CUDA graphs, captured when first played. All work in the same memory: one ends
    before the next begins. Those of another `Graphs` may run beside them.
    """

    def __init__(self) -> None:
        self._replays: dict[Hashable, Callable[[], None]] = {}
        self._pool: tuple[int, int] | None = None
        self._stream: torch.cuda.Stream | None = None  # cuBLAS has a workspace for each stream

    def play(self, key: Hashable, step: Callable[[], None], state: Sequence[torch.Tensor]) -> None:
        """Do `step`, known by `key`, which works on tensors that keep their place.

        Capturing needs trial runs: `state` names the tensors that they change and that are put
        back, as the generator of random numbers is.
        """
        if key not in self._replays:
            self._replays[key] = self._captured(step, state)
        self._replays[key]()

    def _captured(
        self, step: Callable[[], None], state: Sequence[torch.Tensor]
    ) -> Callable[[], None]:
        before, noise = [tensor.clone() for tensor in state], torch.cuda.get_rng_state()
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.empty_cache()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            step()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        torch.cuda.set_rng_state(noise)
        return graph.replay


@contextmanager
def lanes(
    device: torch.device, count: int, *, one_by_one: bool = False
) -> Iterator[list[AbstractContextManager]]:
    """A context for each of `count` works, so that on a GPU they run side by side: streams that
    begin when all asked of the device before is done, and end before what is asked afterwards.

    On a CPU, for a single work, or `one_by_one`, the contexts change nothing.
    """
    if device.type == "cpu" or count == 1 or one_by_one:
        yield [nullcontext()] * count
        return
    outside = torch.cuda.current_stream(device)
    found = [torch.cuda.Stream(device) for _ in range(count)]
    for stream in found:
        stream.wait_stream(outside)
    yield [torch.cuda.stream(stream) for stream in found]
    for stream in found:
        outside.wait_stream(stream)


class _WithFallback:
    """A compiled function that turns into the plain one, with a note, when compilation fails."""

    def __init__(self, function: Callable, report: Callable[[str], None]) -> None:
        self.plain, self.report = function, report
        # a function serves full and short batches; each shape is a compilation of its own
        torch._dynamo.config.recompile_limit = 64
        # else the way back is compiled when it is first gone, where no fallback catches its failure
        torch._functorch.config.force_non_lazy_backward_lowering = True
        self.current = torch.compile(_with_own_code(function), dynamic=False)

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 - whatever the function returns
        try:
            return self.current(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            if self.current is self.plain:
                raise
            self.report(f"compilation failed, running uncompiled: {_reason(error)}")
            self.current = self.plain
            return self.plain(*arguments)


def _reason(error: Exception) -> str:
    """The first line of Dynamo's message that says more than which backend raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(
        (line for line in lines if line and not line.endswith("raised:")), "no reason given"
    )


def _with_own_code(function: Callable) -> Callable:
    """The same function with a code object of its own.

    Dynamo counts compilations by code object, which all closures of one `def` share: of many
    networks those after the limit would run plain, and others in a resumed process, which counts
    from zero.
    """
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def instructions() -> str:
    """A fingerprint of the instructions that the CPU knows. Code compiled here (for the "native"
    architecture) may use them all, and ends a process on a CPU that lacks one.
    """
    return fingerprint(_cpu_info("flags") or _cpu_info("Features") or _cpu_name())


def threads_of(device: str) -> int | None:
    """The threads of a device as `Compute.describe` names it; None for a GPU."""
    found = re.search(r"(\d+) threads$", device)
    return int(found[1]) if found else None


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(key: str) -> str | None:
    """What Linux says of the first core under `key`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def choose(
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    report: Callable[[str], None] = lambda _: None,
    *,
    deterministic: bool = False,
    kernels: bool | None = None,
    side_by_side: int = 1,
) -> Compute:
    """Resolve the settings on this machine, and set up the process for them.

    "auto" takes the first GPU if there is one, and bf16 where the hardware multiplies in bf16. A
    wish for bf16 on hardware without it falls back to float32 with a note. `deterministic` chooses
    operations that give the same bits every time; on a CPU all do. `kernels` of our own are used on
    a CPU (None) or as told; `side_by_side`, trainings at once, is for a GPU. Raises ConfigError for
    a device that is not there.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"compute.device: {device} asked for, but torch finds no CUDA device: use auto or cpu"
        )
    chosen = torch.device(name)
    if chosen.type == "cpu":
        keep_freed_memory()
    else:
        chosen = _set_up_gpu(chosen, deterministic)
    able = has_bf16(chosen)
    if precision == "bf16" and not able:
        report(f"compute.precision: this {chosen.type} has no bf16 arithmetic: using float32")
    resolved = "bf16" if able and precision in ("auto", "bf16") else "float32"
    graphs = chosen.type == "cuda" and compile != "off"
    on_cpu = chosen.type == "cpu"
    kernels = on_cpu if kernels is None else kernels
    return Compute(
        chosen, resolved, compile, graphs, kernels, 1 if on_cpu else side_by_side, report
    )


def _set_up_gpu(device: torch.device, deterministic: bool) -> torch.device:
    """Make `device` the current one, on which graphs are captured and replayed; float32 means
    float32, also in convolutions. Returns the device with its number.
    """
    torch.cuda.set_device(device.index or 0)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by the next line
        torch.use_deterministic_algorithms(True)  # in compiled code too
    return torch.device("cuda", device.index or 0)


def keep_freed_memory(keep: bool = True) -> None:
    """Tell glibc's allocator to keep what is freed instead of returning it to the system.

    By itself it maps blocks of 32 MiB and more, the activations of a batch, anew at every step, and
    the system zeroes them page by page: half of the time of a plain float32 step of a ConvNet of
    width 128. `keep=False` goes back to its usual thresholds. Without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        mallopt(mmap_threshold, 2**31 - 1 if keep else 2**25)
        mallopt(trim_threshold, 2**31 - 1 if keep else 2**26)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@contextmanager
def reserved(device: str) -> Iterator[str]:
    """Hold one GPU while the block runs; yields the device name to use.

    Snakemake counts GPUs but does not hand them out. A lock per device lets several jobs share a
    machine, each on a GPU of its own; a job that finds none free waits. The lock dies with the
    process.
    """
    if device == "cpu" or not torch.cuda.is_available():
        yield device
        return
    folder = Path(tempfile.gettempdir()) / f"apm-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    indices = (
        range(torch.cuda.device_count())
        if device in ("auto", "cuda")
        else [torch.device(device).index]
    )
    files = {index: (folder / f"{_uuid(index)}.lock").open("w") for index in indices}
    try:
        yield f"cuda:{_lock_one(files)}"
    finally:
        for file in files.values():
            file.close()


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)


def _lock_one(files: dict[int, Any]) -> int:
    for index, file in files.items():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return index
        except BlockingIOError:
            continue
    index = min(files)
    fcntl.flock(files[index], fcntl.LOCK_EX)
    return index
