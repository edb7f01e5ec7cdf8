"""The same seed twice: the same bits, or how far apart?

In one process, and in two, where libraries may choose other kernels by their timings; as a resumed
job does. Where `Compute` can be told to be deterministic, with that too.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from apm_core.training.trainer import Trainer
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup
from benchmarks.workload import STUDENT, apm, examples, job, spec_of

Run = Callable[[Setup, bool], Tensor]


def entries(setup: Setup) -> Entries:
    """A training and rounds of APM, each as it is and deterministic."""
    runs: dict[str, Run] = {"training": training, "rounds": rounds}
    found = {name: partial(compared, run, setup, False) for name, run in runs.items()}
    if hasattr(setup.compute, "deterministic"):
        for name, run in runs.items():
            found[f"{name}, deterministic"] = partial(compared, run, setup, True)
    return found


def compared(run: Run, setup: Setup, deterministic: bool) -> Figures:
    """Whether two runs in one process, and in two, have equal bits, and their largest difference;
    beside it the largest movement, which a difference is to be compared with.
    """
    first, second = elsewhere(run, setup, deterministic, 2)
    (other,) = elsewhere(run, setup, deterministic, 1)
    figures: Figures = {"largest movement": float(first.abs().max())}
    for name, found in (("one process", second), ("two processes", other)):
        figures[name] = {
            "equal": torch.equal(found, first),
            "largest difference": float((found - first).abs().max()),
        }
    return figures


def elsewhere(run: Run, setup: Setup, deterministic: bool, times: int) -> list[Tensor]:
    """The results of `times` runs in one new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = [pool.submit(_array, run, setup, deterministic) for _ in range(times)]
        return [torch.from_numpy(one.result()) for one in found]


def _array(run: Run, setup: Setup, deterministic: bool):  # noqa: ANN202 - what pickle copes with
    return run(setup, deterministic).numpy()


def _compute(setup: Setup, deterministic: bool):  # noqa: ANN202 - a Compute
    return replace(setup.compute, deterministic=True) if deterministic else setup.compute


def training(setup: Setup, deterministic: bool) -> Tensor:
    """The movement (P,) of a network in a few passes."""
    compute = _compute(setup, deterministic)
    width, batch, passes = (4, 8, 2) if setup.quick else (128, 250, 20)
    spec, recipe = spec_of(width), replace(STUDENT, batch=batch, passes=passes)
    data = examples(2 * batch + 3, compute)
    trainer = Trainer(spec.network(compute.device), recipe, compute, data, networks=1)
    start = spec.fresh("start")
    trainer.fit(start, "repeat")
    return trainer.net.snapshot().cpu() - start


def rounds(setup: Setup, deterministic: bool) -> Tensor:
    """The movement (N, C, H, W) of images in two periods of APM."""
    compute = _compute(setup, deterministic)
    width, ipc, epochs = (4, 1, 5) if setup.quick else (128, 50, 50)
    method = apm(epochs=epochs)
    state = method.start(job(spec_of(width), compute, ipc))
    start = state["images"].cpu().clone()
    for index in range(2 * method.settings.period):
        method.round(state, index)
    return state["images"].cpu() - start
