"""One image update of APM: does the host keep the device busy?"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from apm_core.runtime import memory
from apm_core.runtime.device import Compute
from benchmarks.gpu import kernels
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup
from benchmarks.round import placed, work

REPETITIONS = 20


def entries(setup: Setup) -> Entries:
    """One entry: all images of 50 per class as one segment, against 5 checkpoints."""
    width, ipc = (4, 1) if setup.quick else (128, 50)
    return {"update": partial(figures, width, ipc, setup.compute)}


def figures(width: int, ipc: int, compute: Compute) -> Figures:
    """Times, peak memory and kernels of the update.

    "host" is how long the host takes to ask for it and "device" from its first kernel to its last:
    as long as each other where the device waits for the host. "whole" has the host's wait too.
    """
    memory.reset_peak(compute)
    method, state = placed(*work(width, ipc, None, compute), compute)
    images = method.examples.images.clone().requires_grad_()

    def update() -> object:
        return method.segment_gradient(images, state["classes"], state["students"])

    for _ in range(3):
        update()
    device = on_device if compute.device.type == "cuda" else on_host
    functions: dict[str, Callable[[], float]] = {
        "host, ms": lambda: on_host(update),
        "device, ms": lambda: device(update),
        "whole, ms": lambda: on_host(lambda: method.image_gradient(state, "benchmark")),
    }
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(REPETITIONS):
        for name, function in functions.items():
            compute.clock()
            times[name].append(function())
    medians = {name: statistics.median(of) for name, of in times.items()}
    peak = memory.peak(compute) / memory.GB
    return {**medians, "peak, GB": peak, **kernels.table(update, compute)}


def on_host(function: Callable[[], object]) -> float:
    """Milliseconds until the call returns."""
    started = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - started)


def on_device(function: Callable[[], object]) -> float:
    """Milliseconds between events before and after the call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
