"""The first ten minutes with a GPU: does all of it work, how fast is it, and why no faster?

    python -m benchmarks.gpu --data DIR

Each part is measured in a process of its own and each of its entries written to gpu_cuda.json as
soon as it is there. Stopped, the same command goes on with what is missing and tries again what
failed; --again measures anew (all, or the parts named before it). What fails is recorded with its
traceback, what follows is measured all the same, and the exit status is 1.

The parts, in order: {parts}.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.gpu import machine, repeat, rounds, smoke, step, teacher, together, update
from benchmarks.gpu.record import Record, asked_and_measured, failures, forget, load
from benchmarks.gpu.setup import Setup

PARTS = {
    "machine": machine.entries,
    "smoke": smoke.entries,
    "step": step.entries,
    "update": update.entries,
    "repeat": repeat.entries,
    "teacher": teacher.entries,
    "rounds": rounds.entries,
    "together": together.entries,
}


def main() -> int:
    """Measure the parts that the command names; returns the exit status."""
    parser = measure.options(str(__doc__).format(parts=", ".join(PARTS)))
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10, for the teacher")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--limit", type=float, default=300, help="seconds of an entry (300)")
    parser.add_argument("--call", help=argparse.SUPPRESS)  # of a part's own process: its command
    given = parser.parse_args()
    wanted = given.parts or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"there is no part {unknown.pop()!r}; parts: {', '.join(PARTS)}")
    path = measure.folder(given) / f"gpu_{device_type(given.device)}.json"
    if given.call:
        return part(given, path)
    if given.again:
        forget(path, wanted)
    told = ["--device", given.device, "--compile", given.compile, "--out", path.parent]
    told += ["--limit", given.limit, "--call", time.time()]
    told += ["--quick"] * given.quick + (["--data", given.data] if given.data else [])
    broken = []
    for name in wanted:
        command = [sys.executable, "-m", "benchmarks.gpu", *map(str, told), name]
        before = load(path)
        while subprocess.run(command).returncode:
            after = load(path)
            if after == before:
                broken.append(f"{name}: ended before its first entry")
                break
            before = after
    report = load(path)
    show(report)
    problems = [*failures(report), *broken]
    print(*problems, f"{path}: {len(problems)} failed", sep="\n")
    return 1 if problems else 0


def device_type(name: str) -> str:
    """The type of the device that the option names."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name).type


def part(given: argparse.Namespace, path: Path) -> int:
    """Measure, in this process, what is due of one part; status 1 at the first failure."""
    setup = Setup(given.device, given.compile, given.quick, given.data)
    sizes = {"compile": given.compile, "quick": given.quick}
    record = Record(path, {**measure.machine(setup.compute), **sizes}, given.call)
    (name,) = given.parts
    return 0 if record.measure(name, PARTS[name](setup), limit=given.limit) else 1


def show(report: dict[str, Any]) -> None:
    """Print a table of the smoke test, and one of what was asked for."""
    rows = [
        {"smoke test": name, "of": of, "difference": row["difference"], "at most": row["tolerance"]}
        for name, figures in report.get("parts", {}).get("smoke", {}).items()
        for of, row in figures.items()
        if isinstance(row, dict) and "tolerance" in row
    ]
    if rows:
        measure.show("movement of the parameters against plain float32, relative", rows)
    if asked := asked_and_measured(report):
        measure.show("asked and measured", asked)


if __name__ == "__main__":
    sys.exit(main())
