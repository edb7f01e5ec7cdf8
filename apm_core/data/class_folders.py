"""Image files in one folder per class, the layout known as ImageFolder."""

from itertools import chain
from pathlib import Path

import numpy as np

from apm_core.data.dataset import Dataset, Split
from apm_core.data.images import ImageForm, decode
from apm_core.errors import DataError

SUFFIXES = {
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}

ClassFiles = dict[str, list[Path]]  # class name -> its image files, both sorted


def read_splits(root: Path, *, tests: tuple[str, ...]) -> tuple[ClassFiles, ClassFiles]:
    """List the image files of `root/train` and of the first existing folder of `tests`.

    Raises:
        DataError: no test folder, or its classes are not those of `train`.
    """
    folder = next((root / name for name in tests if (root / name).is_dir()), None)
    if folder is None:
        folders = " or ".join(f"{name}/" for name in tests)
        raise DataError(
            f"{root} has train/ but no {folders}: add it, or set dataset.data_dir to the training "
            "folder alone to have it split"
        )
    train, test = class_files(root / "train"), class_files(folder)
    if train.keys() != test.keys():
        only = [
            f"{', '.join(map(repr, sorted(names)[:5]))} ({len(names)} in all) only in {where}"
            for names, where in (
                (train.keys() - test.keys(), root / "train"),
                (test.keys() - train.keys(), folder),
            )
            if names
        ]
        raise DataError(
            f"train and test classes differ: {' and '.join(only)}: give both the same class folders"
        )
    return train, test


def class_files(root: Path) -> ClassFiles:
    """The image files below every class folder of `root`; hidden and other files are ignored.

    Raises:
        DataError: `root` is missing, has no class folders, or a class folder has no images.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: set dataset.data_dir to your folder of images")
    folders = _subfolders(root)
    if not folders:
        raise DataError(
            f"{root} has no class folders: put the images of each class in a folder of its name"
        )
    files = {folder.name: image_files(folder) for folder in folders}
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            f"class {empty[0]!r} has no images in {root / empty[0]} ({len(empty)} of {len(files)} "
            f"classes are empty): add images ({', '.join(sorted(SUFFIXES))}) or remove the folder"
        )
    return files


def image_files(folder: Path) -> list[Path]:
    """Image files anywhere below `folder`, sorted by path."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(_hidden(part) for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def unwrapped(root: Path) -> Path:
    """Step into the single folder that most archives wrap around their contents."""
    while len(inside := _subfolders(root)) == 1 and _subfolders(inside[0]):
        root = inside[0]
    return root


def load(
    train: ClassFiles,
    test: ClassFiles,
    form: ImageForm,
    *,
    class_names: tuple[str, ...] | None = None,
    warnings: tuple[str, ...] = (),
) -> Dataset:
    """Decode image files into a data set; both splits share one array, thus size and channels.

    Args:
        train: files by class.
        test: files by class, in the same class order.
        form: target side, channels and fit.
        class_names: names of the classes; None: those of the folders.
        warnings: one line each, for `Dataset.warnings`.

    Raises:
        DataError: damaged files, or sizes that differ or are not square without a resolution.
    """
    images = decode([*chain(*train.values(), *test.values())], form)
    cut = sum(map(len, train.values()))
    return Dataset(
        train=Split(images[:cut], _labels(train)),
        test=Split(images[cut:], _labels(test)),
        class_names=class_names or tuple(train),
        warnings=warnings,
    )


def _labels(files: ClassFiles) -> np.ndarray:
    counts = [len(paths) for paths in files.values()]
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _hidden(name: str) -> bool:
    # macOS writes the second into archives
    return name.startswith(".") or name == "__MACOSX"


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _hidden(path.name))
