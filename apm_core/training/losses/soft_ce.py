"""Cross-entropy against soft labels (DATM: Guo et al., ICLR 2024)."""

import torch.nn.functional as F
from torch import Tensor


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, C) and targets (N, C), logits too, to the mean over images of the cross-entropy
    against softmax(targets), a scalar.
    """
    return F.cross_entropy(logits, targets.softmax(dim=1))
