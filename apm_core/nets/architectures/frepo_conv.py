"""The convolutional network of FRePo (Zhou et al., NeurIPS 2022) and RCIG (Loo et al., ICML 2023).

Blocks of 3x3 convolution, ReLU and 2x2 average pooling whose width doubles from block to block.
FRePo distils with batch norm before every convolution but the first and trains on the result
without any norm; RCIG uses none at all.
"""

import math

from torch import Tensor, nn

from apm_core.nets.architectures.convnet import default_depth
from apm_core.nets.base import MeanPool2d, Shape

WIDTH = 128
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut off at two standard deviations


class FRePoConv(nn.Module):
    """Widths 128, 256, 512, ...; the last map is 4x4 to 7x7, or 3x3 at 28 px.

    Convolutions and the head start as in the published code: normal weights, cut off at two
    standard deviations, of variance 1 / fan-in, and biases of zero.

    Args:
        batch_norm: normalise before the convolutions of all blocks but the first.
    """

    compile_from_s = 20.0  # as the ConvNet

    def __init__(self, shape: Shape, *, batch_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, side = shape.channels, shape.resolution
        for block in range(default_depth(shape.resolution)):
            inputs, width, side = width, WIDTH * 2**block, side // 2
            if block and batch_norm:
                # a tenth of the old value stays: flax calls this momentum 0.1
                layers.append(nn.BatchNorm2d(inputs, eps=1e-5, momentum=0.9))
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), MeanPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * side**2, shape.classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                lecun_normal(layer)

    @staticmethod
    def why_not(shape: Shape) -> str | None:
        """Why the depth does not fit `shape`, or None."""
        if shape.resolution >= 2:
            return None
        return f"it needs at least 2 pixels per side, got {shape.resolution}"

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to the features (N, width * s^2) of the head."""
        return self.features(x).flatten(1)  # (N, width, s, s) -> (N, width * s * s)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to logits (N, classes)."""
        return self.classifier(self.embed(x))


def lecun_normal(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw the weights of `layer` as flax does (LeCun normal), and set its biases to zero."""
    std = math.sqrt(1 / layer.weight[0].numel()) / TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)


NETWORK = FRePoConv
