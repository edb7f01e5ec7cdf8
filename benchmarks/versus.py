"""This tree against another checkout of it: training steps and image updates, in turns.

    python -m benchmarks.versus ../before --repetitions 9
    python -m benchmarks.versus ../before --plain

Each tree runs in a process of its own, and the two do the same work one right after the other, so
that what disturbs the machine disturbs both. "% of rate" compares with a product of matrices in the
same precision and the same minute.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from apm_core.runtime.device import choose
from benchmarks.measure import RESULTS, ROOT, Served, machine, ratio, show, write

WORK = Path(__file__).with_name("versus_work.py")


def checkout(folder: Path, kind: str) -> Served:
    """The process that does work of `kind` with the library in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    return Served([sys.executable, WORK.resolve(), kind], cwd=folder, env=environment)


def compared(before: Path, after: Path, kind: str, repetitions: int) -> list[dict[str, Any]]:
    """A row for each piece of work: images/s and % of the rate of both trees, and their ratio."""
    trees = {"before": checkout(before, kind), "after": checkout(after, kind)}
    sizes, _ = (json.loads(tree.ask("sizes")) for tree in trees.values())
    times = {name: {key: [] for key in trees} for name in sizes}
    for _ in range(repetitions):
        for name, of in times.items():
            for key, tree in trees.items():
                of[key].append(float(tree.ask(name)))
    for tree in trees.values():
        tree.close()
    _, operations = sizes["matrices"]
    products = times.pop("matrices")
    rows = []
    for name, of in times.items():
        images, flops = sizes[name]
        row: dict[str, Any] = {"work": name}
        for key, seconds in of.items():
            rate = operations / statistics.median(products[key])
            median = statistics.median(seconds)
            row |= {
                f"{key}, images/s": images / median,
                f"{key}, % of rate": 100 * flops / median / rate,
            }
        rows.append({**row, "x before": ratio(of, "after", "before")})
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="folder of the other checkout")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--plain", action="store_true", help="work that is not compiled")
    given = parser.parse_args()
    kind, suffix = ("plain", "_plain") if given.plain else ("compiled", "")
    rows = compared(given.before, ROOT, kind, given.repetitions)
    show("this tree against the other", rows)
    compute = choose("auto")
    revisions = {
        key: subprocess.check_output(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], text=True
        ).strip()
        for key, folder in (("before", given.before), ("after", ROOT))
    }
    head = {**machine(), "precision": compute.precision, "revisions": revisions}
    write(RESULTS / f"versus{suffix}_{compute.device.type}.json", {**head, "rows": rows})


if __name__ == "__main__":
    main()
