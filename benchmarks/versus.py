"""This tree against another checkout of it: training steps and image updates, in turns.

    python -m benchmarks.versus ../before --repetitions 9

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
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

STEPS = ((128, 128), (32, 256), (32, 100))  # width, batch
UPDATES = ((128, 5, 50), (32, 10, 100))  # width, IPC, segment
Work = dict[str, tuple[Callable[[], object], float, float]]  # function, images, FLOPs of one call


def work() -> Work:
    """What is timed, by the tree that the process imports."""
    from apm_core.runtime.device import choose
    from apm_core.training.inference import forward_flops
    from apm_core.training.trainer import Trainer
    from benchmarks import round as rounds
    from benchmarks.measure import matrix_product
    from benchmarks.workload import STUDENT, examples, spec_of

    compute, found = choose("auto", "auto", "on"), {}
    for width, batch in STEPS:
        spec, data = spec_of(width), examples(2 * batch, compute)
        net, recipe = spec.network(compute.device), replace(STUDENT, batch=batch)
        forward = forward_flops(net, spec.shape.image, compute)
        trainer = Trainer(net, recipe, compute, data, networks=10**6)
        function = partial(trainer.fit, spec.fresh("start"), "versus")
        name = f"step of width {width}, batch {batch}"
        found[name] = (function, 2 * batch, 3 * forward * 2 * batch)
    for size in UPDATES:
        task, students = rounds.work(*size, compute)
        width, ipc, _ = size
        spec, images = spec_of(width), 10 * ipc
        forward = forward_flops(spec.network(compute.device), spec.shape.image, compute)
        networks = rounds.CHECKPOINTS + 1  # forward and back to the images, not to the weights
        function = rounds.our_update(task, students, compute)
        name = f"update of width {width}, {images} images"
        found[name] = (function, images, 2 * networks * forward * images)
    product, operations = matrix_product(compute)
    found["matrices"] = (product, 1, operations)
    return found


def serve() -> None:
    """Run what the lines of standard input name, and print the seconds."""
    found = work()
    for function, _, _ in found.values():
        function()
        function()
    print(json.dumps({name: of[1:] for name, of in found.items()}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        found[line.strip()][0]()
        print(time.perf_counter() - started, flush=True)


class Tree:
    """A checkout at work in a process of its own."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sizes(self) -> dict[str, tuple[float, float]]:
        """Images and operations of each piece of work, once all are warm."""
        return json.loads(self._line())

    def seconds(self, name: str) -> float:
        """Do the work `name` once."""
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args}: ended early")
        return line

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def compared(before: Path, after: Path, repetitions: int) -> list[dict[str, Any]]:
    """A row for each piece of work: images/s and % of the rate of both trees, and their ratio."""
    from benchmarks.measure import ratio

    trees = {"before": Tree(before), "after": Tree(after)}
    sizes, _ = (tree.sizes() for tree in trees.values())
    times = {name: {key: [] for key in trees} for name in sizes}
    for _ in range(repetitions):
        for name, of in times.items():
            for key, tree in trees.items():
                of[key].append(tree.seconds(name))
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
    from apm_core.runtime.device import choose
    from benchmarks.measure import RESULTS, ROOT, machine, show, write

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="folder of the other checkout")
    parser.add_argument("--repetitions", type=int, default=9)
    given = parser.parse_args()
    rows = compared(given.before, ROOT, given.repetitions)
    show("this tree against the other", rows)
    compute = choose("auto")
    revisions = {
        key: subprocess.check_output(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], text=True
        ).strip()
        for key, folder in (("before", given.before), ("after", ROOT))
    }
    head = {**machine(), "precision": compute.precision, "revisions": revisions}
    write(RESULTS / f"versus_{compute.device.type}.json", {**head, "rows": rows})


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve()
    else:
        main()
