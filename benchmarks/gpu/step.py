"""Images a second of a student's training, by variant, and the kernels of one step."""

import statistics
from dataclasses import replace
from functools import partial

from apm_core.runtime.device import Compute
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer
from benchmarks.gpu import kernels
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup
from benchmarks.workload import STUDENT, examples, spec_of, variants

BATCHES, REPETITIONS = 4, 3
ASKED = {"images/s": {"at least": 650_000}}
ASKED_EVALUATION = {"5 networks, s": {"at most": 15}}


def paths(compute: Compute) -> dict[str, Compute]:
    """All variants of the step by name."""
    found = variants(compute)
    if compute.graphs:
        for precision in dict.fromkeys(("float32", compute.precision)):
            found[f"{precision}, captured"] = replace(found[precision], graphs=True)
        found["own kernels"] = replace(compute, kernels=True)
    return found


def entries(setup: Setup) -> Entries:
    """An entry for each variant, kernels of the default and with our own, an evaluation."""
    compute, width = setup.compute, 4 if setup.quick else 128
    recipe = replace(STUDENT, batch=8 if setup.quick else 250, passes=2 if setup.quick else 200)
    ways = paths(compute)
    found = {name: partial(speed, width, recipe, way) for name, way in ways.items()}
    found["kernels"] = partial(one_step, width, recipe, compute)
    if "own kernels" in ways:
        found["kernels with our own"] = partial(one_step, width, recipe, ways["own kernels"])
    return found | {"evaluation": partial(evaluation, width, 2 if setup.quick else 1000, compute)}


def trainer_of(width: int, recipe: Recipe, compute: Compute) -> Trainer:
    """A trainer that has trained once, so that all is compiled and captured."""
    spec, data = spec_of(width), examples(BATCHES * recipe.batch, compute)
    trainer = Trainer(spec.network(compute.device), recipe, compute, data, networks=10**6)
    trainer.fit(spec.fresh("start"), "warm up")
    return trainer


def speed(width: int, recipe: Recipe, compute: Compute) -> Figures:
    """Images a second of whole trainings."""
    started = compute.clock()
    trainer = trainer_of(width, recipe, compute)
    first = compute.clock() - started
    start, rates = spec_of(width).fresh("start"), []
    for repetition in range(REPETITIONS):
        started = compute.clock()
        trainer.fit(start, "step", repetition)
        rates.append(BATCHES * recipe.batch * recipe.passes / (compute.clock() - started))
    return {
        "images/s": statistics.median(rates),
        "repetitions": rates,
        "first training, s": first,
        "asked": ASKED,
    }


def one_step(width: int, recipe: Recipe, compute: Compute) -> Figures:
    """The kernels of one step, a replay where steps are captured."""
    trainer = trainer_of(width, recipe, compute)
    seconds = trainer.rehearse(compute.clock) / (BATCHES * recipe.passes)
    return {
        "one step alone, us": 1e6 * seconds,
        **kernels.table(lambda: trainer.rehearse(compute.clock), compute),
    }


def evaluation(width: int, epochs: int, compute: Compute) -> Figures:
    """Seconds of one network that is trained on 500 images for an evaluation."""
    spec, recipe = spec_of(width), STUDENT.with_epochs(epochs)
    trainer = Trainer(
        spec.network(compute.device), recipe, compute, examples(500, compute), networks=5
    )
    times = []
    for network in range(2):
        started = compute.clock()
        trainer.fit(spec.fresh("evaluation", network), "evaluation", network)
        times.append(compute.clock() - started)
    first, later = times
    return {
        "first network, s": first,
        "later network, s": later,
        "5 networks, s": first + 4 * later,
        "asked": ASKED_EVALUATION,
    }
