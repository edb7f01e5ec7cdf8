"""The work of each stage of a run: networks in training, and images through them.

Counted are passes of images through networks. What an image costs in one is counted on the network
itself: its operations, and the values that its layers write, which is what small networks spend
their time on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from apm_core import methods
from apm_core.estimate.jobs import pools, short_sizes
from apm_core.estimate.size import Size
from apm_core.methods.base import Method
from apm_core.methods.passes import FORWARD, TRAINED, Extent, Passes
from apm_core.nets import nasbench201
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime.device import Compute
from apm_core.settings.evaluation import RankedNetworks
from apm_core.settings.plan import Plan
from apm_core.settings.stages import RankingSettings
from apm_core.settings.training import Network, OrderedTraining
from apm_core.training.inference import forward_flops
from apm_core.training.rate_search import REAL

CPU = Compute(torch.device("cpu"), compile="off")
JUDGED = 1000  # images of an inference at once
SAMPLED = 8  # networks of a ranking whose cost is counted


@dataclass(frozen=True)
class Cost:
    """One image forward through a network."""

    flops: float
    values: float  # written by its layers
    compile_from_s: float  # of plain work on a CPU


@dataclass(frozen=True)
class Work:
    """What one job computes, or several alike."""

    stage: str
    flops: float
    values: float
    steps: float
    compile_from_s: float
    jobs: int = 1  # that share it equally

    @classmethod
    def of(cls, stage: str, cost: Cost, passes: Passes, jobs: int = 1) -> "Work":
        """The passes of `jobs` together through a network."""
        flops, values = cost.flops * passes.images, cost.values * passes.images
        return cls(stage, flops, values, passes.steps, cost.compile_from_s, jobs)


def works(plan: Plan, size: Size) -> Iterator[Work]:
    """The work of all stages; those that train or run no network have none.

    Left out are entries of `not_estimated`.
    """
    yield from _teachers(plan, size)
    for entry in plan.entries:
        yield from _distillation(plan, size, entry)
    yield from _evaluation(plan, size)
    yield from _ceiling(plan, size)
    yield from _ranking(plan, size)


def not_estimated(plan: Plan, size: Size) -> list[str]:
    """The entries whose distillation cannot be told beforehand."""
    return [entry for entry in plan.entries if _passes(plan, size, entry) is None]


def set_images(plan: Plan, size: Size) -> int:
    """Stored images of a distilled set."""
    return plan.settings.ipc * size.shape.classes


def decoded_images(plan: Plan, size: Size, entry: str) -> int:
    """Images of a distilled set as networks see them: of every stored one, all its tiles."""
    return plan.images_per_class(entry) * size.shape.classes


def _teachers(plan: Plan, size: Size) -> Iterator[Work]:
    for name, pool in pools(plan).items():
        told = plan.pool(name)
        rates = 2 if pool.rho else 1
        passes = pool.n * pool.epochs * rates * _pass(size.train, pool.batch)
        jobs = pool.groups
        if isinstance(pool, OrderedTraining):
            judges = jobs * pool.curriculum.networks
            passes += judges * pool.curriculum.epochs * _pass(size.train, pool.batch)
        passes += pool.n * _judged(size.test)
        yield Work.of("teachers", _cost(told.network, size.shape), passes, jobs)


def _distillation(plan: Plan, size: Size, entry: str) -> Iterator[Work]:
    passes, told = _passes(plan, size, entry), plan.distill(entry)
    if passes:
        network = told.network or plan.pool(plan.distill_pool(entry) or "teachers").network
        shards = plan.settings.distill.shards
        yield Work.of("distill", _cost(network, size.shape), shards * passes, shards)


def _passes(plan: Plan, size: Size, entry: str) -> Passes | None:
    """The work of one shard of `entry`."""
    told = plan.distill(entry)
    method = methods.build(told)
    images = decoded_images(plan, size, entry) // plan.settings.distill.shards
    rounds = 0 if told.rounds is None else told.rounds + 1
    extent = Extent(images, size.shape.classes, size.train, rounds)
    if not isinstance(method, Method):
        return method.passes(extent)
    if not rounds:
        return Passes()
    found = method.passes(extent)
    return found and rounds * found


def _evaluation(plan: Plan, size: Size) -> Iterator[Work]:
    for network, protocols in plan.protocols.items():
        told = plan.evaluate(network)
        cost = _cost(told.network, size.shape)
        for entry in plan.entries:
            images = decoded_images(plan, size, entry)
            batch = told.batch or plan.merge(entry).recipe.batch
            offline = [protocol for protocol in protocols if protocol != "kd"]
            trained = (told.networks + len(told.rates)) * (told.epochs + 1) * len(offline)
            passes = trained * _pass(images, batch)
            passes += len(offline) * len(told.rates) * _judged(min(REAL, size.train))
            passes += len(protocols) * told.networks * _judged(size.test)
            yield Work.of("evaluate", cost, passes)
            if told.kd:
                batch = told.kd.batch_for(plan.settings.ipc)
                online = told.networks * told.kd.epochs
                yield Work.of("evaluate", cost, online * _pass(images, batch))
                teacher = _cost(plan.pool("teachers").network, size.shape)
                labels = Passes(FORWARD * online * images, online * math.ceil(images / batch))
                yield Work.of("evaluate", teacher, labels)


def _ceiling(plan: Plan, size: Size) -> Iterator[Work]:
    for network in plan.settings.evaluate.ceiling.architectures:
        told = plan.ceiling(network)
        training = told.training
        passes = training.epochs * (2 if training.rho else 1) * _pass(size.train, training.batch)
        passes = told.networks * (passes + _judged(size.test))
        yield Work.of("ceiling", _cost(told.network, size.shape), passes)


def _ranking(plan: Plan, size: Size) -> Iterator[Work]:
    if not plan.settings.nas.networks:
        return
    told = plan.nas_proxy()
    for entry in plan.entries:
        yield _ranked("nas_proxy", told, decoded_images(plan, size, entry), size)
    for images in short_sizes(plan):
        count = min(images * size.shape.classes, size.train)
        yield _ranked("nas_short", plan.nas_short(), count, size)
    if plan.settings.nas.reference.source == "train":
        yield _ranked("nas_reference", plan.nas_reference(), size.train, size)


def _ranked(stage: str, told: RankingSettings, images: int, size: Size) -> Work:
    training, count = told.training, told.ranked.networks * told.seeds
    passes = count * (training.epochs * _pass(images, training.batch) + _judged(size.test))
    return Work.of(stage, _mean_cost(told.ranked, told.seed, size.shape), passes)


def _pass(images: int, batch: int) -> Passes:
    """One pass of a training."""
    return Passes(TRAINED * images, math.ceil(images / batch))


def _judged(images: int) -> Passes:
    return Passes(FORWARD * images, math.ceil(images / JUDGED))


@cache
def _cost(network: Network, shape: Shape) -> Cost:
    return cost_of(Spec.of(network, shape).network(CPU.device), shape)


@cache
def _mean_cost(ranked: RankedNetworks, seed: int, shape: Shape) -> Cost:
    """The mean of some of the networks that are ranked."""
    form = {"stem": ranked.stem, "cells": ranked.cells, "norm": ranked.norm}
    some = nasbench201.sample(min(SAMPLED, ranked.networks), seed)
    costs = [
        cost_of(FlatNet(nasbench201.network(nasbench201.parse(arch), shape, **form)), shape)
        for arch in some
    ]
    flops, values = (
        sum(getattr(c, key) for c in costs) / len(costs) for key in ("flops", "values")
    )
    return replace(costs[0], flops=flops, values=values)


def cost_of(net: FlatNet, shape: Shape) -> Cost:
    """What an image of `shape` costs in `net`, counted while one passes through it."""
    written = 0

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal written
        del module, inputs
        written += output.numel()

    leaves = [module for module in net.module.modules() if not any(module.children())]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    flops = forward_flops(net, shape.image, CPU)
    for hook in hooks:
        hook.remove()
    return Cost(flops, float(written), net.compile_from_s)
