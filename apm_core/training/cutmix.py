"""CutMix: a part of each image is that of another.

Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
ICCV 2019, with Beta(1, 1), which is uniform; one square for a batch, as published. Targets are not
mixed: whoever labels the batch sees the mixed images.
"""

import torch
from torch import Tensor

NUMBERS = 3  # uniform numbers that a batch takes


def cutmix(images: Tensor, u: Tensor) -> Tensor:
    """Images (N, C, S, S), each with a square of the one before it in the batch; u: (3,) in [0, 1),
    the square's share of the area, and its centre. It is cut off at the border.
    """
    side = images.shape[-1]
    half = (u[0].sqrt() * side).long() // 2
    centre = (u[1:] * side).long()[:, None]  # (2, 1)
    at = torch.arange(side, device=images.device)
    inside = (at >= centre - half) & (at < centre + half)  # (2, S)
    # a batch is in random order, so its neighbour is as good a partner as one drawn for the image
    return torch.where(inside[0][:, None] & inside[1], images.roll(1, dims=0), images)
