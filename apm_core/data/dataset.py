"""A data set of two splits, as every source returns it, and random splits of undivided sets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from apm_core.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their classes, in a fixed order.

    Attributes:
        images: (N, C, H, W) uint8, C of 1 or 3, H equal to W.
        labels: (N,) int64, indices into `Dataset.class_names`.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class PublicSize:
    """The size of a data set that is the same for everybody; `side` is None where there are
    versions of several sizes. `folder`, of the data's, has a folder of each class, where classes
    that are not there are left out.
    """

    train: int  # images
    test: int
    channels: int
    side: int | None  # pixels
    classes: int
    folder: str | None = None

    @property
    def values(self) -> int:
        """Numbers in one image of each class; the side must be known."""
        return self.classes * self.channels * self.side**2


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split over the same classes.

    Attributes:
        train: the images to distil.
        test: the images that judge the result; never seen while distilling.
        class_names: one name per label.
        warnings: what the reader left out or assumed, one line each.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def cut(images: np.ndarray, labels: np.ndarray, names: Sequence[str], **how: float) -> list[Split]:
    """Split images (N, C, H, W) with labels (N,) into [train, test], class by class.

    `how` is `fraction` and `seed` of `test_members`. Raises what `test_members` raises.
    """
    test = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(names):
        own = labels == label
        test[own] = test_members(own.sum(), label=label, name=name, **how)
    return [Split(images[rows], labels[rows]) for rows in (~test, test)]


def hold_out(dataset: Dataset, *, fraction: float, seed: int) -> Dataset:
    """Replace the test split by a share `fraction` of each training class.

    Raises what `test_members` raises.
    """
    images, labels = dataset.train.images, dataset.train.labels
    train, test = cut(images, labels, dataset.class_names, fraction=fraction, seed=seed)
    return replace(dataset, train=train, test=test)


def test_members(count: int, *, fraction: float, seed: int, label: int, name: str) -> np.ndarray:
    """Draw the members of one class that go to the test split.

    The draw depends on the seed and on this class alone, so that a change in one class leaves the
    others as they were. Both sides get at least one image.

    Args:
        count: images in the class.
        fraction: share for the test split, between 0 and 1 exclusive.
        seed: seed of the split.
        label: index of the class.
        name: name of the class, for messages.

    Returns:
        (count,) bool, true for the test split.

    Raises:
        ConfigError: a fraction out of bounds.
        DataError: a class of a single image.
    """
    if not 0 < fraction < 1:
        raise ConfigError(
            f"dataset.test_fraction must lie between 0 and 1 exclusive, not {fraction}"
        )
    if count < 2:
        raise DataError(
            f"class {name!r} has {count} image and cannot be split into train and test: add images"
        )
    size = min(max(round(count * fraction), 1), count - 1)
    indices = np.random.default_rng([seed, label]).permutation(count)[:size]
    members = np.zeros(count, dtype=bool)
    members[indices] = True
    return members
