"""The same seed twice: the same bits, or how far apart?

In one process, and in two, where libraries may choose other kernels by their timings; as a resumed
job does. On a GPU, with deterministic operations too.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from apm_core.runtime.device import Compute
from apm_core.training.trainer import Trainer
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup
from benchmarks.workload import STUDENT, apm, examples, job, spec_of

Results = dict[str, np.ndarray]


def entries(setup: Setup) -> Entries:
    """Runs as they are, and deterministic ones."""
    found = {"as it is": partial(compared, setup)}
    if setup.compute.device.type == "cuda":
        found["deterministic"] = partial(compared, replace(setup, deterministic=True))
    return found


def compared(setup: Setup) -> Figures:
    """Whether two runs in one process, and in two, have equal bits, and their largest difference;
    beside it the largest movement, which a difference is to be compared with.
    """
    first, second = elsewhere(setup, 2)
    (other,) = elsewhere(setup, 1)
    figures: Figures = {}
    for name, moved in first.items():
        figures[name] = {"largest movement": float(np.abs(moved).max())}
        for processes, found in (("one process", second[name]), ("two processes", other[name])):
            figures[name][processes] = {
                "equal": bool((found == moved).all()),
                "largest difference": float(np.abs(found - moved).max()),
            }
    return figures


def elsewhere(setup: Setup, times: int) -> list[Results]:
    """The results of `times` runs in one new process."""
    context = multiprocessing.get_context("spawn")
    bare = replace(setup)  # without its `compute`, whose choice sets up the process
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return [pool.submit(run, bare).result() for _ in range(times)]


def run(setup: Setup) -> Results:
    """How far a training moved its parameters, and rounds of APM their images."""
    return {
        "training": training(setup.compute, setup.quick).numpy(),
        "rounds": rounds(setup.compute, setup.quick).numpy(),
    }


def training(compute: Compute, quick: bool) -> Tensor:
    """The movement (P,) of a network in a few passes."""
    width, batch, passes = (4, 8, 2) if quick else (128, 250, 20)
    spec, recipe = spec_of(width), replace(STUDENT, batch=batch, passes=passes)
    data = examples(2 * batch + 3, compute)
    trainer = Trainer(spec.network(compute.device), recipe, compute, data, networks=1)
    start = spec.fresh("start")
    trainer.fit(start, "repeat")
    return trainer.net.snapshot().cpu() - start


def rounds(compute: Compute, quick: bool) -> Tensor:
    """The movement (N, C, H, W) of images in two periods of APM."""
    width, ipc, epochs = (4, 1, 5) if quick else (128, 50, 50)
    method = apm(epochs=epochs)
    state = method.start(job(spec_of(width), compute, ipc))
    start = state["images"].cpu().clone()
    for index in range(2 * method.settings.period):
        method.round(state, index)
    return state["images"].cpu() - start
