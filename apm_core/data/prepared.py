"""The data artifact: uint8 pixels, labels and the whitening, as every later stage reads them."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apm_core.data.examples import Examples, Images
from apm_core.data.whitening import Whitening
from apm_core.errors import DataError
from apm_core.nets.base import Shape
from apm_core.runtime import store, streams
from apm_core.runtime.device import Compute

KIND = "data"
# a whitened split up to this size is held as float32, a larger one whitened per batch
HELD_BYTES = 4 << 30


class Whitened:
    """Holds uint8 images on the device and whitens them when indexed."""

    def __init__(self, images: Tensor, whitening: Whitening) -> None:
        self.images, self.whitening = images, whitening  # (N, C, H, W) uint8

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.whitening.apply(self.images[index])


@dataclass(frozen=True)
class PreparedData:
    """An open data artifact: its arrays and the whitening fitted to its training images."""

    artifact: store.Artifact
    whitening: Whitening

    @classmethod
    def open(cls, path: str | Path) -> "PreparedData":
        """Open the artifact, whose arrays are read when they are used; raises ArtifactError when it
        is missing or damaged.
        """
        artifact = store.read(path, KIND, lazy=True)
        return cls(artifact, Whitening.from_arrays(artifact.info["whitening"], artifact.arrays))

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the class indices."""
        return list(self.artifact.info["class_names"])

    @property
    def shape(self) -> Shape:
        """The shape of images and classes that a network must have."""
        return Shape.of(self.artifact.shapes["train_images"], len(self.class_names))

    @property
    def train_bytes(self) -> int:
        """Bytes of the training images as uint8."""
        return math.prod(self.artifact.shapes["train_images"])

    def examples(self, split: str, compute: Compute) -> Examples:
        """The "train" or "test" split on the device, in the working space, with class indices."""
        pixels = torch.from_numpy(self.artifact.arrays[f"{split}_images"]).to(compute.device)
        labels = torch.from_numpy(self.artifact.arrays[f"{split}_labels"]).to(compute.device)
        images: Images = Whitened(pixels, self.whitening.to(compute.device))
        if pixels.numel() * 4 <= HELD_BYTES:
            images = torch.cat([images[at] for at in torch.arange(len(pixels)).split(5000)])
        return Examples(images, labels)

    @cached_property
    def _order(self) -> dict[int, np.ndarray]:
        labels = self.artifact.arrays["train_labels"]
        seed = self.artifact.settings["seed"]
        shuffled = torch.randperm(
            len(labels), generator=streams.generator(seed, "class order")
        ).numpy()
        return {c: shuffled[labels[shuffled] == c] for c in range(len(self.class_names))}

    def shard(self, ipc: int, index: int) -> tuple[Tensor, Tensor]:
        """The real images that shard `index` of `ipc` images per class starts from, class by class.

        Shards share no image but where a class is oversampled; a shard does not depend on how many
        there are.

        Returns: images (classes * ipc, C, H, W) float32 in the working space; class indices.
        Raises DataError when a class has too few images.
        """
        classes = range(len(self.class_names))
        return self.at(np.concatenate([self.cut(self.order(c), c, ipc, index) for c in classes]))

    def order(self, c: int) -> np.ndarray:
        """Rows (n,) of the training images of class `c`, in the order from which shards are cut."""
        return self._order[c]

    def cut(self, rows: np.ndarray, c: int, ipc: int, index: int) -> np.ndarray:
        """The rows (ipc,) of shard `index` among `rows` (n,) of class `c`.

        Raises DataError when the class has too few images.
        """
        if self.artifact.settings["images"].get("oversample"):
            rows = np.resize(rows, max(len(rows), (index + 1) * ipc))  # again from the first on
        part = rows[index * ipc : (index + 1) * ipc]
        if len(part) < ipc:
            raise DataError(
                f"class {self.class_names[c]!r} has {len(self._order[c])} training images,"
                f" shard {index} needs {(index + 1) * ipc}: lower ipc or distill.tiles, or set"
                " dataset.oversample"
            )
        return part

    def pictures(self, count: int, classes: int) -> np.ndarray:
        """The first `count` training images of the first `classes` classes, in the order in which
        shards take theirs: (classes, count, C, H, W) uint8. Other images are not read.

        Raises DataError when a class has fewer.
        """
        shown = range(min(classes, len(self.class_names)))
        rows = np.stack([self.cut(self.order(c), c, count, 0) for c in shown])
        order = np.sort(rows, axis=None)
        pixels = store.rows_of(self.artifact.path, "train_images", order)
        return pixels[np.searchsorted(order, rows)]

    def at(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Training images (n, C, H, W) float32 in the working space and class indices (n,)."""
        labels = torch.from_numpy(self.artifact.arrays["train_labels"][rows])
        return self.whitening.apply(self.pixels(rows)), labels

    def pixels(self, rows: np.ndarray) -> Tensor:
        """Training images (n, C, H, W) uint8."""
        return torch.from_numpy(self.artifact.arrays["train_images"][rows])
