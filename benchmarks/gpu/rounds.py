"""Rounds of APM at the sizes that matter: seconds and peak memory."""

from functools import partial

from apm_core.runtime import memory
from apm_core.runtime.device import Compute
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup
from benchmarks.memory import imagenet, rounds
from benchmarks.workload import apm, job, spec_of

ROUNDS = 2501  # of a headline run
ASKED_HEADLINE = {"2,501 rounds, min": {"at most": 5}}
ASKED_IMAGENET = {"s a round": {"at most": 1}, "GB": {"at most": 4}}
PUBLISHED = [{"s a round": 8.6, "GB": 13.4}, {"s a round": 18.3, "GB": 6.5}]


def entries(setup: Setup) -> Entries:
    """Nine rounds of CIFAR-10 with 50 images per class, six of ImageNet-1K in segments of 100."""
    width, ipc, epochs = (4, 1, 5) if setup.quick else (128, 50, 250)
    return {
        "headline": partial(headline, width, ipc, epochs, setup.compute),
        "imagenet": partial(large, setup.quick, setup.compute),
    }


def headline(width: int, ipc: int, epochs: int, compute: Compute) -> Figures:
    """Seconds of a round in the last of three periods."""
    cost = rounds(apm(epochs=epochs), job(spec_of(width), compute, ipc), 9)
    return {
        "GB": cost["bytes"] / memory.GB,
        "s a round": cost["seconds"],
        "2,501 rounds, min": ROUNDS * cost["seconds"] / 60,
        "asked": ASKED_HEADLINE,
    }


def large(quick: bool, compute: Compute) -> Figures:
    """Seconds of a round in the second of two periods; beside them what was published."""
    cost = imagenet(compute, 100, quick=quick)
    return {**cost, "asked": ASKED_IMAGENET, "published": PUBLISHED}
