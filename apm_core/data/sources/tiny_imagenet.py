"""Tiny ImageNet (Stanford CS231N): 200 classes, 64 x 64 pixels, 500 training images per class.

Its 50 validation images per class serve as test split, as in the distillation literature.
"""

from pathlib import Path

from apm_core.data.class_folders import ClassFiles, image_files, load
from apm_core.data.dataset import Dataset, PublicSize
from apm_core.data.request import Request
from apm_core.errors import DataError

# ImageNet's customary figures, as in the distillation literature; not measured on this set
CHANNELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZE = PublicSize(100_000, 10_000, 3, 64, 200, "tiny-imagenet-200/train")


def read(request: Request) -> Dataset:
    """Read the folder `tiny-imagenet-200` as distributed, or with `val` sorted into classes.

    Classes are those of wnids.txt that have a training folder, in sorted order.

    Raises:
        DataError: missing files or damaged images.
    """
    root = request.root / "tiny-imagenet-200"
    again = f"unpack tiny-imagenet-200.zip of Stanford CS231N in {request.root}"
    if not (root / "wnids.txt").is_file():
        raise DataError(f"{root / 'wnids.txt'} is missing: {again}")
    listed = set((root / "wnids.txt").read_text().split())
    wnids = sorted(wnid for wnid in listed if (root / "train" / wnid).is_dir())
    if not wnids:
        raise DataError(f"{root / 'train'} has none of the classes of wnids.txt: {again}")
    train = {wnid: image_files(root / "train" / wnid) for wnid in wnids}
    test = _test_files(root / "val", wnids)
    for split, files in (("train", train), ("val", test)):
        empty = [wnid for wnid in wnids if not files[wnid]]
        if empty:
            raise DataError(f"{root / split} has no images of class {empty[0]}: {again}")
    warning = (
        f"{root / 'train'} has {len(wnids)} of the {len(listed)} classes of wnids.txt: "
        "the others are left out"
    )
    return load(
        train,
        test,
        request.form,
        class_names=_class_names(root / "words.txt", wnids),
        warnings=(warning,) if len(wnids) < len(listed) else (),
        skip_unreadable=request.skip_unreadable,
        room=request.room,
    )


def _test_files(val: Path, wnids: list[str]) -> ClassFiles:
    """Validation files by class, in any of the three arrangements in circulation."""
    for sorted_root in (val / "images", val):
        if any((sorted_root / wnid).is_dir() for wnid in wnids):
            return {wnid: image_files(sorted_root / wnid) for wnid in wnids}
    annotations = val / "val_annotations.txt"
    if not annotations.is_file():
        raise DataError(
            f"{annotations} is missing and {val} has no class folders: "
            "unpack tiny-imagenet-200.zip again"
        )
    files: ClassFiles = {wnid: [] for wnid in wnids}
    for line in annotations.read_text().splitlines():
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid in files:
            files[wnid].append(val / "images" / name)
    return {wnid: sorted(paths) for wnid, paths in files.items()}


def _class_names(words: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first synonym of every class, or its identifier where words.txt lacks it."""
    lines = words.read_text("utf-8").splitlines() if words.is_file() else []
    synonyms = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(synonyms.get(wnid, wnid).split(",")[0] for wnid in wnids)
