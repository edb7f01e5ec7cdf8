"""Where things are computed, and that compilation changes only the speed."""

import math
import os
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

from apm_core.errors import ConfigError
from apm_core.nets.architectures.convnet import ConvNet
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.runtime import device, streams
from apm_core.runtime.device import Compute, Graphs, _lock_one, choose, lanes, reserved

CPU = torch.device("cpu")
SHORT = {"flops": 0.0, "steps": 0, "compile_from_s": 20.0}  # work


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def fake_compile(monkeypatch):
    """`torch.compile` that marks what it was given and compiles nothing."""
    monkeypatch.setattr(device, "_compiler", lambda: "c++")

    def compile(function, *, dynamic):
        assert dynamic is False
        return lambda *arguments: ("compiled", function(*arguments))

    monkeypatch.setattr(torch, "compile", compile)


@pytest.fixture
def tf32():
    """TensorFloat32 is allowed, as torch begins for convolutions; afterwards as it was."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


def double(x):
    return 2 * x


def test_cpu_is_chosen_where_there_is_no_gpu(no_cuda):
    for name in ("auto", "cpu"):
        compute = choose(name, "float32")
        plain = Compute(CPU, "float32", "auto", kernels=True, report=choose.__defaults__[3])
        assert compute == plain


def test_kernels_of_our_own_are_used_on_a_cpu_where_it_compiles(no_cuda):
    assert choose("cpu").kernels and not choose("cpu", kernels=False).kernels
    small, large = SHORT, {**SHORT, "flops": 1e15}
    auto = Compute(CPU, kernels=True)
    assert auto.wants_kernels(**large) and not auto.wants_kernels(**small)
    assert not auto.wants_kernels(**large | {"compile_from_s": math.inf})
    assert replace(auto, compile="on").wants_kernels(**small)
    assert not replace(auto, compile="off").wants_kernels(**large)
    assert not replace(auto, kernels=False).wants_kernels(**large)
    assert Compute(torch.device("cuda"), kernels=True).wants_kernels(**small)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(no_cuda, name):
    message = f"compute.device: {name} asked for, but torch finds no CUDA device: use auto or cpu"
    with pytest.raises(ConfigError, match=message):
        choose(name)


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_made_the_current_one_and_float32_is_float32_there(
    monkeypatch, tf32, name, number
):
    # CUDA graphs record what runs on the current device
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(device, "has_bf16", lambda _: True)
    for compile, graphs in (("auto", True), ("off", False)):
        compute = choose(name, "auto", compile)
        assert compute.device == torch.device("cuda", number) and compute.graphs == graphs
    assert chosen == [number, number]
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(device, "has_bf16", lambda _: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    choose("cuda", deterministic=True)
    asked = torch.are_deterministic_algorithms_enabled(), torch._inductor.config.deterministic
    torch.use_deterministic_algorithms(False)
    assert asked == (True, True)
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_capturing_puts_back_what_its_trial_runs_changed(monkeypatch):
    """Torch's CUDA functions are replaced: a capture records and does nothing, a replay does what
    was recorded; the generator is a number that each step draws from."""
    noise = [0]
    recorded = []

    class Graph:
        def replay(self) -> None:
            step(capturing=False)

    class Stream:
        def wait_stream(self, _) -> None:
            pass

    @contextmanager
    def capture(graph, *, pool, stream):
        assert pool == (0, 7) and isinstance(stream, Stream)
        recorded.append(graph)
        yield

    def step(capturing=True) -> None:
        noise[0] += 1
        if not (capturing and recorded):
            value.add_(noise[0])

    fakes = {
        "get_rng_state": lambda: noise[0],
        "set_rng_state": lambda state: noise.__setitem__(0, state),
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: nullcontext(),
        "empty_cache": lambda: None,
        "graph_pool_handle": lambda: (0, 7),
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    value, graphs = torch.zeros(()), Graphs()
    for expected in (1, 1 + 2, 1 + 2 + 3):  # as without capturing
        graphs.play("step", step, [value])
        assert value == expected
    assert len(recorded) == 1


def test_works_side_by_side_have_streams_between_what_is_before_and_after(monkeypatch):
    said = []

    class Stream:
        def __init__(self, _) -> None:
            self.name = sum(line.startswith("new") for line in said)
            said.append(f"new {self.name}")

        def wait_stream(self, other) -> None:
            said.append(f"{self.name} waits for {other.name}")

    outside = SimpleNamespace(name="outside", wait_stream=lambda s: said.append(f"end of {s.name}"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: outside)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(stream.name))
    gpu = torch.device("cuda", 0)
    with lanes(gpu, 2) as found:
        assert said == ["new 0", "new 1", "0 waits for outside", "1 waits for outside"]
        for _ in range(2):  # entered once a pass
            for number, lane in enumerate(found):
                with lane as stream:
                    assert stream == number
    assert said[4:] == ["end of 0", "end of 1"]
    for alone in (lanes(gpu, 1), lanes(gpu, 2, one_by_one=True), lanes(CPU, 2)):
        with alone as found, found[-1] as stream:
            assert stream is None
    assert len(said) == 6


def test_groups_run_side_by_side_on_a_gpu_alone(no_cuda):
    assert [list(g) for g in Compute(CPU, side_by_side=2).groups(range(5))] == [[0, 1], [2, 3], [4]]
    assert choose("cpu", side_by_side=4).side_by_side == 1


@pytest.mark.parametrize(
    ("able", "wish", "precision", "noted"),
    [
        (False, "bf16", "float32", True),
        (False, "auto", "float32", False),
        (False, "float32", "float32", False),
        (True, "bf16", "bf16", False),
        (True, "auto", "bf16", False),
        (True, "float32", "float32", False),
    ],
)
def test_precision_follows_the_hardware(no_cuda, monkeypatch, able, wish, precision, noted):
    monkeypatch.setattr(device, "has_bf16", lambda _: able)
    notes = []
    assert choose("cpu", wish, report=notes.append).precision == precision
    note = "compute.precision: this cpu has no bf16 arithmetic: using float32"
    assert notes == ([note] if noted else [])


def test_autocast_computes_in_bf16_only_where_chosen():
    matrix = torch.ones(4, 4)
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        with Compute(CPU, precision).autocast():
            assert (matrix @ matrix).dtype == dtype


def test_exact_is_plain_float32_on_the_same_device():
    notes = []
    compute = Compute(CPU, "bf16", "on", graphs=True, kernels=True, report=notes.append).exact()
    assert compute == Compute(CPU, "float32", "off", report=notes.append)


@pytest.mark.parametrize(
    ("wish", "flops", "steps", "compiled"),
    [
        ("auto", 0.0, 0, False),
        ("auto", 1.9e12, 0, False),
        ("auto", 2.1e12, 0, True),
        ("auto", 0.0, 9_000, False),
        ("auto", 0.0, 11_000, True),
        ("auto", 1.1e12, 5_000, True),
        ("off", 1e20, 10**9, False),
        ("on", 0.0, 0, True),
    ],
)
def test_the_planned_work_decides_on_compilation(fake_compile, wish, flops, steps, compiled):
    function = Compute(CPU, compile=wish).compiled(
        double, flops=flops, steps=steps, compile_from_s=20.0
    )
    assert function(2) == (("compiled", 4) if compiled else 4)
    assert (function is double) != compiled


def test_short_work_is_not_compiled_for_a_gpu(fake_compile):
    # a NAS network of 5 cells on 500 images for 300 epochs; five evaluation networks; a teacher
    for flops, steps, compiled in (
        (3 * 0.15e9 * 500 * 300, 600, False),
        (5 * 0.3e9 * 500 * 1000, 10_000, False),
        (10 * 0.3e9 * 50_000 * 100, 200_000, True),
    ):
        function = Compute(torch.device("cuda")).compiled(
            double, flops=flops, steps=steps, compile_from_s=20.0
        )
        assert (function is not double) == compiled


def test_on_a_cpu_networks_say_from_when_they_are_compiled(fake_compile):
    work = {"flops": 1e20, "steps": 10**9}
    for where, least, compiled in (
        ("cpu", math.inf, False),
        ("cpu", 20.0, True),
        ("cuda", math.inf, True),
    ):
        function = Compute(torch.device(where)).compiled(double, **work, compile_from_s=least)
        assert (function is not double) == compiled
    wished = Compute(CPU, compile="on").compiled(double, **work, compile_from_s=math.inf)
    assert wished is not double


def test_without_a_compiler_the_plain_function_runs_and_a_note_says_so(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda _: None)
    notes = []
    function = Compute(CPU, compile="on", report=notes.append).compiled(double, **SHORT)
    assert function is double
    assert len(notes) == 1 and notes[0].startswith("no C++ compiler (c++, g++ or clang++) found")


def test_the_compiler_that_the_environment_names_counts(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: {"my-c++": "/my-c++"}.get(name))
    assert device._compiler() is None
    monkeypatch.setenv("CXX", "my-c++")
    assert device._compiler() == "/my-c++"


def test_failed_compilation_falls_back_once_with_its_reason(fake_compile, monkeypatch):
    calls = []

    def fail(*_):
        calls.append(1)
        raise torch._dynamo.exc.Unsupported("\n no such operation\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    notes = []
    function = Compute(CPU, compile="on", report=notes.append).compiled(double, **SHORT)
    assert [function(1), function(2)] == [2, 4]
    assert len(calls) == 1
    assert notes == ["compilation failed, running uncompiled: no such operation"]


def test_an_error_of_the_function_itself_is_not_swallowed(fake_compile):
    def wrong(x):
        raise ValueError("mine")

    notes = []
    function = Compute(CPU, compile="on", report=notes.append).compiled(wrong, **SHORT)
    for _ in range(2):
        with pytest.raises(ValueError, match="mine"):
            function(1)
    assert notes == []


@pytest.mark.parametrize("report", [pytest.fail, lambda _: None], ids=["strict", "silent"])
def test_a_fallback_fails_the_tests_that_ask_for_compiled_code(monkeypatch, ran, report):
    """They report to `pytest.fail`; where nothing reports, nothing compiled `ran`."""
    original = torch.compile

    def broken(graph, inputs):
        raise RuntimeError("no such backend")

    monkeypatch.setattr(device, "_compiler", lambda: "c++")
    monkeypatch.setattr(torch, "compile", lambda f, **how: original(f, backend=broken, **how))
    function = Compute(CPU, compile="on", report=report).compiled(double, **SHORT)
    if report is pytest.fail:
        with pytest.raises(pytest.fail.Exception, match="compilation failed, running uncompiled"):
            function(torch.ones(3))
    else:
        assert torch.equal(function(torch.ones(3)), 2 * torch.ones(3))
    assert ran == []


@pytest.mark.skipif(not device._compiler(), reason="no C++ compiler")
def test_a_compiled_step_equals_the_plain_one(ran):
    shape = Shape(channels=1, resolution=8, classes=4)
    with streams.seeded("compiled"):
        net = FlatNet(ConvNet(shape, width=8, depth=2))
        images, targets = torch.randn(6, 1, 8, 8), torch.randn(6, 4)

    def loss_of(x, y):
        return F.l1_loss(net.module(x), y)

    def step(function):
        loss = function(images, targets)
        return loss.detach(), net.gradient(loss)

    compute = Compute(CPU, compile="on", report=pytest.fail)
    loss, gradient = step(compute.compiled(loss_of, **SHORT))
    plain_loss, plain_gradient = step(loss_of)
    assert ran == ["forward", "backward"]
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=0)
    scale = float(plain_gradient.abs().max())
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_nothing_is_reserved_on_a_cpu(no_cuda, name):
    with reserved(name) as found:
        assert found == name


def test_jobs_of_one_machine_get_a_gpu_each(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device, "_uuid", lambda index: f"gpu-{index}")
    monkeypatch.setattr(device.tempfile, "gettempdir", lambda: str(tmp_path))
    with reserved("auto") as first:
        assert first == "cuda:0"
        with reserved("cuda") as second:
            assert second == "cuda:1"
        with reserved("cuda:1") as named:
            assert named == "cuda:1"
    with reserved("auto") as again:
        assert again == "cuda:0"


def test_each_job_locks_a_device_of_its_own(tmp_path):
    files = [{i: (tmp_path / f"{i}.lock").open("w") for i in range(2)} for _ in range(2)]
    assert [_lock_one(own) for own in files] == [0, 1]
    files[0][0].close()  # the first job ends: its device is free again
    again = {i: (tmp_path / f"{i}.lock").open("w") for i in range(2)}
    assert _lock_one(again) == 0
    for file in [files[0][1], *files[1].values(), *again.values()]:
        file.close()


def test_a_cpu_is_not_reserved():
    with reserved("cpu") as device:
        assert device == "cpu"


def test_many_networks_are_all_compiled(monkeypatch):
    # they share the code of one function, and Dynamo gives up on a code after so many
    counter, original = CompileCounter(), torch.compile
    monkeypatch.setattr(device, "_compiler", lambda: "c++")
    monkeypatch.setattr(torch, "compile", lambda f, **how: original(f, backend=counter, **how))

    def times(number):
        def multiplied(x):
            return number * x

        return multiplied

    functions = [Compute(CPU, compile="on").compiled(times(n), **SHORT) for n in range(5)]
    with torch._dynamo.config.patch(recompile_limit=2):  # pytest's monkeypatch would remove it
        for number, function in enumerate(functions):
            assert torch.equal(function(torch.ones(3)), torch.full((3,), float(number)))
    assert counter.frame_count == 5


def test_a_backward_pass_that_does_not_compile_falls_back_too(monkeypatch):
    def no_way_back(graph, inputs):
        raise RuntimeError("no way back")

    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=no_way_back
    )
    original = torch.compile
    monkeypatch.setattr(device, "_compiler", lambda: "c++")
    monkeypatch.setattr(torch, "compile", lambda f, **how: original(f, backend=backend, **how))
    notes, x = [], torch.ones(3, requires_grad=True)
    compute = Compute(CPU, compile="on", report=notes.append)
    function = compute.compiled(lambda x: (3 * x.sin()).sum(), **SHORT)
    gradient = torch.autograd.grad(function(x), x)[0]
    torch.testing.assert_close(gradient, 3 * torch.ones(3).cos())
    assert len(notes) == 1 and "no way back" in notes[0]
