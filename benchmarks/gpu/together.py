"""Images a second of several trainings side by side, each on a stream of its own."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from apm_core.nets import nasbench201
from apm_core.nets.flat import FlatNet
from apm_core.runtime.device import Compute
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer, Training, fit_together
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.smoke import CELL
from benchmarks.workload import CIFAR10, STUDENT, examples, spec_of

BATCHES, REPETITIONS = 4, 3
COUNTS = (1, 2, 4, 8)


def entries(setup: Setup) -> Entries:
    """An entry for each number of trainings, of the ConvNet and of a network of NAS-Bench-201."""
    quick = setup.quick
    nas = partial(nasbench201.network, nasbench201.parse(CELL), CIFAR10)
    builds = {
        "convnet": spec_of(4 if quick else 128).build,
        "nas": partial(nas, stem=4 if quick else 16, cells=1 if quick else 5),
    }
    recipe = replace(STUDENT, batch=8 if quick else 250, passes=2 if quick else 50)
    counts = COUNTS[:2] if quick else COUNTS
    return {
        f"{name}, {count} at once": partial(speed, build, count, recipe, setup.compute)
        for name, build in builds.items()
        for count in counts
    }


def speed(build: Callable[[], nn.Module], count: int, recipe: Recipe, compute: Compute) -> Figures:
    """Images a second of `count` trainings together, after one in which all is captured."""
    data = examples(BATCHES * recipe.batch, compute)
    nets = [FlatNet(build().to(compute.device)) for _ in range(count)]
    trainers = [Trainer(net, recipe, compute, data, networks=10**6) for net in nets]
    starts = [Training(net.snapshot(), ("together", n)) for n, net in enumerate(nets)]
    fit_together(trainers, starts)
    rates = []
    for _ in range(REPETITIONS):
        started = compute.clock()
        fit_together(trainers, starts)
        images = count * BATCHES * recipe.batch * recipe.passes
        rates.append(images / (compute.clock() - started))
    return {"images/s": statistics.median(rates), "repetitions": rates}
