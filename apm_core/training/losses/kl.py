"""The divergence from soft labels (distillation: Hinton et al., 2015)."""

import torch.nn.functional as F
from torch import Tensor


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, C) and targets (N, C), logits too, to the mean over images of
    KL(softmax(targets) || softmax(logits)), a scalar.
    """
    predicted, wanted = logits.log_softmax(dim=1), targets.log_softmax(dim=1)
    return F.kl_div(predicted, wanted, reduction="batchmean", log_target=True)
