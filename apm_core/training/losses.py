"""The losses of a training, by name."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def l1(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of logits over images and classes (APM's distance)."""
    return (logits - targets).abs().mean()


def soft_ce(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against softmax(targets), mean over images (DATM)."""
    return F.cross_entropy(logits, targets.softmax(dim=1))


def half_mse(logits: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error summed over classes, mean over images (FRePo)."""
    return 0.5 * (logits - targets).square().sum(dim=1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": F.cross_entropy,  # targets: class indices (N,)
    "soft_ce": soft_ce,  # targets: logits (N, C)
    "l1": l1,
    "half_mse": half_mse,
}
