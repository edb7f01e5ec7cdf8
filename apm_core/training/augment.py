"""Differentiable siamese augmentation (DSA), from explicit parameters.

Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021. One group
of operations is drawn per call and applied to the whole batch; its parameters are drawn per image
(training, evaluation) or once for all images (siamese matching of real and synthetic batches).
Drawing and applying are separate, so that a second pass can replay exactly what the first one did.
The fill value is 0, the data mean of the working space.

Grids use `align_corners=True`, as the trajectory-matching and APM code bases do, where the original
uses False. That is no deviation: images are square and their maps linear about the centre, for
which grid and sampling with either value are the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from apm_core.errors import ConfigError

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT = 0.125, 0.5  # shares of the image side
SCALE, ROTATE = 1.2, 15.0  # factor; degrees
NUMBERS = 3  # uniform numbers that the neediest group (color) takes per image


@dataclass(frozen=True)
class Draw:
    """One augmentation of a batch: the group of operations and its random numbers."""

    group: str
    uniform: Tensor  # (3, N) per image, or (3, 1) siamese; in [0, 1)

    def to(self, device: torch.device) -> "Draw":
        """The same draw with its numbers on `device`."""
        return Draw(self.group, self.uniform.to(device, non_blocking=True))

    def at(self, index: Tensor) -> "Draw":
        """The draw of the images `index` of the batch."""
        if self.uniform.shape[1] == 1:
            return self
        return Draw(self.group, self.uniform[:, index.to(self.uniform.device)])


def groups(strategy: str) -> tuple[str, ...]:
    """The groups of a strategy such as "color_crop_cutout_flip_scale_rotate"; "none" has no group.

    Raises ConfigError for a group that does not exist.
    """
    names = () if strategy == "none" else tuple(strategy.split("_"))
    for name in names:
        if name not in OPERATIONS:
            known = ", ".join(OPERATIONS)
            raise ConfigError(
                f"augment: there is no group {name!r} in {strategy!r}; known: {known}"
            )
    return names


def draw(strategy: str, count: int, rng: Generator) -> Draw | None:
    """Draw one group and the numbers of `count` images (1: siamese, the same for all); None without
    augmentation.
    """
    names = groups(strategy)
    if not names:
        return None
    choice = int(torch.randint(len(names), (), generator=rng))
    return Draw(names[choice], torch.rand(NUMBERS, count, generator=rng))


def augment(images: Tensor, drawn: Draw | None) -> Tensor:
    """Apply `drawn` to images (N, C, S, S); differentiable in the images. None leaves them as they
    are.
    """
    return images if drawn is None else OPERATIONS[drawn.group](images, drawn.uniform)


def augment_by_number(images: Tensor, names: Sequence[str], number: Tensor, u: Tensor) -> Tensor:
    """Apply the group `names[number]` with the numbers `u`, where `number`, 0-d int64, is on the
    device: all groups are computed and one is taken, so that one CUDA graph serves them all.
    """
    augmented = images
    for index, name in enumerate(names):
        augmented = torch.where(number == index, OPERATIONS[name](images, u), augmented)
    return augmented


def color(images: Tensor, u: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast; u: (3, N)."""
    brightness, saturation, contrast = u[:, :, None, None, None]
    x = images + (brightness - 0.5) * BRIGHTNESS
    gray = x.mean(dim=1, keepdim=True)
    x = (x - gray) * (saturation * SATURATION) + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + CONTRAST) + mean


def crop(images: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the side, zeros outside."""
    count, channels, side, _ = images.shape
    reach = int(side * CROP + 0.5)
    shift = (u[:2] * (2 * reach + 1)).long().expand(2, count)  # 0..2*reach, into the padded image
    at = torch.arange(side, device=images.device)
    rows = (shift[0, :, None] + at)[:, None, :, None]  # (N, 1, S, 1)
    columns = (shift[1, :, None] + at)[:, None, None, :]  # (N, 1, 1, S)
    which = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return F.pad(images, [reach] * 4)[which, channel, rows, columns]


def cutout(images: Tensor, u: Tensor) -> Tensor:
    """Zero a square of half the side, cut off at the border."""
    side = images.shape[-1]
    hole = int(side * CUTOUT + 0.5)
    centre = (u[:2] * (side + (1 - hole % 2))).long()[:, :, None]  # (2, N, 1)
    at = torch.arange(side, device=images.device)
    inside = (at >= centre - hole // 2) & (at < centre - hole // 2 + hole)  # (2, N, S)
    kept = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])  # (N, 1, S, S)
    return images * kept


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirror left to right with probability one half."""
    return torch.where((u[0] < 0.5)[:, None, None, None], images.flip(-1), images)


def scale(images: Tensor, u: Tensor) -> Tensor:
    """Zoom both axes independently by a factor in [1/1.2, 1.2]."""
    factor = u * (SCALE - 1 / SCALE) + 1 / SCALE
    zero = torch.zeros_like(factor[0])
    return _warp(images, [[factor[0], zero, zero], [zero, factor[1], zero]])


def rotate(images: Tensor, u: Tensor) -> Tensor:
    """Rotate by up to 15 degrees."""
    angle = (u[0] - 0.5) * 2 * math.radians(ROTATE)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _warp(images, [[cos, -sin, zero], [sin, cos, zero]])


def _warp(images: Tensor, matrix: list[list[Tensor]]) -> Tensor:
    theta = torch.stack([torch.stack(row, dim=-1) for row in matrix], dim=-2)  # (N or 1, 2, 3)
    theta = theta.to(images.dtype).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    if torch.are_deterministic_algorithms_enabled() and images.is_cuda:
        return gathered(images, grid)  # its gradient has fixed sums, that of grid_sample has not
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def gathered(images: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples of images (N, C, S, S) at `grid` (N, S, S, 2), corners at -1 and 1, zeros
    outside: `grid_sample` by gathering four neighbours.
    """
    channels, side = images.shape[1:3]
    column, row = ((grid.flatten(1, 2) + 1) * ((side - 1) / 2)).unbind(-1)  # (N, S*S), pixels
    left, top = column.floor(), row.floor()
    result = torch.zeros_like(images).flatten(2)
    for down in (0, 1):
        for right in (0, 1):
            x, y = left + right, top + down
            inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
            weight = (1 - (column - x).abs()) * (1 - (row - y).abs()) * inside
            index = (y.clamp(0, side - 1) * side + x.clamp(0, side - 1)).long()
            values = images.flatten(2).gather(2, index[:, None].expand(-1, channels, -1))
            result = result + values * weight[:, None]
    return result.view(images.shape)


OPERATIONS = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}
