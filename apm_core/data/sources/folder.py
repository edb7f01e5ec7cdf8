"""Your own images, in one folder per class or named in a table."""

from dataclasses import replace
from pathlib import Path

from apm_core.data.archive import opened
from apm_core.data.class_folders import (
    TABLE,
    ClassFiles,
    class_files,
    load,
    read_splits,
    unwrapped,
)
from apm_core.data.dataset import Dataset, test_members
from apm_core.data.request import Request

CHANNELS = None
SIZE = None
TESTS = ("test", "val")


def read(request: Request) -> Dataset:
    """Read `train/` with `test/` or `val/`, or cut one folder of class folders in two.

    The request's folder may be a .zip, .tar or .tar.gz archive of one.

    Raises:
        DataError: a missing folder, no class folders, an empty class, classes that differ between
            the splits, damaged images, or a damaged archive.
        ConfigError: a share of test images out of bounds.
    """
    with opened(request.root) as place:
        root = place if place == request.root else unwrapped(place)
        train, test = splits(root, request.test_fraction, request.split_seed)
        found = load(
            train, test, request.form, skip_unreadable=request.skip_unreadable, room=request.room
        )
    # an archive's folder is gone by the time they are read
    named = tuple(line.replace(str(place), str(request.root)) for line in found.warnings)
    return replace(found, warnings=named)


def splits(root: Path, fraction: float, seed: int) -> tuple[ClassFiles, ClassFiles]:
    """The files of both splits of the folder `root`; raises what `read` raises for their names."""
    has_test = any((root / name).is_dir() for name in TESTS)
    if (root / "train").is_dir() and (has_test or not (root / TABLE).is_file()):
        return read_splits(root, tests=TESTS)
    return _cut(class_files(root), fraction, seed)


def _cut(files: ClassFiles, fraction: float, seed: int) -> tuple[ClassFiles, ClassFiles]:
    train: ClassFiles = {}
    test: ClassFiles = {}
    for label, (name, paths) in enumerate(files.items()):
        members = test_members(len(paths), fraction=fraction, seed=seed, label=label, name=name)
        train[name] = [path for path, is_test in zip(paths, members, strict=True) if not is_test]
        test[name] = [path for path, is_test in zip(paths, members, strict=True) if is_test]
    return train, test
