"""Common parts of the benchmarks: options, timing in turns, the machine's rate, result files."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from apm_core.runtime import store
from apm_core.runtime.device import Compute, choose

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
QUICK = ROOT / "work/quick"  # where figures of tiny sizes go, which mean nothing
Times = list[float]  # seconds of one call, one entry per repetition
Report = Callable[[Compute, bool], dict[str, Any]]  # of a device, at tiny sizes or at the real ones


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser without options, whose --help is the description."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all short benchmarks have."""
    parser = parser_of(description)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--compile", default="on", choices=("on", "off"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON files (benchmarks/results; quick: work/quick)"
    )
    return parser


def folder(given: argparse.Namespace) -> Path:
    """Where the result files go."""
    return given.out or (QUICK if given.quick else RESULTS)


def record(name: str, report: Report, given: argparse.Namespace, *, again: bool = True) -> None:
    """Measure and write NAME_DEVICE.json, unless (`again` false) it was written today already."""
    compute = choose(given.device, "auto", given.compile, print)
    path = folder(given) / f"{name}_{compute.device.type}.json"
    head = machine(compute)
    if not again and path.is_file() and head.items() <= json.loads(path.read_text()).items():
        print(f"there already: {path.name}")
        return
    write(path, {**head, **report(compute, given.quick)})


def together(
    functions: Mapping[str, Callable[[], object]],
    compute: Compute,
    *,
    repetitions: int = 5,
    seconds: float = 0.5,
) -> dict[str, Times]:
    """Time the functions in turns, so that what disturbs the machine disturbs them all.

    Each is called twice to warm up, then in every repetition for about `seconds`.
    """
    calls = {}
    for name, function in functions.items():
        function()
        started = compute.clock()
        function()
        calls[name] = max(1, round(seconds / (compute.clock() - started)))
    times: dict[str, Times] = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            started = compute.clock()
            for _ in range(calls[name]):
                function()
            times[name].append((compute.clock() - started) / calls[name])
    return times


def ratio(times: dict[str, Times], name: str, reference: str) -> dict[str, float]:
    """How many times as fast as `reference`, repetition by repetition: median, least, most."""
    ratios = [slow / fast for slow, fast in zip(times[reference], times[name], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def matrix_product(compute: Compute) -> tuple[Callable[[], Tensor], float]:
    """A function that multiplies two square matrices in the precision in use, and its FLOPs."""
    size = 8192 if compute.device.type == "cuda" else 2048
    kind = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=compute.device).to(kind)
    return lambda: a @ b, 2.0 * size**3


class Served:
    """A process of its own that answers each line with a line."""

    def __init__(self, command: Sequence[object], **options: Any) -> None:  # noqa: ANN401 - Popen's
        pipe = subprocess.PIPE
        words = list(map(str, command))
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, **options)

    def ask(self, line: str) -> str:
        """The answer to `line`; raises RuntimeError when the process has ended."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"{self.process.args}: ended early")
        return answer.rstrip("\n")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Elsewhere(Served):
    """Calls a function that runs in a process of its own.

    For the plain loops: in this process the allocator is not as it comes. The process runs `module`
    with `arguments` and there calls `serve`.
    """

    def __init__(self, module: str, *arguments: object) -> None:
        super().__init__([sys.executable, "-m", module, *arguments])

    def __call__(self) -> None:
        """Run the function once and wait for it; raises RuntimeError when the process has ended."""
        if self.ask("go") != "done":
            raise RuntimeError(f"{self.process.args}: ended early")


def serve(function: Callable[[], object]) -> None:
    """Call `function` once for each request of an `Elsewhere`, in the process that it started."""
    for _ in sys.stdin:
        function()
        print("done", flush=True)


def device() -> torch.device:
    """The kind of device that is measured: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(compute: Compute | None = None) -> dict[str, Any]:
    """Device, date and versions, for the head of every result file."""
    return {
        "device": (compute or Compute(device())).describe(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": store.versions(),
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print `rows` as a table; the keys of the first are the columns."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    Console().print(table)


def _text(value: Any) -> str:  # noqa: ANN401 - a figure of a table
    if isinstance(value, dict):  # a ratio
        return f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def save(path: Path, figures: dict[str, Any]) -> None:
    """Put the figures into `path` as JSON."""
    text = json.dumps(figures, indent=1, allow_nan=False)
    with store.atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def write(path: Path, figures: dict[str, Any]) -> None:
    """Put the figures into `path` as JSON, and say so."""
    save(path, figures)
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
