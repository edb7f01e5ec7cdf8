"""Peak memory of APM's rounds: what it grows with, and what it does not.

    python -m benchmarks.memory

One quantity changes at a time. "MB" is the peak above what the process held before the shard; S
with its momentum is shown beside it, because that is the part that must grow. The other part is one
segment, or a student's step on at most 256 images. Uncompiled, in the default precision; compiled
paths take less. On a GPU also rounds of ImageNet-1K's size: 50,000 images of 64x64, batch 500.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from apm_core.methods.apm.apm import APM
from apm_core.methods.base import Job
from apm_core.nets.base import Shape
from apm_core.runtime import memory
from apm_core.runtime.device import Compute
from benchmarks.measure import options, record, show
from benchmarks.workload import IMAGENET64, apm, job, spec_of

Varied = dict[str, tuple[int, ...]]  # values by quantity
WIDTH, QUICK_WIDTH = 32, 4
BASE = {"ipc": 50, "batch": 100, "checkpoints": 5, "epochs": 5, "segment": 50}
VARIED: Varied = {
    "segment": (10, 25, 50, 100),
    "ipc": (10, 50, 500),
    "batch": (100, 256, 500),
    "checkpoints": (1, 5),
    "epochs": (5, 10),
}
QUICK_VARIED: Varied = {"segment": (10, 25)}
IMAGENET_SEGMENTS = (100, 250, 500)


def rounds(method: APM, task: Job, count: int) -> dict[str, float]:
    """Peak bytes of `count` rounds above what was held before, and seconds of the last period."""
    compute = task.compute
    memory.reset_peak(compute)
    before = 0 if compute.device.type == "cuda" else memory.peak(compute)
    state = method.start(task)
    period = method.settings.period
    for index in range(count):
        if index == count - period:
            started = compute.clock()
        method.round(state, index)
    seconds = (compute.clock() - started) / period
    return {"bytes": memory.peak(compute) - before, "seconds": seconds}


def growth(compute: Compute, width: int, varied: Varied) -> list[dict[str, Any]]:
    """Measure rounds for each value of each quantity: a row each."""
    compute = replace(compute, compile="off")
    spec, rows = spec_of(width), []
    rounds(apm(epochs=5, batch=100), job(spec, compute, 10), 3)  # libraries take theirs once
    for quantity, values in varied.items():
        for value in values:
            size = {**BASE, quantity: value}
            method = apm(**{key: size[key] for key in ("epochs", "checkpoints", "batch")})
            task = job(spec, compute, size["ipc"], segment=size["segment"])
            cost = rounds(method, task, 3)
            shard_bytes = 2 * 4 * size["ipc"] * spec.shape.classes * math.prod(spec.shape.image)
            rows.append(
                {
                    "grows": f"{quantity} {value}",
                    "S, MB": shard_bytes / 1e6,
                    "MB": cost["bytes"] / 1e6,
                    "MB without S": (cost["bytes"] - shard_bytes) / 1e6,
                }
            )
    return rows


def imagenet(compute: Compute, segment: int, *, quick: bool = False) -> dict[str, float]:
    """Rounds of ImageNet-1K IPC 50 as in the paper's figure on memory, the shard in host memory."""
    torch._dynamo.reset()
    spec, ipc = spec_of(128, IMAGENET64), 50
    method = apm(batch=500)
    if quick:
        spec, ipc = spec_of(4, Shape(3, 16, 20)), 2
        method = apm(batch=10, epochs=5)
    cost = rounds(method, job(spec, compute, ipc, segment=segment, home=torch.device("cpu")), 6)
    return {"segment": segment, "GB": cost["bytes"] / memory.GB, "s a round": cost["seconds"]}


def report(compute: Compute, quick: bool) -> dict[str, Any]:
    """Measure what the peak grows with, and on a GPU the large rounds; print a table for each."""
    width, varied = (QUICK_WIDTH, QUICK_VARIED) if quick else (WIDTH, VARIED)
    found = {"precision": compute.precision, "width": width}
    found["growth"] = growth(compute, width, varied)
    show(f"peak memory of rounds, ConvNet of width {width}, 32x32", found["growth"])
    if compute.device.type == "cuda":
        found["imagenet"] = [imagenet(compute, size, quick=quick) for size in IMAGENET_SEGMENTS]
        show("ImageNet-1K IPC 50, ConvNet of depth 4, width 128, batch 500", found["imagenet"])
    return found


if __name__ == "__main__":
    record("memory", report, options(__doc__).parse_args())
