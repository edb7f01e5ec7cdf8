"""The distance of logits of APM (Chen et al., 2023)."""

from torch import Tensor


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, C) and targets (N, C) to their mean absolute difference over images and classes, a
    scalar.
    """
    return (logits - targets).abs().mean()
