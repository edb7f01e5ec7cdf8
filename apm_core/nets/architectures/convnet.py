"""The ConvNet on which dataset distillation is measured (Gidaris & Komodakis, CVPR 2018).

Used by DC (Zhao et al., ICLR 2021) and everything after it: d blocks of 3x3 convolution, instance
norm, ReLU and 2x2 average pooling, then one linear layer.
"""

import torch
from torch import Tensor, nn

from apm_core.errors import ConfigError
from apm_core.nets.base import (
    MeanPool2d,
    NormalisedConv2d,
    Shape,
    check_positive,
    instance_norm,
)

WIDTH = 128


def default_depth(resolution: int) -> int:
    """Blocks that leave a map of 4x4 to 7x7: 3 at 32 px (and 28), 4 at 64, 5 at 128; at least 1."""
    return max(1, _padded(resolution).bit_length() - 3)


def _padded(resolution: int) -> int:
    return 32 if resolution == 28 else resolution  # MNIST sizes are padded, as in the literature


class ConvNet(nn.Module):
    """`depth` blocks of `width` channels; `depth` defaults to `default_depth(resolution)`.

    A side that 2^depth does not divide loses its last pixels to the pooling. Raises ConfigError
    when `width` or `depth` is not positive or when so many halvings leave no pixel.
    """

    kernels = False  # norm, ReLU and pooling by `apm_core.nets.kernels`
    # Compiled, what stands behind a convolution is one pass over memory: 2 to 4 times as fast, for
    # 4 to 12 s of compiling a batch size.
    compile_from_s = 20.0

    def __init__(self, shape: Shape, *, width: int = WIDTH, depth: int | None = None) -> None:
        super().__init__()
        depth = default_depth(shape.resolution) if depth is None else depth
        check_positive("width", width)
        check_positive("depth", depth)
        side = _padded(shape.resolution)
        if side >> depth == 0:
            raise ConfigError(
                f"depth={depth} halves {shape.resolution} px to nothing: "
                f"use at most {side.bit_length() - 1}"
            )
        layers: list[nn.Module] = []
        for block in range(depth):
            inputs = width if block else shape.channels
            padding = 3 if block == 0 and shape.resolution == 28 else 1  # 28 px become 32
            layers += [NormalisedConv2d(inputs, width, 3, padding=padding), instance_norm(width)]
            layers += [nn.ReLU(), MeanPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (side >> depth) ** 2, shape.classes)

    @staticmethod
    def why_not(shape: Shape) -> str | None:
        """Why the default depth does not fit `shape`, or None."""
        if shape.resolution >= 2:
            return None
        return f"it needs at least 2 pixels per side, got {shape.resolution}"

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to the features (N, width * (S / 2^depth)^2) of the head."""
        maps = self._features_by_kernels(x) if self.kernels else self.features(x)
        return maps.flatten(1)  # (N, width, s, s) -> (N, width * s * s)

    def _features_by_kernels(self, x: Tensor) -> Tensor:
        from apm_core.nets.kernels import norm_relu_pool, pays

        x = x.contiguous(memory_format=torch.channels_last)
        for at in range(0, len(self.features), 4):
            conv, norm, relu, pool = self.features[at : at + 4]
            x = conv(x)
            if pays(x):
                x = norm_relu_pool(x, norm.weight, norm.bias, norm.eps)
            else:
                x = pool(relu(norm(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to logits (N, classes)."""
        return self.classifier(self.embed(x))


NETWORK = ConvNet
