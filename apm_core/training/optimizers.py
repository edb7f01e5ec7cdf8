"""Adaptive optimizers on plain tensors: Adam, and its relatives LAMB and AdaBelief.

Each works in place on a tensor and its moments, which the caller keeps, saves and restores. Numbers
that change from step to step are tensors too, so that nothing waits for the device and a step can
be captured as a CUDA graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999
ADAM_EPS, LAMB_EPS, BELIEF_EPS = 1e-8, 1e-6, 1e-16


@dataclass(frozen=True)
class Moments:
    """What an optimizer remembers of one tensor."""

    first: Tensor  # as the tensor: decaying mean of the gradients
    second: Tensor  # as the tensor: of their squares, or of their squared surprises
    count: Tensor  # 0-d float64: steps done, exact in the powers of the betas

    @classmethod
    def at_rest(cls, tensor: Tensor) -> "Moments":
        """The moments before the first step."""
        count = torch.zeros((), dtype=torch.float64, device=tensor.device)
        return cls(torch.zeros_like(tensor), torch.zeros_like(tensor), count)

    def reset(self) -> None:
        """Forget all, in place."""
        for tensor in (self.first, self.second, self.count):
            tensor.zero_()


def adam_(
    tensor: Tensor, gradient: Tensor, moments: Moments, rate: Tensor | float, beta1: float = BETA1
) -> None:
    """One step of Adam (Kingma & Ba, ICLR 2015, Algorithm 1) on `tensor`, in place."""
    tensor.sub_(_direction(gradient, moments, beta1, ADAM_EPS).mul_(rate))


def lamb_(tensor: Tensor, gradient: Tensor, moments: Moments, rate: Tensor | float) -> None:
    """One step of LAMB without weight decay (You et al., ICLR 2020, Algorithm 2), in place.

    Adam's direction, scaled to the norm of the tensor: a step changes it by the share `rate`. Where
    either norm is zero the scale is 1.
    """
    direction = _direction(gradient, moments, BETA1, LAMB_EPS)
    trust = tensor.norm() / direction.norm()
    trust = torch.where(torch.isfinite(trust) & (trust > 0), trust, torch.ones_like(trust))
    tensor.sub_(direction.mul_(trust).mul_(rate))


def adabelief_(tensor: Tensor, gradient: Tensor, moments: Moments, rate: Tensor | float) -> None:
    """One step of AdaBelief (Zhuang et al., NeurIPS 2020, Algorithm 2), in place.

    The second moment is that of the gradient's distance from its mean.
    """
    moments.count.add_(1)
    moments.first.lerp_(gradient, 1 - BETA1)
    surprise = gradient - moments.first
    moments.second.mul_(BETA2).addcmul_(surprise, surprise, value=1 - BETA2).add_(BELIEF_EPS)
    tensor.sub_(_corrected(moments, BETA1, BELIEF_EPS).mul_(rate))


def _direction(gradient: Tensor, moments: Moments, beta1: float, eps: float) -> Tensor:
    """Take the gradient into the moments; returns Adam's step at rate 1, a new tensor."""
    moments.count.add_(1)
    moments.first.lerp_(gradient, 1 - beta1)
    moments.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    return _corrected(moments, beta1, eps)


def _corrected(moments: Moments, beta1: float, eps: float) -> Tensor:
    """First moment over the root of the second, both without the pull of their start at zero."""
    scale1 = 1 - torch.pow(beta1, moments.count)
    scale2 = (1 - torch.pow(BETA2, moments.count)).sqrt()
    return (moments.first / scale1).div_((moments.second.sqrt() / scale2).add_(eps))
