"""ImageNet-1K as an image tree or as the public down-sampled batches.

Down-sampled ImageNet: Chrabaszcz, Loshchilov and Hutter, "A Downsampled Variant of ImageNet as an
Alternative to the CIFAR datasets", 2017 (arXiv:1707.08819). The validation images serve as test
split, as in the distillation literature.
"""

import zipfile
from math import isqrt
from pathlib import Path

import numpy as np

from apm_core.data.class_folders import load, read_splits
from apm_core.data.dataset import Dataset, PublicSize, Split
from apm_core.data.images import ImageForm, refit
from apm_core.data.request import Request
from apm_core.errors import DataError

TRAIN_BATCHES = tuple(f"train_data_batch_{i}.npz" for i in range(1, 11))
TEST_BATCHES = ("val_data.npz",)
# the customary figures, as in the distillation literature; not measured on these images
CHANNELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZE = PublicSize(1_281_167, 50_000, 3, None, 1000, "train")


def read(request: Request) -> Dataset:
    """Read ImageNet-1K: class folders below `train/` and `val/`, or the down-sampled npz batches.

    Raises:
        DataError: neither of the two is complete, or damaged files.
    """
    data_dir, form = request.root, request.form
    if (data_dir / "train").is_dir():
        splits = read_splits(data_dir, tests=("val",))
        return load(*splits, form, skip_unreadable=request.skip_unreadable, room=request.room)
    missing = [name for name in TRAIN_BATCHES + TEST_BATCHES if not (data_dir / name).is_file()]
    if missing:
        raise DataError(
            f"{data_dir} has no train/ folder and lacks {missing[0]} ({len(missing)} of 11 "
            "batches): put there train/ and val/ with class folders, "
            "or train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz"
        )
    train = _read_batches([data_dir / name for name in TRAIN_BATCHES], form)
    test = _read_batches([data_dir / name for name in TEST_BATCHES], form)
    # the batches number the classes in an order of their own and carry no names
    class_names = tuple(str(label + 1) for label in range(train.labels.max() + 1))
    return Dataset(train, test, class_names)


def _read_batches(paths: list[Path], form: ImageForm) -> Split:
    """Read batches of `data` (N, 3*S*S) uint8 and `labels` (N,) from 1, one batch at a time."""
    labels = [_member(path, "labels").astype(np.int64).ravel() - 1 for path in paths]
    ends = np.cumsum([len(part) for part in labels])
    images: np.ndarray | None = None
    for path, part, end in zip(paths, labels, ends, strict=True):
        data = _member(path, "data")
        side = isqrt(data.shape[-1] // 3)
        lowest, expected = part.min(initial=0) + 1, (len(part), 3 * side * side)
        if data.dtype != np.uint8 or data.shape != expected or lowest < 1:
            raise DataError(
                f"{path} holds data {data.shape} {data.dtype} and labels from {lowest}: expected "
                f"({len(part)}, 3*S*S) uint8 and labels from 1; download it again"
            )
        batch = refit(data.reshape(-1, 3, side, side), form)
        if images is None:
            images = np.empty((ends[-1], *batch.shape[1:]), dtype=np.uint8)
        if batch.shape[1:] != images.shape[1:]:
            raise DataError(f"{path} has side {side}, unlike {paths[0]}: set dataset.resolution")
        images[end - len(part) : end] = batch
    return Split(images, np.concatenate(labels))


def _member(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as batch:
            return batch[key]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} has no readable {key!r} ({error}): download it again") from error
