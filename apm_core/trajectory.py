"""Differentiating through training: the gradient of a loss at the end of a trajectory in the
images, labels and learning rate it was trained on, in memory that does not grow with its length.

Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022 (MTT),
define the loss; Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory",
ICML 2023 (TESLA), compute its gradient step by step but leave out how a step changes those after
it. Here the recursion is run backwards through all steps, one double backward each, which is exact;
leaving it out is a switch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apm_core import augment, rng
from apm_core.nets.flat import FlatNet

Loss = Callable[[Tensor, Tensor], Tensor]
End = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """One step of the inner training: which images, under which augmentation."""

    index: Tensor  # (B,) int64
    drawn: augment.Draw | None = None


@dataclass(frozen=True)
class Inner:
    """The training of a network on the distilled images."""

    steps: int  # N
    batch: int | None  # None: all images
    strategy: str  # augmentation

    def draw(self, count: int, device: torch.device, *stream: rng.Path) -> list[Step]:
        """Batches of the steps: permutations of the `count` images, one after another."""
        random = rng.generator(*stream, "inner")
        waiting: list[Tensor] = []
        steps = []
        for _ in range(self.steps):
            if not waiting:
                waiting = list(torch.randperm(count, generator=random).split(self.batch or count))
            batch = waiting.pop(0).to(device)
            drawn = augment.draw(self.strategy, len(batch), random)
            steps.append(Step(batch, drawn and drawn.to(device)))
        return steps


@dataclass(frozen=True)
class Match:
    """The loss at the end of a training, and its gradients in what it was done with."""

    loss: Tensor  # 0-d
    images: Tensor  # as the images
    targets: Tensor | None  # as the labels, where they are learned
    rate: Tensor  # 0-d


def match(
    net: FlatNet,
    start: Tensor,
    target: Tensor,
    steps: Sequence[Step],
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    loss: Loss,
    *,
    exact: bool = True,
    learn_targets: bool = False,
) -> Match:
    """`through_training` to the loss ||theta_N - target||^2 / ||start - target||^2, where `start`
    and `target` (P,) are on an expert's course.
    """
    apart = (start - target).square().sum()

    def end(theta: Tensor) -> tuple[Tensor, Tensor]:
        return (theta - target).square().sum() / apart, 2 * (theta - target) / apart

    given = (net, start, end, steps, images, targets, rate, loss)
    return through_training(*given, exact=exact, learn_targets=learn_targets)


def through_training(
    net: FlatNet,
    start: Tensor,
    end: End,
    steps: Sequence[Step],
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    loss: Loss,
    *,
    exact: bool = True,
    learn_targets: bool = False,
) -> Match:
    """Train from `start` (P,) by plain SGD with learning rate `rate` (0-d) over `steps`, and
    differentiate what `end` says of theta_N (P,): its value, and its gradient v_N there.

    With g_i the gradient of step i at theta_i, backwards from i = N-1: the images get
    -rate d(v.g_i)/dx, the labels -rate d(v.g_i)/dy, the rate -v.g_i, and
    v_i = v_{i+1} - rate d(v.g_i)/dtheta. `exact=False` keeps v as it is (TESLA).

    Memory: N parameter vectors, and the double backward of one step.
    """
    thetas = trained(net, start, steps, images, targets, rate, loss)
    value, v = end(thetas[-1])
    by_images, by_rate = torch.zeros_like(images), torch.zeros_like(rate)
    by_targets = torch.zeros_like(targets) if learn_targets else None
    for step, theta in zip(reversed(steps), reversed(thetas[:-1]), strict=True):
        leaves, gradient = _gradient(
            net, theta, step, images, targets, loss, graph=True, learn_targets=learn_targets
        )
        inner = v @ gradient
        wanted = [leaves.images]
        wanted += [leaves.targets] if learn_targets else []
        wanted += [leaves.theta] if exact else []
        found = list(torch.autograd.grad(inner, wanted))
        by_rate -= inner.detach()
        by_images.index_add_(0, step.index, found.pop(0), alpha=-float(rate))
        if by_targets is not None:
            by_targets.index_add_(0, step.index, found.pop(0), alpha=-float(rate))
        if exact:
            v = v - rate * found.pop(0)
    return Match(value, by_images, by_targets, by_rate)


def trained(
    net: FlatNet,
    start: Tensor,
    steps: Sequence[Step],
    images: Tensor,
    targets: Tensor,
    rate: Tensor,
    loss: Loss,
) -> list[Tensor]:
    """The parameters (P,) at the start and after each of the steps."""
    thetas = [start]
    for step in steps:
        _, gradient = _gradient(net, thetas[-1], step, images, targets, loss, graph=False)
        thetas.append(thetas[-1] - rate * gradient)
    return thetas


@dataclass(frozen=True)
class _Leaves:
    theta: Tensor
    images: Tensor
    targets: Tensor


def _gradient(
    net: FlatNet,
    theta: Tensor,
    step: Step,
    images: Tensor,
    targets: Tensor,
    loss: Loss,
    *,
    graph: bool,
    learn_targets: bool = False,
) -> tuple[_Leaves, Tensor]:
    """The gradient (P,) of one batch at `theta`; with `graph`, differentiable in the leaves."""
    theta = theta.detach().requires_grad_()
    batch = images[step.index].detach().requires_grad_(graph)
    labels = targets[step.index].detach()
    if learn_targets:
        labels.requires_grad_(graph)
    value = loss(net.at(theta, augment.augment(batch, step.drawn)), labels)
    gradient = torch.autograd.grad(value, theta, create_graph=graph)[0]
    return _Leaves(theta, batch, labels), gradient
