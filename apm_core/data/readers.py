"""The data sets by name."""

from pathlib import Path

import numpy as np

from apm_core.data.dataset import Dataset, cut
from apm_core.data.folder import read_folder
from apm_core.data.imagenet import read_imagenet, read_tiny_imagenet
from apm_core.data.images import ImageForm, refit
from apm_core.errors import DataError

DATASETS = ("digits", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "folder")


def read(
    name: str,
    *,
    data_dir: str | Path | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    fit: str = "squash",
    test_fraction: float = 0.2,
    split_seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Read a data set into memory as uint8.

    Args:
        name: one of `DATASETS`.
        data_dir: folder of the data (`folder` also takes an archive); `digits` needs none.
        resolution: side in pixels to resize to, with antialiasing; None keeps the files' own,
            which must then be square and all alike.
        channels: 1 or 3; None keeps what the set has, 3 unless all its images are greyscale.
        fit: "squash" resizes the whole image to a square; "crop" resizes the shorter side, then
            cuts the centre.
        test_fraction: share of each class kept for testing, in sets that come without a test split.
        split_seed: seed of that split.
        download: fetch `cifar10` and `cifar100` if missing; the others are never downloaded.

    Raises:
        DataError: an unknown name, or data that are missing, damaged or at odds with each other.
        ConfigError: resolution, channels, fit or test_fraction out of bounds.
    """
    if name not in DATASETS:
        raise DataError(
            f"unknown data set {name!r}: set dataset.name to one of {', '.join(DATASETS)}"
        )
    form = ImageForm(resolution, channels, fit)
    if name == "digits":
        return _read_digits(form, test_fraction, split_seed)
    if data_dir is None:
        raise DataError(f"{name} needs a folder: set dataset.data_dir to where its files are")
    root = Path(data_dir).expanduser()
    match name:
        case "tiny_imagenet":
            return read_tiny_imagenet(root, form)
        case "imagenet":
            return read_imagenet(root, form)
        case "folder":
            return read_folder(root, form, test_fraction=test_fraction, split_seed=split_seed)
    from apm_core.data.cifar import read_cifar

    return read_cifar(name, root, form, download=download)


def _read_digits(form: ImageForm, test_fraction: float, split_seed: int) -> Dataset:
    """1,797 scans of handwritten digits, 8 x 8 pixels of 17 levels, shipped with scikit-learn."""
    from sklearn.datasets import load_digits  # scikit-learn takes seconds to import

    scans = load_digits()
    images = refit(np.rint(scans.images * (255 / 16)).astype(np.uint8)[:, None], form)
    labels = scans.target.astype(np.int64)
    names = tuple(str(digit) for digit in scans.target_names)
    train, test = cut(images, labels, names, fraction=test_fraction, seed=split_seed)
    return Dataset(train, test, names)
