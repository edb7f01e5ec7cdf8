"""The shape of networks, checks of arguments, and the normalisation of the architectures."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm_core.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """The images a network reads, (N, channels, resolution, resolution), and its number of classes.

    Raises ConfigError when one of the three is not a positive integer.
    """

    channels: int
    resolution: int  # pixels per side; images are square
    classes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            check_positive(field.name, getattr(self, field.name))

    @classmethod
    def of(cls, images: Sequence[int], classes: int) -> Self:
        """The shape of networks for images of array shape (N, C, S, S)."""
        _, channels, resolution, _ = images
        return cls(channels=channels, resolution=resolution, classes=classes)

    @property
    def image(self) -> tuple[int, int, int]:
        """(C, S, S), one image."""
        return (self.channels, self.resolution, self.resolution)

    def __str__(self) -> str:
        side = self.resolution
        return f"{side}x{side} images with {self.channels} channels"


def check_positive(key: str, value: int) -> None:
    """Raise ConfigError, naming `key`, unless `value` is a positive integer (True is not one)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} must be a positive integer, got {value!r}")


def multiple_of(step: int, resolution: int) -> str | None:
    """Why an architecture that shrinks its maps by `step` cannot read `resolution`, or None."""
    if resolution % step == 0:
        return None
    return f"it needs a resolution that is a multiple of {step}, got {resolution}"


class NormalisedConv2d(nn.Conv2d):
    """A convolution with an instance norm behind it, which takes its bias away again.

    The bias stays a parameter, as published networks have it, but is neither added nor learned: its
    gradient is zero, and computing it would read the whole map once more.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of `x` (N, inputs, S, S) with the weights alone."""
        return self._conv_forward(x, self.weight, None)


class MeanPool2d(nn.Module):
    """Average pooling: (N, C, H, W) to (N, C, H // window, W // window); a rest is dropped.

    Equal to `nn.AvgPool2d(window)`, of which it is the form that is faster here: as it is in plain
    layers, as `mean_of_windows` in compiled ones.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the means of its windows."""
        if torch.compiler.is_compiling():
            return mean_of_windows(x, self.window)
        return F.avg_pool2d(x, self.window)


def mean_of_windows(x: Tensor, window: int) -> Tensor:
    """Average pooling as a mean over unfolded windows: a compiler fuses it with the activation in
    front of it, forward and backward, in the precision of the map.
    """
    rows, columns = (side // window for side in x.shape[2:])
    x = x[:, :, : rows * window, : columns * window]
    windows = x.unflatten(3, (columns, window)).unflatten(2, (rows, window))
    return windows.mean((3, 5))  # (N, C, rows, window, columns, window)


def stop_dropout(module: nn.Module) -> None:
    """Switch off dropout alone, which would draw from no stream of the job."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()


def instance_norm(channels: int) -> nn.Module:
    """Instance normalisation with a learned scale and shift: one group per channel, eps 1e-5.

    There are no running statistics, so training and evaluation compute the same function. On a
    1x1 map it would return its shift whatever the image; architectures here never put it there.
    """
    return nn.GroupNorm(channels, channels, eps=1e-5, affine=True)
