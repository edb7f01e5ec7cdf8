"""Checks of a data set before the pipeline spends hours on it."""

import hashlib

import numpy as np

from apm_core.data.dataset import Dataset, Split
from apm_core.errors import DataError

IMBALANCE = 2.0  # largest over smallest class from which a warning is due


def examine(
    dataset: Dataset, *, ipc: int | None = None, oversample: bool = False
) -> tuple[str, ...]:
    """Check that a data set can be distilled and evaluated.

    Args:
        dataset: the data set that a source returned.
        ipc: images per class to be distilled, if known.
        oversample: a class with fewer images repeats them: that is a warning then.

    Returns:
        Warnings, one line each: duplicates, class imbalance, constant images.

    Raises:
        DataError: fewer than two classes, labels out of range, an empty class, or more images per
            class than the smallest class has.
    """
    names = dataset.class_names
    if len(names) < 2:
        content = f"only the class {names[0]!r}" if names else "no class"
        raise DataError(f"the data set has {content}: a classifier needs at least 2, add classes")
    counts = _class_counts(dataset.train, names, "train")
    _class_counts(dataset.test, names, "test")
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    too_small = ipc is not None and ipc > counts[smallest]
    if too_small and not oversample:
        raise DataError(
            f"{ipc} images per class are asked for but class {names[smallest]!r} has only "
            f"{counts[smallest]} training images: lower ipc or tiles, add images or set "
            "dataset.oversample"
        )
    warnings = _duplicates(dataset)
    if too_small:
        warnings.append(
            f"classes that repeat images, having fewer than {ipc}: {int((counts < ipc).sum())}, "
            f"the smallest is {names[smallest]!r} with {counts[smallest]}"
        )
    if counts[largest] > IMBALANCE * counts[smallest]:
        warnings.append(
            f"classes are unbalanced: {names[largest]!r} has {counts[largest]} training images, "
            f"{names[smallest]!r} has {counts[smallest]}"
        )
    return (*warnings, *_constant(dataset.train, "train"), *_constant(dataset.test, "test"))


def _class_counts(split: Split, names: tuple[str, ...], where: str) -> np.ndarray:
    """Images per class (K,); raises DataError for a label out of range or an empty class."""
    strays = np.flatnonzero((split.labels < 0) | (split.labels >= len(names)))
    if len(strays):
        raise DataError(
            f"{where} image {strays[0]} has label {split.labels[strays[0]]} ({len(strays)} such "
            f"images) but labels run from 0 to {len(names) - 1}: correct the labels"
        )
    counts = np.bincount(split.labels, minlength=len(names))
    if not counts.all():
        name = names[int(counts.argmin())]
        raise DataError(f"class {name!r} has no {where} images: add images or drop the class")
    return counts


def _duplicates(dataset: Dataset) -> list[str]:
    """Warnings about images that are equal byte for byte."""
    first: dict[bytes, int] = {}  # digest -> first training image that has it
    for i, digest in enumerate(_digests(dataset.train)):
        first.setdefault(digest, i)
    repeats = len(dataset.train.labels) - len(first)
    leaks = [(i, first[d]) for i, d in enumerate(_digests(dataset.test)) if d in first]
    warnings = []
    if leaks:
        i, j = leaks[0]
        warnings.append(
            f"test images that are also in train: {len(leaks)}, first test image {i} "
            f"({dataset.class_names[dataset.test.labels[i]]}) = train image {j} "
            f"({dataset.class_names[dataset.train.labels[j]]}): accuracies will be too high"
        )
    if repeats:
        warnings.append(f"training images that repeat an earlier one: {repeats}")
    return warnings


def _digests(split: Split) -> list[bytes]:
    return [
        hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()
        for image in split.images
    ]


def _constant(split: Split, where: str) -> list[str]:
    channels_flat = split.images.min(axis=(2, 3)) == split.images.max(axis=(2, 3))  # (N, C)
    flat = np.flatnonzero(channels_flat.all(axis=1))
    if not len(flat):
        return []
    return [f"{where} images of one colour throughout: {len(flat)}, first image {flat[0]}"]
