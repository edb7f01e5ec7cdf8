"""Does the fast path train as the plain one? Compiled, captured, in each precision of the device.

Two networks, one after another in the same memory, from starts of their own; batches of full size
and a rest. What is compared is the movement of the parameters, as a norm relative to that of plain
float32. In bf16 it may be `TIMES` as far away as plain bf16 is, which rounds as much, and `LEAST`
more; no tolerance is near 1, the difference of a network that has not moved. Then the first network
is trained again: it must go the same way. With dropout that is all that is compared, because the
masks of the two paths differ; other masks would lead more than 1 away.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apm_core.nets import nasbench201
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.training import augment
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup
from benchmarks.workload import CIFAR10, examples, spec_of

NETWORKS = 2
LEAST, TIMES, MOST = 0.05, 2.0, 0.9
SAME_MASKS = 0.5
CELL = "|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
ALL = "_".join(augment.OPERATIONS)


@dataclass(frozen=True)
class Size:
    """How much work a case is."""

    width: int
    batch: int
    rest: int
    passes: int = 3


FULL, TINY = Size(width=128, batch=250, rest=70), Size(width=4, batch=8, rest=3, passes=1)


@dataclass(frozen=True)
class Case:
    """One way to train: a network and how its recipe differs from SGD with L1."""

    build: Callable[[], nn.Module]
    changes: dict[str, Any] = field(default_factory=dict)
    dropout: bool = False


def cases(size: Size) -> dict[str, Case]:
    """Every case by name."""
    convnet = spec_of(size.width).build
    resnet = Spec("resnet18", CIFAR10, width=size.width // 2).build
    cell = partial(
        nasbench201.network, nasbench201.parse(CELL), CIFAR10, stem=size.width // 4, cells=1
    )
    vit = Spec("vit", CIFAR10).build
    adam = {"optimizer": "adam", "lr": 1e-3, "loss": "half_mse", "schedule": "cosine"}
    groups = {name: Case(convnet, {"augment": name}) for name in augment.OPERATIONS}
    return groups | {
        "adam": Case(convnet, adam),
        "gsam": Case(convnet, {"rho": 0.01, "alpha": 0.3}),
        "batch norm": Case(cell, {"nesterov": True, "schedule": "cosine"}),
        "resnet18": Case(resnet, {"lr": 0.005}),
        "vit": Case(vit),
        "vit, dropout": Case(vit, dropout=True),
    }


def entries(setup: Setup) -> Entries:
    """An entry for each case and precision; on a GPU, with our own kernels too."""
    compute, size = setup.compute, TINY if setup.quick else FULL
    found, known = {}, cases(size)
    for precision in dict.fromkeys((compute.precision, "float32")):
        way = replace(compute, precision=precision)
        for name, case in known.items():
            found[f"{name}, {precision}"] = partial(compared, case, size, way)
        if compute.device.type == "cuda":
            own = partial(compared, known["crop"], size, replace(way, kernels=True))
            found[f"own kernels, {precision}"] = own
    return found


def compared(case: Case, size: Size, compute: Compute) -> Figures:
    """The differences of the networks from plain float32, their tolerances, and whether they hold.

    Raises ApmError, by way of `compute`, when the fast path is not the one that runs.
    """
    *fast, again = movements(case, size, compute, [*range(NETWORKS), 0])
    repeated = distance(again, fast[0])
    figures: Figures = {}
    if case.dropout:
        figures["again"] = {"difference": repeated, "tolerance": SAME_MASKS}
    else:
        plain = compute.exact()
        truth = movements(case, size, plain, range(NETWORKS))
        plain = replace(plain, precision=compute.precision)
        near = movements(case, size, plain, range(NETWORKS))
        for index, (found, rounded, exact) in enumerate(zip(fast, near, truth, strict=True)):
            tolerance = min(MOST, LEAST + TIMES * distance(rounded, exact))
            row = {"difference": distance(found, exact), "tolerance": tolerance}
            figures[f"network {index}"] = row
        figures["again"] = {**figures["network 0"], "difference": repeated}
    far = [name for name, row in figures.items() if not row["difference"] <= row["tolerance"]]
    if far:
        figures["error"] = {"type": "Difference", "message": f"too far away: {', '.join(far)}"}
    return figures


def movements(case: Case, size: Size, compute: Compute, networks: Iterable[int]) -> list[Tensor]:
    """The way (P,) of each of `networks`, trained one after another in the same memory."""
    with streams.seeded("smoke"):
        net = FlatNet(case.build().to(compute.device))
    if not case.dropout:
        for module in net.module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    common = {"lr": 0.02, "loss": "l1", "augment": ALL, "passes": size.passes, "batch": size.batch}
    recipe = Recipe(**common | case.changes)
    given = examples(2 * size.batch + size.rest, compute)
    trainer = Trainer(net, recipe, compute, given, networks=NETWORKS)
    found = []
    for index in networks:
        with streams.seeded("smoke", index):
            start = torch.nn.utils.parameters_to_vector(case.build().parameters()).detach()
        trainer.fit(start, "smoke", index)
        found.append(net.snapshot().cpu() - start)
    return found


def distance(found: Tensor, exact: Tensor) -> float:
    """The norm of the difference, relative to that of `exact`."""
    return float((found - exact).norm() / exact.norm())
