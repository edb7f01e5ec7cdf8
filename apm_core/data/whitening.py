"""Scale images for training: to [0, 1], per channel, or by ZCA; each can be undone.

ZCA follows the trajectory-matching line of work (Cazenavette et al., "Dataset Distillation by
Matching Training Trajectories", 2022): on raw [0, 1] pixels, covariance over N - 1, and an absolute
`eps` added to the eigenvalues,

    Sigma = U diag(s) U^T,  matrix = U diag((s + eps)^(-1/2)) U^T,  z = (x - mean) matrix.

Deviation: the reference decomposes in float32 by SVD; here a float64 eigendecomposition.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from apm_core.data.request import Constants
from apm_core.errors import ArtifactError, ConfigError, DataError
from apm_core.runtime import memory

FIELDS = {"none": (), "channel": ("mean", "std"), "zca": ("mean", "matrix")}
PREFIX = "whitening_"  # of the stored arrays, which share a file with others
CHUNK_VALUES = 5000 * 3072  # handled at a time; 5,000 images of CIFAR
ZCA_MATRICES = 6  # D x D float64 at the peak: covariance, eigenvectors, workspace, products


@dataclass(frozen=True, eq=False)
class Whitening:
    """An invertible map from [0, 1] pixels to the space in which networks are trained.

    Attributes:
        kind: "none", "channel" or "zca".
        mean: (C,) float32 for "channel"; (D,) for "zca" with D = C*H*W in that order.
        std: (C,) float32 for "channel".
        matrix: (D, D) float32 for "zca", symmetric.
    """

    kind: str
    mean: Tensor | None = None
    std: Tensor | None = None
    matrix: Tensor | None = None

    @classmethod
    def fit(
        cls,
        images_uint8: np.ndarray | Tensor,
        kind: str,
        *,
        eps: float = 0.1,
        constants: Constants | None = None,
        chunk: int | None = None,
        available_bytes: int | None = None,
    ) -> Self:
        """Fit to the training images, on the device where they are.

        Args:
            images_uint8: (N, C, H, W) uint8.
            kind: "none", "channel" or "zca".
            eps: added to the eigenvalues of the covariance of [0, 1] pixels ("zca").
            constants: mean and std per channel to use in place of the measured ones, where images
                have as many channels ("channel").
            chunk: images handled at a time; None: as many as have `CHUNK_VALUES` values.
            available_bytes: memory taken as free; measured if None ("zca").

        Raises:
            ConfigError: an unknown kind.
            DataError: ZCA does not fit in memory or has fewer than 2 images; a constant channel.
        """
        if kind not in FIELDS:
            raise ConfigError(f"dataset.whitening must be one of {', '.join(FIELDS)}, not {kind!r}")
        if kind == "none":
            return cls(kind)
        chunk = chunk or max(1, CHUNK_VALUES // math.prod(images_uint8.shape[1:]))
        if kind == "channel":
            if constants and len(constants[0]) == images_uint8.shape[1]:
                mean, std = constants
            else:
                mean, std = _channel_moments(images_uint8, chunk)
            _require_varied(std)
            return cls(kind, mean=torch.tensor(mean), std=torch.tensor(std)).to(
                _device(images_uint8)
            )
        _check_memory(images_uint8, chunk, available_bytes)
        mean, covariance = _moments(images_uint8, chunk)
        return cls(kind, mean=mean.float(), matrix=_inverse_root(covariance, eps))

    @cached_property
    def inverse(self) -> Tensor:
        """The inverse of `matrix` for "zca", (D, D) float32, symmetric; computed at first use,
        because it is as large as the matrix and takes seconds.
        """
        inverse = torch.linalg.inv(self.matrix.double())
        return ((inverse + inverse.T) / 2).float()  # rounding leaves it a last bit from symmetric

    def apply(self, images: Tensor) -> Tensor:
        """Whiten; raises DataError for images of another shape than at the fit.

        Args:
            images: (N, C, H, W), uint8 or floating point in [0, 1], on the device of `self`.

        Returns:
            (N, C, H, W) float32; differentiable for floating-point input.
        """
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if self.kind == "none":
            return pixels
        self._check_shape(images)
        if self.kind == "channel":
            return (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        return ((pixels.flatten(1) - self.mean) @ self.matrix).view_as(pixels)

    def invert(self, images: Tensor) -> Tensor:
        """Undo `apply`; raises DataError for images of another shape than at the fit.

        Args:
            images: (N, C, H, W) floating point, whitened.

        Returns:
            (N, C, H, W) float32 in the space of [0, 1] pixels, not clipped to it.
        """
        whitened = images.float()
        if self.kind == "none":
            return whitened
        self._check_shape(images)
        if self.kind == "channel":
            return whitened * self.std[:, None, None] + self.mean[:, None, None]
        return (whitened.flatten(1) @ self.inverse + self.mean).view_as(whitened)

    def to_uint8(self, images: Tensor) -> Tensor:
        """Whitened (N, C, H, W) images as uint8 pixels, clipped and rounded to the nearest."""
        return to_uint8(self.invert(images))

    def to(self, device: torch.device | str) -> Self:
        """The same whitening on another device."""
        moved = {name: getattr(self, name).to(device) for name in FIELDS[self.kind]}
        return replace(self, **moved)

    def arrays(self) -> dict[str, np.ndarray]:
        """The float32 arrays to store, "whitening_FIELD" by name; empty for "none"."""
        fields = FIELDS[self.kind]
        return {f"{PREFIX}{name}": getattr(self, name).cpu().numpy() for name in fields}

    @classmethod
    def from_arrays(cls, kind: str, arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuild a whitening from `arrays()`; arrays of other names are ignored, such as the
        inverse that earlier versions stored.

        Raises:
            ArtifactError: an unknown kind, or arrays of this kind are missing.
        """
        own = {n.removeprefix(PREFIX): arrays[n] for n in arrays if n.startswith(PREFIX)}
        if kind not in FIELDS or not own.keys() >= set(FIELDS[kind]):
            expected = ", ".join(FIELDS.get(kind, ())) or "none"
            raise ArtifactError(
                f"stored whitening {kind!r} has arrays {', '.join(sorted(own)) or 'none'}, "
                f"expected {expected}: run the stage that wrote it again"
            )
        return cls(kind, **{name: torch.tensor(own[name]) for name in FIELDS[kind]})

    def _check_shape(self, images: Tensor) -> None:
        # one channel would otherwise broadcast against three in silence
        per_channel = self.kind == "channel"
        count = images.shape[1] if per_channel else images.shape[1:].numel()
        if count != len(self.mean):
            raise DataError(
                f"whitening {self.kind!r} was fitted to {len(self.mean)} "
                f"{'channels' if per_channel else 'values'} per image but images of shape "
                f"{tuple(images.shape[1:])} have {count}: fit it to this data set"
            )


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, clipped and rounded to the nearest."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _device(images: np.ndarray | Tensor) -> torch.device:
    return images.device if isinstance(images, Tensor) else torch.device("cpu")


def _chunks(images: np.ndarray | Tensor, chunk: int) -> Iterator[Tensor]:
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        # a copy, because torch warns when it shares the memory of a read-only array
        yield part if isinstance(part, Tensor) else torch.tensor(part)


def _channel_moments(images: np.ndarray | Tensor, chunk: int) -> Constants:
    """Mean and std of each channel over all pixels, exact, from counts of the 256 levels."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in _chunks(images, chunk):
        for channel in range(images.shape[1]):
            levels = part[:, channel].flatten()
            counts[channel] += torch.bincount(levels, minlength=256).cpu()
    weights = counts / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ levels
    std = (weights * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _require_varied(std: tuple[float, ...]) -> None:
    if min(std) <= 0:
        raise DataError(
            f"channel {std.index(min(std))} has std {min(std)}: set dataset.whitening: none, "
            "or give images that vary"
        )


def _check_memory(images: np.ndarray | Tensor, chunk: int, available_bytes: int | None) -> None:
    count, side = len(images), images[0].numel() if isinstance(images, Tensor) else images[0].size
    if count < 2:
        raise DataError(f"ZCA needs at least 2 images, found {count}: set dataset.whitening: none")
    needed = ZCA_MATRICES * 8 * side**2 + 4 * min(chunk, count) * side
    if available_bytes is None:
        available_bytes = memory.available(_device(images))
    if needed > available_bytes:
        raise DataError(
            f"ZCA of {side} values per image needs {needed / 1e9:.1f} GB of memory but "
            f"{available_bytes / 1e9:.1f} GB are available: set dataset.whitening: channel, "
            "or a smaller dataset.resolution"
        )


def _moments(images: np.ndarray | Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) over N - 1 of [0, 1] pixels, float64.

    Pixels are centred before they are multiplied, which avoids cancellation; products within a
    chunk are float32 on a CPU, for speed, and sums over chunks are float64.
    """
    total = sum(part.flatten(1).sum(0, dtype=torch.int64) for part in _chunks(images, chunk))
    mean = total.double() / len(images)
    # a GPU may be set to TF32 products, which are too coarse here
    precision = torch.float64 if mean.is_cuda else torch.float32
    centre = mean.to(precision)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for part in _chunks(images, chunk):
        centred = part.flatten(1).to(precision).sub_(centre)
        scatter += centred.T @ centred
    return mean / 255, scatter.div_((len(images) - 1) * 255.0**2)


def _inverse_root(covariance: Tensor, eps: float) -> Tensor:
    """The whitening matrix, (D, D) float32, of a float64 covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    shifted = values.clamp(min=0) + eps  # rounding leaves null directions a little below zero
    # the root on each side keeps the product symmetric to the last bit
    half = vectors * shifted.pow(-0.25)
    return (half @ half.T).float()
