"""ResNet18 (He et al., CVPR 2016) in its small-image form, with instance norm.

The stem is a 3x3 convolution of stride 1 without max-pool. At 64 px the 8x8 map is pooled by 4 and
the head reads the 2x2 rest, as in the networks of APM (Chen et al., 2023).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from apm_core.nets.base import MeanPool2d, Shape, check_positive, instance_norm, multiple_of

WIDTH = 64  # channels of the first stage, as published
STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))  # (widths, stride of the first of two blocks)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (N, inputs, S, S) -> (N, width, S/stride, S/stride).

    The shortcut is a 1x1 convolution with norm where the shape changes, else the identity.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = instance_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = instance_norm(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            projection = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, instance_norm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, S, S) to (N, width, S/stride, S/stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """Reads a resolution that is a multiple of 8, from 16 on; the last map is (8 width, S/8, S/8).

    The average pooling has a window of min(4, S/8) pixels; a rest that fills no window is dropped.
    Raises ConfigError when `width` is not positive.
    """

    compile_from_s = 150.0  # 1.4 to 1.7 times as fast, for half a minute of compiling a batch size

    def __init__(self, shape: Shape, width: int = WIDTH) -> None:
        super().__init__()
        check_positive("width", width)
        stem = nn.Conv2d(shape.channels, width, 3, padding=1, bias=False)
        layers: list[nn.Module] = [stem, instance_norm(width), nn.ReLU()]
        inputs = width
        for widths, stride in STAGES:
            channels = widths * width
            layers += [BasicBlock(inputs, channels, stride), BasicBlock(channels, channels, 1)]
            inputs = channels
        side = shape.resolution // 8
        window = min(4, side)
        self.features = nn.Sequential(*layers, MeanPool2d(window))
        self.classifier = nn.Linear(inputs * (side // window) ** 2, shape.classes)

    @staticmethod
    def why_not(shape: Shape) -> str | None:
        """Why `shape` does not fit, or None."""
        if shape.resolution == 8:
            return "its last map would be 1x1, where instance norm erases the image; 16 px is least"
        return multiple_of(8, shape.resolution)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to logits (N, classes)."""
        return self.classifier(self.features(x).flatten(1))  # (N, C, s, s) -> (N, C * s * s)


NETWORK = ResNet18
