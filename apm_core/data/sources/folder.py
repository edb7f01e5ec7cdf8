"""Your own images, in one folder per class or named in a table."""

from pathlib import Path

from apm_core.data.archive import opened
from apm_core.data.class_folders import ClassFiles, class_files, load, read_splits, unwrapped
from apm_core.data.dataset import Dataset, test_members
from apm_core.data.request import Request

CHANNELS = None
SIZE = None


def read(request: Request) -> Dataset:
    """Read `train/` with `test/` or `val/`, or cut one folder of class folders in two.

    The request's folder may be a .zip, .tar or .tar.gz archive of one.

    Raises:
        DataError: a missing folder, no class folders, an empty class, classes that differ between
            the splits, damaged images, or a damaged archive.
        ConfigError: a share of test images out of bounds.
    """
    with opened(request.root) as root:
        if root != request.root:
            root = unwrapped(root)
        train, test = splits(root, request.test_fraction, request.split_seed)
        return load(
            train, test, request.form, skip_unreadable=request.skip_unreadable, room=request.room
        )


def splits(root: Path, fraction: float, seed: int) -> tuple[ClassFiles, ClassFiles]:
    """The files of both splits of the folder `root`; raises what `read` raises for their names."""
    if (root / "train").is_dir():
        return read_splits(root, tests=("test", "val"))
    return _cut(class_files(root), fraction, seed)


def _cut(files: ClassFiles, fraction: float, seed: int) -> tuple[ClassFiles, ClassFiles]:
    train: ClassFiles = {}
    test: ClassFiles = {}
    for label, (name, paths) in enumerate(files.items()):
        members = test_members(len(paths), fraction=fraction, seed=seed, label=label, name=name)
        train[name] = [path for path, is_test in zip(paths, members, strict=True) if not is_test]
        test[name] = [path for path, is_test in zip(paths, members, strict=True) if is_test]
    return train, test
