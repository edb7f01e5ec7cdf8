"""What the quick start spends outside its jobs' work: Snakemake, imports, idle cores.

    python -m benchmarks.overhead

Runs the quick start in a temporary folder and reads the jobs' logs. A job that trains is at work
between its first and its last log line; wall time in which no such job is at work is overhead.
"""

import re
import tempfile
import time
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT, device, machine, parser_of, show, write
from benchmarks.pipeline import run_pipeline

TRAINING = (
    "teachers.",
    "distill.apm.",
    "evaluate.",
    "ceiling.",
    "nas.reference.",
    "nas.short",
    "proxy.",
    "continual.",
)
CLOCK = re.compile(r"(\d\d):(\d\d):(\d\d(?:\.\d+)?) ")


def trains(log: Path) -> bool:
    """Whether the log at this path is that of a job that trains."""
    return any(part in log.name for part in TRAINING)


def interval(log: Path) -> tuple[float, float]:
    """Seconds of the day of the first and the last line."""
    times = [
        float(h) * 3600 + float(m) * 60 + float(s) for h, m, s in CLOCK.findall(log.read_text())
    ]
    return times[0], times[-1]


def covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of the intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def main() -> None:
    """Run, print, write."""
    parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        preset = ROOT / "presets/digits_ipc10.yaml"
        started = time.monotonic()
        run_pipeline(Path(folder), preset, "results/digits_ipc10.json", cores="2")
        wall = time.monotonic() - started
        logs = list((Path(folder) / "logs").rglob("*.log"))
        work = covered([interval(log) for log in logs if trains(log)])
    figures = {"jobs": len(logs), "wall, s": wall, "training, s": work}
    figures["outside, %"] = 100 * (1 - work / wall)
    show("the quick start on two cores", [figures])
    write(RESULTS / f"overhead_{device().type}.json", {**machine(), **figures})


if __name__ == "__main__":
    main()
