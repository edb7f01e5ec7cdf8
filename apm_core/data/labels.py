"""The labels of a distilled set as they are stored: all logits or the largest, in 32 or 16 bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

ARRAYS = {"values": "targets", "places": "target_classes", "rest": "target_rest"}  # in a file


def renumbered(indices: Tensor, classes: Sequence[int]) -> Tensor:
    """Class indices (N,) as places (N,) int64 in `classes`, which names no class twice; -1 for
    other classes.
    """
    equal = indices[:, None] == torch.tensor(classes, device=indices.device)
    return torch.where(equal.any(1), equal.int().argmax(1), -1)


@dataclass(frozen=True, eq=False)
class Labels:
    """Targets of N images of C classes.

    Attributes:
        values: (N, C) logits, (N, k) the largest of them, or (N,) int64 class indices.
        places: (N, k) int16, the classes of the k largest logits; None when all are there.
        rest: (N, 1), the mean of the other logits, which stands for each of them.
        classes: C, where only the largest are stored.
    """

    values: Tensor
    places: Tensor | None = None
    rest: Tensor | None = None
    classes: int | None = None

    @classmethod
    def of(cls, targets: Tensor, *, bits: int = 32, top: int | None = None) -> Self:
        """Labels that store `targets`, (N, C) logits, in 16 or 32 bits each, all of them or the
        `top` largest. Class indices (N,) are stored as they are.
        """
        if not targets.is_floating_point():
            return cls(targets)
        kind = torch.float16 if bits == 16 else torch.float32
        classes = targets.shape[1]
        if top is None or top >= classes:
            return cls(targets.to(kind))
        values, places = targets.topk(top, dim=1)
        rest = (targets.sum(1, keepdim=True) - values.sum(1, keepdim=True)) / (classes - top)
        return cls(values.to(kind), places.to(torch.int16), rest.to(kind), classes)

    @cached_property
    def targets(self) -> Tensor:
        """(N, C) float32 logits, or the class indices (N,)."""
        if not self.values.is_floating_point():
            return self.values
        if self.places is None:
            return self.values.float()
        whole = self.rest.float().repeat(1, self.classes)
        return whole.scatter_(1, self.places.long(), self.values.float())

    @property
    def bytes(self) -> int:
        """Bytes of what is stored."""
        return sum(array.nbytes for array in self.arrays().values())

    def select(self, rows: Tensor) -> "Labels":
        """The labels of the images `rows`."""
        parts = {key: getattr(self, key) for key in ARRAYS}
        return Labels(
            **{key: None if part is None else part[rows] for key, part in parts.items()},
            classes=self.classes,
        )

    def only(self, classes: Sequence[int]) -> "Labels":
        """The labels of images of `classes`, as if there were no others: logits have these columns
        alone, in this order, and an index is the place in `classes`.
        """
        if not self.values.is_floating_point():
            return Labels(renumbered(self.values, classes))
        return Labels(self.targets[:, list(classes)].to(self.values.dtype))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays to store; `from_arrays` is the inverse."""
        parts = {name: getattr(self, key) for key, name in ARRAYS.items()}
        return {name: part.numpy() for name, part in parts.items() if part is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], classes: int) -> Self:
        """The labels in `arrays`; those of other names are ignored."""
        parts = {
            key: torch.from_numpy(arrays[name]) for key, name in ARRAYS.items() if name in arrays
        }
        return cls(**parts, classes=classes if "places" in parts else None)
