"""How a distillation went: figures of its rounds, and what some of its images looked like."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apm_core.methods.base import Shard
from apm_core.runtime.store import Artifact

SNAPSHOTS = 7  # of the images, at most; the end, an eighth, is the set itself
POINTS = 500  # rounds whose figures are kept, at most
IPC, CLASSES = 3, 20  # stored images of a class that are kept, and classes, at most


def shown(classes: Tensor, tiles: int = 1) -> Tensor:
    """The rows of the images that snapshots show: the first `IPC` stored ones of each class.

    `classes` (N,) are those of images as networks see them, tiles^2 for each stored one.
    """
    rows = [torch.nonzero(classes == c).flatten()[: IPC * tiles**2] for c in range(CLASSES)]
    return torch.cat(rows)


class Recorder:
    """Keeps figures and pictures of rounds at equal distances.

    What is kept depends on the rounds alone, so a resumed run keeps the same.

    Args:
        rounds: all that are to be done.
        picture: from a shard to its shown images (n, C, H, W) uint8, as they are stored.
    """

    def __init__(self, rounds: int, picture: Callable[[Shard], Tensor]) -> None:
        self.picture, self.every = picture, math.ceil(rounds / POINTS)
        count = min(SNAPSHOTS, rounds)
        self.stops = {rounds * number // count for number in range(count)}
        self.kept: dict[str, list[Any]] = {"seen": [], "images": [], "noted": [], "figures": []}

    def see(self, done: int, shard: Callable[[], Shard]) -> None:
        """Picture the shard after `done` rounds, if it is time and not done yet."""
        if done in self.stops and done not in self.kept["seen"]:
            self.kept["images"].append(self.picture(shard()))
            self.kept["seen"].append(done)

    def note(self, done: int, figures: dict[str, float]) -> None:
        """Keep the figures of the last of `done` rounds, if it is time."""
        if done % self.every == 0:
            self.kept["figures"].append({name: float(value) for name, value in figures.items()})
            self.kept["noted"].append(done)

    def names(self) -> list[str]:
        """Names of the figures, in the order in which they came up."""
        return list(dict.fromkeys(name for figures in self.kept["figures"] for name in figures))

    def arrays(self) -> dict[str, np.ndarray]:
        """What `History.of` reads, with `names`; nothing where there were no rounds."""
        kept, names = self.kept, self.names()
        if not kept["seen"]:
            return {}
        figures = [[point.get(name, math.nan) for name in names] for point in kept["figures"]]
        return {
            "history_images": torch.stack(kept["images"]).numpy(),
            "history_seen": np.array(kept["seen"]),
            "history_figures": np.array(figures).reshape(len(figures), len(names)),
            "history_noted": np.array(kept["noted"], dtype=np.int64),
        }


@dataclass(frozen=True)
class History:
    """The course of a shard's distillation.

    Attributes:
        images: (s, n, C, H, W) uint8, those that `shown` names, as they are stored.
        seen: (s,), how many rounds were done at each snapshot; the first is 0.
        figures: by name (p,), NaN for rounds that have no such figure.
        noted: (p,), how many rounds were done at each point.
    """

    images: np.ndarray
    seen: np.ndarray
    figures: dict[str, np.ndarray]
    noted: np.ndarray

    @classmethod
    def of(cls, shard: Artifact) -> "History | None":
        """The history in a shard's artifact; None where it went through no rounds, or is from
        before histories were kept.
        """
        if "history_images" not in shard.arrays:
            return None
        names, columns = shard.info["figures"], shard.arrays["history_figures"].T
        return cls(
            shard.arrays["history_images"],
            shard.arrays["history_seen"],
            dict(zip(names, columns, strict=True)),
            shard.arrays["history_noted"],
        )
