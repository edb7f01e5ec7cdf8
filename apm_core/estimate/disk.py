"""The disk space of a run."""

import math

from apm_core.estimate.jobs import pools
from apm_core.estimate.size import Size
from apm_core.estimate.work import CPU, set_images
from apm_core.nets.spec import Spec
from apm_core.settings.plan import Plan

SNAPSHOT_BYTES = {"float32": 4, "float16": 2}


def disk_bytes(plan: Plan, size: Size) -> float:
    """Data, pools and distilled sets, before they are compressed."""
    pixels, settings = math.prod(size.shape.image), plan.settings
    total = float((size.train + size.test) * pixels)
    if settings.dataset.whitening == "zca":
        total += 2 * 4 * pixels**2  # in the data, and beside the sets
    for name, pool in pools(plan).items():
        parameters = Spec.of(plan.pool(name).network, size.shape).network(CPU.device).size
        kept = (pool.epochs + 1) * SNAPSHOT_BYTES[pool.snapshot_type] if pool.snapshots else 0
        total += pool.n * parameters * (4 + kept)
    one = set_images(plan, size) * (pixels * 5 + 4 * size.shape.classes)  # float32 and uint8
    return total + 2 * one * len(plan.entries)  # shards and sets
