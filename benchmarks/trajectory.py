"""The gradient of a trajectory: full unrolling, TESLA's approximation, the exact recursion.

    python -m benchmarks.trajectory

Error and cosine of the image gradient are against full unrolling, in float64; time and memory in
float32. ConvNet of width 16, 20 images of 32x32, from random parameters towards others that plain
training reached.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.methods.matching.trajectory import Step, Trajectory
from apm_core.nets.flat import FlatNet
from apm_core.runtime import memory, streams
from apm_core.runtime.device import Compute, choose
from apm_core.training import augment
from benchmarks.measure import RESULTS, machine, parser_of, show, write
from benchmarks.workload import STUDENT, spec_of

LENGTHS = (10, 20, 40, 80)
IMAGES, RATE = 20, 0.05


def setting(steps: int, compute: Compute, kind: torch.dtype) -> tuple[Any, ...]:
    """A network, and the arguments of `Trajectory.match`: the target is where the same steps on
    other images end.
    """
    spec, device, random = spec_of(16), compute.device, streams.generator("trajectory", steps)
    net = FlatNet(spec.build().to(device, kind))
    images, others = torch.randn(2, IMAGES, *spec.shape.image, generator=random).to(device, kind)
    classes = (torch.arange(IMAGES) % spec.shape.classes).to(device)
    plan = []
    for _ in range(steps):
        drawn = augment.draw(STUDENT.augment, IMAGES, random)
        numbers = drawn.uniform.to(device, kind)
        plan.append(Step(torch.arange(IMAGES, device=device), augment.Draw(drawn.group, numbers)))
    start = theta = spec.fresh("start").to(device, kind)
    for step in plan:
        leaf = theta.requires_grad_()
        loss = F.cross_entropy(net.at(leaf, augment.augment(others, step.drawn)), classes)
        theta = (leaf - RATE * torch.autograd.grad(loss, leaf)[0]).detach()
    rate = torch.tensor(RATE, device=device, dtype=kind)
    return net, start.detach(), theta, plan, images, classes, rate


def unrolled(net: FlatNet, *arguments: Any) -> Tensor:  # noqa: ANN401 - those of `Trajectory.match`
    """The image gradient (N, C, H, W) by the graph of all steps at once."""
    start, target, steps, images, classes, rate = arguments
    leaf, theta = images.clone().requires_grad_(), start.clone().requires_grad_()
    for step in steps:
        value = F.cross_entropy(net.at(theta, augment.augment(leaf, step.drawn)), classes)
        theta = theta - rate * torch.autograd.grad(value, theta, create_graph=True)[0]
    distance = (start - target).square().sum()
    return torch.autograd.grad((theta - target).square().sum() / distance, leaf)[0]


def ways(steps: int, compute: Compute, kind: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """The ways to compute the image gradient through `steps` steps, by name."""
    net, *arguments = setting(steps, compute, kind)
    compiled = replace(compute, compile="on")

    def recursive(compute: Compute, *, exact: bool) -> Callable[[], Tensor]:
        training = Trajectory(net, F.cross_entropy, compute, exact=exact)
        return lambda: training.match(*arguments).images

    return {
        "unrolled": lambda: unrolled(net, *arguments),
        "tesla": recursive(compute, exact=False),
        "tesla, compiled": recursive(compiled, exact=False),
        "exact": recursive(compute, exact=True),
        "exact, compiled": recursive(compiled, exact=True),
    }


def measured(steps: int, compute: Compute) -> list[dict[str, Any]]:
    """Measure each way: a row each."""
    doubles, rows = ways(steps, compute, torch.float64), []
    truth = doubles["unrolled"]()
    for name, way in ways(steps, compute, torch.float32).items():
        gradient = doubles[name]()
        way()
        memory.reset_peak(compute)
        before, started = memory.peak(compute), compute.clock()
        way()
        seconds, peak = compute.clock() - started, memory.peak(compute) - before
        rows.append(
            {
                "way": name,
                "steps": steps,
                "error": float((gradient - truth).norm() / truth.norm()),
                "cosine": float(F.cosine_similarity(gradient.flatten(), truth.flatten(), dim=0)),
                "s": seconds,
                "MB": peak / 1e6,
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser_of(__doc__).parse_args()
    compute = choose("auto", "float32", "off", print)
    rows = [row for steps in LENGTHS for row in measured(steps, compute)]
    show(f"gradient of {IMAGES} images through N steps", rows)
    write(RESULTS / f"trajectory_{compute.device.type}.json", {**machine(), "rows": rows})


if __name__ == "__main__":
    main()
