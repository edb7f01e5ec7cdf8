"""Seconds of a round of APM, as the work grows; and shards one after another or side by side.

    python -m benchmarks.scaling

One quantity changes at a time. A flat column of GFLOP/s means that time is in proportion to work.
Uncompiled (no point then pays for its compilation), in the default precision, from a rehearsal of a
round.
"""

import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from apm_core.nets.base import Shape
from apm_core.runtime.device import Compute, choose
from apm_core.training.inference import forward_flops
from apm_core.training.trainer import Trainer
from benchmarks.measure import options, record, show
from benchmarks.workload import STUDENT, apm, examples, job, spec_of

Varied = dict[str, tuple[int, ...]]  # values by quantity
BASE = {"ipc": 10, "checkpoints": 5, "batch": None, "epochs": 100, "classes": 10, "resolution": 32}
VARIED: Varied = {
    "ipc": (10, 20, 50),
    "checkpoints": (1, 5, 10),
    "batch": (25, 50, 100),
    "epochs": (50, 100, 200),
    "classes": (10, 20, 50),
    "resolution": (16, 32, 64),
}
QUICK_VARIED: Varied = {"epochs": (5, 10)}
WIDTH, QUICK_WIDTH = 32, 4
NETWORKS = 12  # trained by the shards together


def operations(size: dict[str, Any], width: int, compute: Compute) -> float:
    """Floating-point operations of a round: a third of a student, K + 1 networks on the images."""
    shape = Shape(3, size["resolution"], size["classes"])
    forward = forward_flops(spec_of(width, shape).network(compute.device), shape.image, compute)
    images = size["batch"] or size["ipc"] * size["classes"]
    student = 3 * forward * images * (size["epochs"] + 1) / 3
    return student + 2 * forward * images * (size["checkpoints"] + 1)


def growth(compute: Compute, width: int, varied: Varied) -> list[dict[str, Any]]:
    """Measure a round for each value of each quantity: a row each."""
    compute = replace(compute, compile="off")
    rows = []
    for quantity, values in varied.items():
        for value in values:
            size = {**BASE, quantity: value}
            method = apm(**{key: size[key] for key in ("epochs", "checkpoints", "batch")})
            spec = spec_of(width, Shape(3, size["resolution"], size["classes"]))
            state = method.start(job(spec, compute, size["ipc"]))
            method.rehearse(state, compute.clock)
            seconds = min(method.rehearse(state, compute.clock)[1] for _ in range(5))
            work = operations(size, width, compute)
            rows.append(
                {"grows": f"{quantity} {value}", "s": seconds, "GFLOP/s": work / seconds / 1e9}
            )
    return rows


def train(networks: int, threads: int, start_at: float) -> None:
    """Train students one after another from `start_at` on; print the times of start and end."""
    torch.set_num_threads(threads)
    compute = choose("cpu", "auto", "on")
    spec, data = spec_of(WIDTH), examples(100, compute)
    trainer = Trainer(
        spec.network(compute.device), STUDENT.with_epochs(100), compute, data, networks=10**6
    )
    start = spec.fresh("start")
    trainer.fit(start, "warm up")
    time.sleep(max(0.0, start_at - time.time()))
    started = time.time()
    for index in range(networks):
        trainer.fit(start, index)
    print(started, time.time())


def side_by_side(repetitions: int = 3) -> list[dict[str, Any]]:
    """Time students in one process of all threads and in a process per thread, alternately."""
    threads = torch.get_num_threads()
    rows = []
    for _ in range(repetitions):
        for processes in sorted({1, threads}):
            start_at = time.time() + 30
            options = [NETWORKS // processes, threads // processes, start_at]
            command = [sys.executable, "-m", "benchmarks.scaling", "--train", *map(str, options)]
            workers = [
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                for _ in range(processes)
            ]
            times = [tuple(map(float, w.communicate()[0].split())) for w in workers]
            seconds = max(end for _, end in times) - min(begin for begin, _ in times)
            rows.append(
                {
                    "processes": processes,
                    "threads each": threads // processes,
                    "students": NETWORKS // processes * processes,
                    "s": seconds,
                }
            )
    return rows


def report(compute: Compute, quick: bool) -> dict[str, Any]:
    """Measure rounds as they grow, and on a CPU students side by side; print a table for each."""
    width, varied = (QUICK_WIDTH, QUICK_VARIED) if quick else (WIDTH, VARIED)
    found = {"precision": compute.precision, "width": width}
    found["growth"] = growth(compute, width, varied)
    show(f"seconds of a round, ConvNet of width {width}", found["growth"])
    if compute.device.type == "cpu" and not quick:
        found["side_by_side"] = side_by_side()
        show("students of 101 steps of 100 images", found["side_by_side"])
    return found


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--train", nargs=3, type=float, metavar=("NETWORKS", "THREADS", "AT"))
    given = parser.parse_args()
    if given.train:
        networks, threads, start_at = given.train
        train(int(networks), int(threads), start_at)
    else:
        record("scaling", report, given)
