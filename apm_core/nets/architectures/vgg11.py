"""VGG11 (Simonyan & Zisserman, ICLR 2015) with instance norm and a single linear layer.

At 64 px the last map is 2x2 and the head reads all of it, 2048 features, as in the networks of APM
(Chen et al., 2023). There the head follows the number of classes; here it follows the map.
"""

from torch import Tensor, nn

from apm_core.nets.base import NormalisedConv2d, Shape, instance_norm, multiple_of

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # channels; each ends in max-pooling


class VGG11(nn.Module):
    """Reads any resolution that is a multiple of 32; the last map is (512, S/32, S/32)."""

    compile_from_s = 200.0  # 1.3 times as fast, for half a minute of compiling a batch size

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = shape.channels
        for stage in STAGES:
            for width in stage:
                layers.append(NormalisedConv2d(inputs, width, 3, padding=1))
                layers += [instance_norm(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * (shape.resolution // 32) ** 2, shape.classes)

    @staticmethod
    def why_not(shape: Shape) -> str | None:
        """Why `shape` does not fit, or None."""
        return multiple_of(32, shape.resolution)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to logits (N, classes)."""
        return self.classifier(self.features(x).flatten(1))  # (N, 512, s, s) -> (N, 512 * s * s)


NETWORK = VGG11
