"""What a network is trained on and measured with, on the device."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from apm_core.runtime import streams


class Images(Protocol):
    """What can be indexed by an int64 tensor to give float images (B, C, H, W) on the device."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Examples:
    """Images and what to learn about them, both on the device."""

    images: Images  # (N, C, H, W) in the working space
    targets: Tensor  # (N,) int64 or (N, C) float32

    def some(self, count: int, *stream: streams.Key) -> "Examples":
        """At most `count` different ones, named by `stream`."""
        order = torch.randperm(len(self.targets), generator=streams.generator(*stream))
        chosen = order[:count].to(self.targets.device)
        return Examples(self.images[chosen], self.targets[chosen])
