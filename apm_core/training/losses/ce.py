"""Cross-entropy against class indices."""

import torch.nn.functional as F
from torch import Tensor


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, C) and class indices (N,) to the mean over images, a scalar."""
    return F.cross_entropy(logits, targets)
