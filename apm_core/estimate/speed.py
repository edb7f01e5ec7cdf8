"""How fast a device is, measured by a few steps of training, and how long work takes on it."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from apm_core.data.examples import Examples
from apm_core.estimate.jobs import jobs
from apm_core.estimate.work import Work, cost_of
from apm_core.methods.passes import TRAINED
from apm_core.nets.base import Shape
from apm_core.nets.spec import Spec
from apm_core.runtime.device import PLAIN, Compute, choose, worth_compiling
from apm_core.settings.plan import Plan
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer

JOB_S = 8.0  # a process that starts, and reads what it needs
COMPILE_S = 30.0  # a job that compiles
FUSED = 0.4  # share of the time that writing values takes, where it is compiled; not measured
PROBE_S = 1.0  # of each network of a probe
PASS_STEPS = 6  # of a pass of a probe: steps draw augmentations of different cost
# a network that waits for memory, one that multiplies, and one that does nothing but start
PROBED = ((32, None, 32), (128, None, 8), (4, 1, 2))  # width, depth, batch
COMPILED = (128, 64)  # width and batch of the network that is compiled
SHAPE = Shape(3, 32, 10)
BUSY = 0.5  # of the cores with other work, from which figures are far from those of an idle machine


@dataclass(frozen=True)
class Speed:
    """The time that parts of an uncompiled step take on a device, and what compiling leaves."""

    device: str  # "cpu" or "cuda"
    flop_s: float
    value_s: float
    step_s: float
    fused: float = FUSED  # of value_s

    def compiles(self, work: Work) -> bool:
        """Whether the jobs of `work` will be compiled."""
        flops, steps = work.flops / work.jobs, work.steps / work.jobs
        return worth_compiling(self.device, flops, steps, work.compile_from_s)

    def seconds(self, work: Work) -> float:
        """Of `work` without the start of its jobs, compiled where the jobs will be."""
        compiled = self.compiles(work)
        values = work.values * self.value_s * (self.fused if compiled else 1.0)
        own = work.flops * self.flop_s + values + work.steps * self.step_s
        return own + compiled * work.jobs * COMPILE_S

    def stages(self, works: Iterable[Work]) -> dict[str, float]:
        """Seconds of each stage, one job after the other."""
        found: dict[str, float] = {}
        for work in works:
            found[work.stage] = found.get(work.stage, 0.0) + self.seconds(work)
        return found


def expected(speed: Speed, plan: Plan, work: Iterable[Work]) -> dict[str, float]:
    """Seconds of each stage of the run `plan`, which is `work`, and of the start of its jobs."""
    return speed.stages(work) | {"start of jobs": JOB_S * sum(jobs(plan).values())}


def told(seconds: float) -> str:
    """A time in two digits, or in whole days."""
    units = {"d": 86400, "h": 3600, "min": 60}
    unit = next((unit for unit, length in units.items() if seconds >= 1.5 * length), "s")
    count = seconds / units.get(unit, 1)
    return f"{count:,.0f} {unit}" if count >= 99.5 else f"{count:.2g} {unit}"


def reckoned(device: str) -> Speed:
    """The speed of a kind of device as the library has it, not measured."""
    plain = PLAIN[device]
    return Speed(device, 1 / plain.flops, plain.value_s, plain.step_s)


def measured(shape: Shape = SHAPE, compute: Compute | None = None) -> Speed:
    """The speed of this machine's CPU for images of `shape`, with as many threads as torch has.

    Three networks are trained for a moment; of their three times follow those of an operation, of a
    value and of a step, none of them negative.
    """
    compute = compute or choose("cpu", compile="off")
    rows, times = [], []
    for width, depth, usual in PROBED:
        batch = max(1, round(usual * (SHAPE.resolution / shape.resolution) ** 2))
        spec = Spec("convnet", shape, width, depth)
        cost = cost_of(spec.network(compute.device), shape)
        rows.append([TRAINED * batch * cost.flops, TRAINED * batch * cost.values, 1.0])
        times.append(step_seconds(spec, batch, compute))
    scale = np.array(times)[:, None]  # relative errors count
    found = _not_negative(np.array(rows) / scale, np.ones(len(times)))
    return Speed("cpu", *found)


def fused_share(plain: Speed, compute: Compute | None = None) -> float:
    """The share of the time of values, between 0 and 1, that is left of it in a compiled step on
    this machine's CPU, whose uncompiled speed is `plain`.

    It compiles a network, for half a minute, and trains it for a moment.
    """
    width, batch = COMPILED
    compute = replace(compute or choose("cpu"), compile="on")
    spec = Spec("convnet", SHAPE, width)
    cost = cost_of(spec.network(compute.device), SHAPE)
    rest = step_seconds(spec, batch, compute) - plain.step_s
    rest -= TRAINED * batch * cost.flops * plain.flop_s
    whole = TRAINED * batch * cost.values * plain.value_s
    return min(1.0, max(0.0, rest / whole)) if whole else FUSED


def step_seconds(spec: Spec, batch: int, compute: Compute, seconds: float = PROBE_S) -> float:
    """Of a training step with augmentation: the mean over passes that take `seconds` together,
    after one that warms up.
    """
    count = batch * PASS_STEPS
    examples = Examples(
        torch.zeros(count, *spec.shape.image, device=compute.device),
        torch.zeros(count, dtype=torch.int64, device=compute.device),
    )
    net, recipe = spec.network(compute.device), Recipe(passes=1, lr=0.01, batch=batch)
    trainer = Trainer(net, recipe, compute, examples, networks=1)
    trainer.begin(spec.fresh(0, "probe"))
    trainer.one_pass(0, recipe, None, "probe", 0)
    passes, started = 0, compute.clock()
    while passes < 2 or compute.clock() < started + seconds:
        passes += 1
        trainer.one_pass(0, recipe, None, "probe", passes)
    return (compute.clock() - started) / (passes * PASS_STEPS)


def busy() -> str | None:
    """A sentence on other programs that keep the cores busy, to be asked before anything is
    measured; None where they hardly do, or where the system does not count them.
    """
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= BUSY * cores:
        return None
    return (
        f"other programs keep {load:.1f} of {cores} cores busy: what is measured now can be many"
        " times slower than on an idle machine; measure again when they are done"
    )


def _not_negative(rows: np.ndarray, times: np.ndarray) -> list[float]:
    """The solution of least squares with no part below zero."""
    best, error = np.zeros(rows.shape[1]), math.inf
    for kept in range(1, 2 ** rows.shape[1]):
        columns = [i for i in range(rows.shape[1]) if kept >> i & 1]
        own = np.linalg.lstsq(rows[:, columns], times, rcond=None)[0]
        rest = float(np.square(rows[:, columns] @ own - times).sum())
        if own.min() >= 0 and rest < error:
            best, error = np.zeros(rows.shape[1]), rest
            best[columns] = own
    return best.tolist()
