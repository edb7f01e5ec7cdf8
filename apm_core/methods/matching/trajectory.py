"""Differentiating through training: the gradient of a loss at the end of a trajectory in the
images, labels and learning rate it was trained on, in memory that does not grow with its length.

Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022 (MTT),
define the loss; Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory",
ICML 2023 (TESLA), compute its gradient step by step but leave out how a step changes those after
it. Here the recursion is run backwards through all steps, one double backward each, which is exact;
leaving it out is a switch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel

from apm_core.methods.passes import TRAINED, TWICE, Passes
from apm_core.nets.base import stop_dropout
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.training import augment
from apm_core.training.inference import forward_flops

Loss = Callable[[Tensor, Tensor], Tensor]
End = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """One step of the inner training: which images, under which augmentation."""

    index: Tensor  # (B,) int64
    drawn: augment.Draw | None = None


@dataclass(frozen=True)
class InnerTraining:
    """The training of a network on the distilled images."""

    steps: int  # N
    batch: int | None  # None: all images
    strategy: str  # augmentation

    def passes(self, images: int, before: float, window: int) -> Passes:
        """Work of `before` steps on a set of `images`, and of `window` that are differentiated."""
        batch = min(self.batch or images, images)
        plain, both = Passes(TRAINED * batch, 1), Passes((TRAINED + TWICE) * batch, 2)
        return before * plain + window * both

    def draw(self, count: int, device: torch.device, *stream: streams.Key) -> list[Step]:
        """Batches of the steps: permutations of the `count` images, one after another."""
        random = streams.generator(*stream, "inner")
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
    """The loss at the end of a training, and its gradients in images, labels and rate."""

    loss: Tensor  # 0-d
    images: Tensor  # as the images
    targets: Tensor | None  # as the labels, where they are learned
    rate: Tensor  # 0-d
    end: Tensor  # (P,) parameters there


class Trajectory:
    """The training of a network on distilled images by plain SGD, and its derivatives.

    The two functions that a step consists of, the gradient of a batch and the derivatives of its
    product with a vector, are compiled where that pays. Dropout is off, because the way back
    repeats the steps.

    Args:
        net: the architecture; its parameters are neither read nor changed.
        loss: of logits (B, classes) and labels.
        exact: the gradient of full unrolling; else TESLA's.
        learn_targets: differentiate in the labels too.
        batch: shape (B, C, H, W) of a step's images, and
        steps: how many the whole job will take; they tell whether compiling pays.
    """

    def __init__(
        self,
        net: FlatNet,
        loss: Loss,
        compute: Compute,
        *,
        exact: bool = True,
        learn_targets: bool = False,
        batch: Sequence[int] = (0, 1, 1, 1),
        steps: int = 0,
    ) -> None:
        self.exact, self.learn_targets = exact, learn_targets
        net.module.train()
        stop_dropout(net.module)

        def value(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
            return loss(net.at(theta, images), targets)

        def gradient(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
            return grad(value)(theta, images, targets)

        def product(
            images: Tensor, theta: Tensor, targets: Tensor, v: Tensor
        ) -> tuple[tuple[Tensor, ...], Tensor]:
            """v.g, and its derivatives: in the images, with `exact` in the parameters, and with
            `learn_targets` in the labels.
            """

            def along(images: Tensor, theta: Tensor, targets: Tensor) -> Tensor:
                return v @ gradient(theta, images, targets)

            arguments = (0, *((1,) if exact else ()), *((2,) if learn_targets else ()))
            return grad_and_value(along, argnums=arguments)(images, theta, targets)

        count, *image = batch
        flops = forward_flops(net, image, compute) * count * steps if steps else 0.0
        work = {"steps": steps, "compile_from_s": net.compile_from_s}
        self._gradient = compute.compiled(gradient, flops=3.0 * flops, **work)
        self._product = compute.compiled(product, flops=9.0 * flops, **work)

    def course(
        self, start: Tensor, steps: Sequence[Step], images: Tensor, targets: Tensor, rate: Tensor
    ) -> Iterator[Tensor]:
        """Train, and yield the parameters (P,) at the start and after each of the steps."""
        theta = start
        yield theta
        for step in steps:
            batch = augment.augment(images[step.index], step.drawn)
            theta = theta - rate * self._gradient(theta, batch, targets[step.index])
            yield theta

    def differentiate(
        self,
        start: Tensor,
        end: End,
        steps: Sequence[Step],
        images: Tensor,
        targets: Tensor,
        rate: Tensor,
    ) -> Match:
        """Train from `start` (P,) with learning rate `rate` (0-d) over `steps`, and differentiate
        what `end` says of theta_N (P,): its value, and its gradient v_N there.

        With g_i the gradient of step i at theta_i, backwards from i = N-1: the images get
        -rate d(v.g_i)/dx, the labels -rate d(v.g_i)/dy, the rate -v.g_i, and
        v_i = v_{i+1} - rate d(v.g_i)/dtheta. Without `exact`, v stays as it is (TESLA).

        Memory: N parameter vectors, and the double backward of one step.
        """
        thetas = list(self.course(start, steps, images, targets, rate))
        value, v = end(thetas[-1])
        by_images, by_rate = torch.zeros_like(images), torch.zeros_like(rate)
        by_targets = torch.zeros_like(targets) if self.learn_targets else None
        for step, theta in zip(reversed(steps), reversed(thetas[:-1]), strict=True):
            leaf = images[step.index].requires_grad_()
            view = augment.augment(leaf, step.drawn)
            labels = targets[step.index]
            with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                (by_view, *others), inner = self._product(view.detach(), theta, labels, v)
            by_batch = torch.autograd.grad(view, leaf, by_view)[0] if step.drawn else by_view
            by_rate -= inner
            by_images.index_add_(0, step.index, by_batch, alpha=-float(rate))
            if self.exact:
                v = v - rate * others.pop(0)
            if by_targets is not None:
                by_targets.index_add_(0, step.index, others.pop(0), alpha=-float(rate))
        return Match(value, by_images, by_targets, by_rate, thetas[-1])

    def match(
        self,
        start: Tensor,
        target: Tensor,
        steps: Sequence[Step],
        images: Tensor,
        targets: Tensor,
        rate: Tensor,
        skip: int = 0,
    ) -> Match:
        """`differentiate` the loss ||theta_N - target||^2 / ||start - target||^2, where `start` and
        `target` (P,) are on an expert's course. Both norms leave out the first `skip` parameters.
        """
        distance = (start - target)[skip:].square().sum()

        def end(theta: Tensor) -> tuple[Tensor, Tensor]:
            difference = theta - target
            difference[:skip] = 0
            return difference[skip:].square().sum() / distance, 2 * difference / distance

        return self.differentiate(start, end, steps, images, targets, rate)
