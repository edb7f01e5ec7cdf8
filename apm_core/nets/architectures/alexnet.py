"""AlexNet for small images (Krizhevsky et al., NIPS 2012), as cut down by DC (Zhao et al., 2021).

Five convolutions without normalisation, three 2x2 max-pools, one linear layer. Its linear layer is
sized to the map, so 64 px work without the strided stem that other code bases add.
"""

from torch import Tensor, nn

from apm_core.nets.base import Shape, multiple_of


class AlexNet(nn.Module):
    """Reads any resolution that is a multiple of 8; the last map is (192, S/8, S/8)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape.channels, 128, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 192, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(192, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(192 * (shape.resolution // 8) ** 2, shape.classes)

    @staticmethod
    def why_not(shape: Shape) -> str | None:
        """Why `shape` does not fit, or None."""
        return multiple_of(8, shape.resolution)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to logits (N, classes)."""
        return self.classifier(self.features(x).flatten(1))  # (N, 192, s, s) -> (N, 192 * s * s)


NETWORK = AlexNet
