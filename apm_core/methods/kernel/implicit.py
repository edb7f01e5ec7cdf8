"""Implicit gradients through a network that is linear in the parameters of its body.

Loo, Hasani, Lechner & Rus, "Dataset Distillation with Convexified Implicit Gradients", ICML 2023.
Around parameters theta a network is replaced by its tangent: with H the features of the images and
J the Jacobian of the logits in all parameters but the kernel of the head, its predictions are
J phi + H W. The head W is solved for by ridge regression, the tangent parameters phi are trained.

With G = H H^T + lambda I, R = Y - J phi and A = G^-1 R, the loss of the paper's inner problem,
(||R - H H^T A||^2 + lambda tr(A^T H H^T A) + lambda ||phi||^2) / 2, is lambda times

    (tr(R^T G^-1 R) + ||phi||^2) / 2,

whose gradient is phi - J^T A and whose Hessian is I + J^T G^-1 J. That form is used here; the
factor changes neither the solution nor the implicit gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor, nn

from apm_core.methods.kernel import ridge
from apm_core.nets.flat import FlatNet
from apm_core.training.optimizers import Moments, adam_


class WithFeatures(nn.Module):
    """A network that returns its features (N, D) beside its logits (N, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) to features and logits."""
        features = self.network.embed(x)
        return features, self.network.classifier(features)


class Tangent:
    """The network in `net` as it sees `images` (N, C, H, W), linear in its parameters.

    Tangent parameters are vectors (P,), zero at the kernel of the head. Both products with the
    Jacobian take backward passes alone, through one forward pass that this object holds on to:
    J phi is the derivative of J^T w in w. They are differentiable in the images where gradients are
    enabled.

    Attributes: features (N, D); free (P,), 0 at the kernel of the head and 1 elsewhere.
    """

    def __init__(self, net: FlatNet, images: Tensor) -> None:
        kernel = net.module.network.classifier.weight
        free = [torch.full_like(p, p is not kernel).flatten() for p in net.module.parameters()]
        self.free = torch.cat(free)
        with torch.enable_grad():
            self._theta = net.vector.detach().requires_grad_()
            self.features, self._logits = net.at(self._theta, images)

    @cached_property
    def _linear(self) -> tuple[Tensor, Tensor]:
        """J^T w (P,) and its leaf w (N, C)."""
        with torch.enable_grad():
            weights = torch.zeros_like(self._logits).requires_grad_()
            return self._gradient(self._logits, self._theta, weights, graph=True), weights

    def push(self, phi: Tensor) -> Tensor:
        """J phi (N, C)."""
        return self._gradient(*self._linear, phi * self.free, graph=torch.is_grad_enabled())

    def pull(self, v: Tensor) -> Tensor:
        """J^T v (P,), for v (N, C)."""
        return self._gradient(self._logits, self._theta, v, graph=False) * self.free

    @staticmethod
    def _gradient(of: Tensor, by: Tensor, weights: Tensor, *, graph: bool) -> Tensor:
        return torch.autograd.grad(of, by, weights, retain_graph=True, create_graph=graph)[0]


class Outcome(Enum):
    """How a loss went over some steps of its descent."""

    FELL = "fell"  # in every step
    BETWEEN = "between"  # rose in a step, and ended at its start or below
    DIVERGED = "diverged"  # ended above its start, or not finite

    @classmethod
    def of(cls, losses: Tensor) -> "Outcome":
        """That of the losses (steps + 1,) from the start to the end."""
        if bool((losses.diff() < 0).all()):
            return cls.FELL
        return cls.BETWEEN if bool(losses[-1] <= losses[0]) else cls.DIVERGED


@dataclass(frozen=True)
class Descent:
    """Where some steps of Adam ended, and how they went."""

    solution: Tensor  # (P,)
    outcome: Outcome


class InnerProblem:
    """The inner problem of one network on its view of the images, and targets (N, C).

    `lam` is the lambda of the ridge regression. Raises ConfigError, naming its `key`, when its
    system is singular.
    """

    def __init__(self, view: Tangent, targets: Tensor, lam: float, key: str) -> None:
        self.view, self.targets = view, targets.detach()
        self.factor = ridge.factor(view.features.detach(), lam, key)

    @torch.no_grad()
    def slope(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """The loss at `phi` (P,), 0-d, and its gradient (P,)."""
        rest = self.targets - self.view.push(phi)
        solution = self._solve(rest)
        loss = 0.5 * ((rest * solution).sum() + phi.square().sum())
        return loss, phi - self.view.pull(solution)

    @torch.no_grad()
    def curvature(self, q: Tensor) -> Tensor:
        """The Hessian times `q` (P,)."""
        return q + self.view.pull(self._solve(self.view.push(q)))

    def train(self, steps: int, rate: float) -> Descent:
        """Minimise the loss from phi = 0."""
        return self._adam(steps, rate, self.slope)

    def divide(self, g: Tensor, steps: int, rate: float) -> Descent:
        """Solve Hessian q = `g` (P,) by minimising q^T Hessian q / 2 - g^T q from q = 0.

        In units of the root mean square of `g`, so that one rate serves gradients of all sizes.
        """
        scale = g.norm() / float(self.view.free.sum()) ** 0.5
        unit = g / scale

        def slope(q: Tensor) -> tuple[Tensor, Tensor]:
            product = self.curvature(q)
            return (0.5 * product - unit) @ q, product - unit

        descent = self._adam(steps, rate, slope)
        return Descent(descent.solution * scale, descent.outcome)

    def _adam(
        self, steps: int, rate: float, slope: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> Descent:
        point = torch.zeros_like(self.view.free)
        moments, losses = Moments.at_rest(point), []
        for _ in range(steps):
            loss, gradient = slope(point)
            losses.append(loss)
            adam_(point, gradient, moments, rate)
        losses.append(slope(point)[0])
        return Descent(point, Outcome.of(torch.stack(losses)))

    def _solve(self, rest: Tensor) -> Tensor:
        return torch.cholesky_solve(rest.double(), self.factor).to(rest.dtype)


def regress(
    view: Tangent, phi: Tensor, targets: Tensor, lam: float, key: str
) -> tuple[Tensor, Tensor]:
    """A (N, C) and the head W = H^T A (D, C) at the tangent parameters `phi` (P,), differentiable
    in phi, targets and the images of the view.
    """
    rest = targets - view.push(phi)
    factor = ridge.factor(view.features, lam, key)
    solution = torch.cholesky_solve(rest.double(), factor).to(rest.dtype)
    return solution, view.features.T @ solution


def implicit_part(view: Tangent, q: Tensor, solution: Tensor) -> Tensor:
    """A number whose gradient in images and targets, through the view and A (`solution`) at fixed
    phi and `q`, is the implicit gradient: that of -q^T (gradient of the inner loss).
    """
    return (view.push(q) * solution).sum()
