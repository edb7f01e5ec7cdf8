"""Images with their targets, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from apm_core.data.labels import renumbered
from apm_core.runtime import streams


class Images(Protocol):
    """A collection that int64 indices (B,) turn into float images (B, C, H, W) on the device."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Examples:
    """Images and their targets, both on the device."""

    images: Images  # (N, C, H, W) in the working space
    targets: Tensor  # (N,) int64 or (N, C) float32

    def some(self, count: int, *stream: streams.Key) -> "Examples":
        """A random subset of at most `count` examples, drawn from the stream `stream`."""
        order = torch.randperm(len(self.targets), generator=streams.generator(*stream))
        rows = order[:count].to(self.targets.device)
        return Examples(self.images[rows], self.targets[rows])

    def only(self, classes: Sequence[int]) -> "Examples":
        """Those of `classes`, whose targets, class indices, become the places in `classes`."""
        places = renumbered(self.targets, classes)
        rows = torch.nonzero(places >= 0).flatten()
        return Examples(self.images[rows], places[rows])
