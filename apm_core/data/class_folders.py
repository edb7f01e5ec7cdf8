"""Image files in one folder per class, the layout known as ImageFolder, or named in a table."""

import csv
import os
from itertools import chain
from pathlib import Path

import numpy as np

from apm_core.data.dataset import Dataset, Split
from apm_core.data.images import ImageForm, decode, decode_readable
from apm_core.data.room import IN_MEMORY, Room
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

TABLE = "labels.csv"
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
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

    Where there is a file `labels.csv`, the files that it names, by the classes that it gives them.

    Raises:
        DataError: `root` is missing, has no class folders, or folders of splits in their place, or
            a class folder has no images; or the table is not as `tabled` wants it.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: correct the path, or dataset.data_dir")
    if (root / TABLE).is_file():
        return tabled(root)
    folders = _subfolders(root)
    if not folders:
        raise DataError(
            f"{root} has no class folders: put the images of each class in a folder of its name"
        )
    if all(folder.name.lower() in SPLITS and _subfolders(folder) for folder in folders):
        found = ", ".join(folder.name for folder in folders)
        raise DataError(
            f"{root} has the folders {found}, which look like splits and not like classes: name"
            " them train and test (or val)"
        )
    files = {folder.name: image_files(folder) for folder in folders}
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            f"class {empty[0]!r} has no images in {root / empty[0]} ({len(empty)} of {len(files)} "
            f"classes are empty): add images ({', '.join(sorted(SUFFIXES))}) or remove the folder"
        )
    return files


def tabled(root: Path) -> ClassFiles:
    """The image files that `root/labels.csv` names, by class; other files are ignored.

    Its columns are `file`, a path below `root`, and `class`; further ones are ignored.

    Raises DataError, naming the line, for a table without these columns or rows, a row without
    class, and a file that is missing, lies elsewhere or is named twice.
    """
    table, files, seen = root / TABLE, {}, set()
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.DictReader(opened)
            missing = {"file", "class"} - set(rows.fieldnames or ())
            if missing:
                raise DataError(
                    f"{table} has no column {min(missing)!r}: its first line must name the columns"
                    " file and class, with a comma between them"
                )
            for row in rows:
                path = _of_row(root, row, f"{table}, line {rows.line_num}", seen)
                files.setdefault(row["class"].strip(), []).append(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is no CSV in UTF-8 ({error}): write it again") from error
    if not files:
        raise DataError(f"{table} names no files: add rows with file and class")
    return {name: sorted(files[name]) for name in sorted(files)}


def _of_row(root: Path, row: dict[str, str | None], place: str, seen: set[Path]) -> Path:
    """The file of a row of the table at `place`, which is added to `seen`."""
    name, label = (row[key] or "" for key in ("file", "class"))
    home = os.path.normpath(root.absolute())
    path = Path(os.path.normpath(Path(home, name.strip())))
    if not label.strip():
        raise DataError(f"{place}: {name!r} has no class: add it, or remove the line")
    if not path.is_relative_to(home):
        raise DataError(f"{place}: {name!r} lies outside of {root}: move it there")
    if not path.is_file():
        raise DataError(f"{place}: there is no file {name!r} in {root}: correct the name")
    if path in seen:
        raise DataError(f"{place}: {name!r} is named a second time: remove one of the lines")
    seen.add(path)
    return path


def image_files(folder: Path) -> list[Path]:
    """Image files anywhere below `folder`, sorted by path.

    Links to files are followed; of folders only `folder` may be one, so no link leads in a circle.
    """
    found = []
    for place, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if not _hidden(name)]
        paths = [Path(place, name) for name in names if not _hidden(name)]
        found += [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(found)


def unwrapped(root: Path) -> Path:
    """Step into the single folder that most archives wrap around their contents."""
    while len(inside := _subfolders(root)) == 1 and not (root / TABLE).is_file():
        if not _subfolders(inside[0]) and not (inside[0] / TABLE).is_file():
            break
        root = inside[0]
    return root


def load(
    train: ClassFiles,
    test: ClassFiles,
    form: ImageForm,
    *,
    skip_unreadable: bool = False,
    room: Room = IN_MEMORY,
    class_names: tuple[str, ...] | None = None,
    warnings: tuple[str, ...] = (),
) -> Dataset:
    """Decode image files into a data set; both splits share one array, thus size and channels.

    Args:
        train: files by class.
        test: files by class, in the same class order.
        form: target side, channels and fit.
        skip_unreadable: leave damaged files out, with a warning for each.
        room: where the images lie.
        class_names: names of the classes; None: those of the folders.
        warnings: one line each, for `Dataset.warnings`.

    Raises:
        DataError: damaged files, or sizes that differ or are not square without a resolution.
    """
    paths = [*chain(*train.values(), *test.values())]
    cut, labels = sum(map(len, train.values())), np.append(_labels(train), _labels(test))
    if skip_unreadable:
        images, damage = decode_readable(paths, form, room)
        labels = np.delete(labels, list(damage))
        cut -= sum(i < cut for i in damage)
        lost = tuple(f"left out, it cannot be read: {damage[i]}" for i in sorted(damage))
        warnings = (*warnings, *lost)
    else:
        images = decode(paths, form, room)
    return Dataset(
        train=Split(images[:cut], labels[:cut]),
        test=Split(images[cut:], labels[cut:]),
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
