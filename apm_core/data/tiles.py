"""Several smaller images in the bytes of one: a stored image is a square of tiles.

The parametrisation of IDC (Kim et al., "Dataset Condensation via Efficient Synthetic-Data
Parameterization", ICML 2022) and NCFM: each tile is decoded to a whole image by bilinear
upsampling, in the space of [0, 1] pixels; whitening comes after. Decoding is affine in the stored
pixels.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.data.whitening import Whitening
from apm_core.errors import ConfigError


def are_whitened(stored: Tensor, factor: int) -> bool:
    """Whether `stored` are whole images in the working space, which need no decoding: neither
    tiles, `factor` along a side, nor uint8 pixels.
    """
    return factor == 1 and stored.is_floating_point()


def require_division(key: str, factor: int, side: int) -> None:
    """Raise ConfigError, naming `key`, unless `factor` tiles divide a side of `side` pixels."""
    if side % factor:
        raise ConfigError(
            f"{key}: {factor} does not divide the {side} pixels of a side: choose a divisor, or set"
            " dataset.resolution"
        )


@dataclass(frozen=True, eq=False)
class Tiles:
    """The map between stored images and the images that networks see.

    Attributes:
        factor: tiles along a side, t; a stored image holds t * t images, row by row.
        whitening: applied to decoded pixels.
    """

    factor: int
    whitening: Whitening

    @property
    def count(self) -> int:
        """Images in a stored one, t * t."""
        return self.factor**2

    def require_fit(self, side: int) -> None:
        """Raise ConfigError unless the tiles divide images of `side` pixels."""
        require_division("tiles", self.factor, side)

    def decode(self, stored: Tensor) -> Tensor:
        """The images (N * t * t, C, S, S), whitened, of stored ones (N, C, S, S): floating point in
        [0, 1], or uint8.
        """
        if stored.dtype == torch.uint8:
            stored = stored.float() / 255
        return self.grow(self._cut(stored))

    def grow(self, tiles: Tensor) -> Tensor:
        """The images (n, C, S, S), whitened, of single tiles (n, C, S / t, S / t) in [0, 1]."""
        side = tiles.shape[-1] * self.factor
        pixels = F.interpolate(tiles, size=(side, side), mode="bilinear")
        return self._whitening(tiles.device).apply(pixels)

    def encode(self, images: Tensor) -> Tensor:
        """The stored images (N, C, S, S) of whitened ones (N * t * t, C, S, S): those whose decoded
        pixels are the nearest, in least squares, so that `encode(decode(x))` is x.
        """
        pixels, shrink = self._whitening(images.device).invert(images), self._shrink(images)
        return self._joined(shrink @ pixels @ shrink.T)

    def pull_back(self, gradient: Tensor) -> Tensor:
        """The gradient (N, C, S, S) in stored images, from that in the decoded ones."""
        count, *image = gradient.shape
        leaf = gradient.new_zeros(count // self.count, *image, requires_grad=True)
        with torch.enable_grad():
            return torch.autograd.grad(self.decode(leaf), leaf, gradient)[0]

    def step_towards(self, gradient: Tensor) -> Tensor:
        """The change (N, C, S, S) of stored images by which the decoded ones change as nearly as
        tiles can, in least squares, by `gradient` (N * t * t, C, S, S).

        It is the gradient that `pull_back` gives, freed of how strongly decoding stretches each
        direction (a Gauss-Newton step): for steps along it, rates mean what they mean for whole
        images, whatever the space in which tiles are stored. Adam and LAMB take no notice of its
        scale: their rates are those of stored pixels.
        """
        if self.whitening.kind != "zca":  # no mixing of pixels: each side is solved alone
            shrink, std = self._shrink(gradient), self._whitening(gradient.device).std
            changed = shrink @ gradient @ shrink.T
            return self._joined(changed if std is None else std.view(-1, 1, 1) * changed)
        pulled = self._cut(self.pull_back(gradient))
        flat = pulled.flatten(1).double()
        solved = torch.cholesky_solve(flat.T, self._stretch(pulled)).T
        return self._joined(solved.to(pulled).view(pulled.shape))

    def _stretch(self, tiles: Tensor) -> Tensor:
        """The Cholesky factor (D, D) of A^T A, where A decodes a tile of D values; float64."""
        key = (tiles.shape[1:], tiles.device)
        if key not in self._factors:
            _, channels, side, _ = tiles.shape
            values = channels * side**2
            basis = torch.zeros(values, channels, side * self.factor, side * self.factor)
            basis[..., :side, :side] = torch.eye(values).view(values, channels, side, side)
            basis = basis.to(tiles.device)
            at_zero = self.decode(torch.zeros_like(basis[:1]))[:1]
            columns = torch.cat(
                [self.decode(part)[:: self.count] - at_zero for part in basis.split(256)]
            )
            matrix = columns.flatten(1).double()
            self._factors[key] = torch.linalg.cholesky(matrix @ matrix.T)
        return self._factors[key]

    @cached_property
    def _factors(self) -> dict[tuple[torch.Size, torch.device], Tensor]:
        return {}

    def _whitening(self, device: torch.device) -> Whitening:
        if device not in self._placed:
            self._placed[device] = self.whitening.to(device)
        return self._placed[device]

    @cached_property
    def _placed(self) -> dict[torch.device, Whitening]:
        return {}

    def _cut(self, stored: Tensor) -> Tensor:
        """The tiles (N * t * t, C, S / t, S / t)."""
        t, (count, channels, side, _) = self.factor, stored.shape
        rows = stored.view(count, channels, t, side // t, t, side // t)
        return rows.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side // t, side // t)

    def _joined(self, tiles: Tensor) -> Tensor:
        """The inverse of `_cut`."""
        t, (count, channels, side, _) = self.factor, tiles.shape
        grid = tiles.view(count // t**2, t, t, channels, side, side)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, t * side, t * side)

    def _shrink(self, images: Tensor) -> Tensor:
        """The pseudo-inverse (S / t, S) of upsampling along one side."""
        side = images.shape[-1]
        basis = torch.eye(side // self.factor, dtype=torch.float64)[None]  # (1, S / t, S / t)
        grow = F.interpolate(basis, size=side, mode="linear")[0].T
        return torch.linalg.pinv(grow).to(images)
