"""Reads the files in which distilled sets are published, and no more than they say."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apm_core.data.class_folders import TABLE, class_files
from apm_core.data.images import ImageForm, decode
from apm_core.errors import ArtifactError, DataError
from apm_core.exports.folder import TARGET
from apm_core.runtime import tensor_file

REMEDY = "get the file again"


@dataclass(frozen=True)
class Published:
    """What the files of a set hold.

    Attributes:
        images: (N, C, S, S) float32, in a space that they do not tell; or uint8 pixels.
        targets: (N, classes) float32, or class indices (N,) int64.
        lr: the learning rate that comes with them.
        class_names: where the files have them.
        classes: (N,) int64, where the files have them beside soft targets.
    """

    images: Tensor
    targets: Tensor
    lr: float | None = None
    class_names: tuple[str, ...] | None = None
    classes: Tensor | None = None


def read(path: Path) -> Published:
    """Read a set by its form: a folder with images.pt or with class folders, a .pt or .npz file.

    Raises ArtifactError when it is missing, damaged or of no such form, DataError for images and
    labels that do not go together.
    """
    found = _reader(path)(path)
    images, targets = found.images, found.targets
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
        raise DataError(
            f"{path}: images of shape {tuple(images.shape)}: expected (N, channels, side, side)"
            " with 1 or 3 channels"
        )
    if not len(images) or len(targets) != len(images) or targets.ndim > 2:
        raise DataError(
            f"{path}: {len(images)} images and labels of shape {tuple(targets.shape)}: expected as"
            " many labels as images"
        )
    for name, tensor in (("images", images), ("labels", targets)):
        if not torch.isfinite(tensor).all():
            raise DataError(f"{path}: {name} hold values that are not finite: {REMEDY}")
    return found


def _reader(path: Path) -> Callable[[Path], Published]:
    if not path.exists():
        raise ArtifactError(f"{path}: there is no such file or folder: check the path")
    if path.is_dir():
        return _tensors if (path / "images.pt").is_file() else _folder
    readers = {".pt": _pt, ".pth": _pt, ".npz": _npz}
    if path.suffix not in readers:
        raise ArtifactError(
            f"{path}: none of the forms that are read: a .pt file with [images, labels], a folder"
            " with images.pt and labels.pt, an .npz file, or a folder of class folders"
        )
    return readers[path.suffix]


def _pt(path: Path) -> Published:
    value = _load(path)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ArtifactError(f"{path}: holds {_described(value)}: expected [images, labels]")
    images, targets = value
    return Published(_images(images, path), _targets(targets, path))


def _tensors(path: Path) -> Published:
    images = _images(_load(path / "images.pt"), path / "images.pt")
    labels = path / "labels.pt"
    if not labels.is_file():
        raise ArtifactError(f"{labels}: there is no such file: a set needs labels")
    lr = None
    if (path / "lr.pt").is_file():
        lr = _rate(_load(path / "lr.pt"), path / "lr.pt")
    return Published(images, _targets(_load(labels), labels), lr)


def _npz(path: Path) -> Published:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    except Exception as error:  # damage surfaces as errors of zipfile, zlib, numpy and torch
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: the file is damaged ({reason}): {REMEDY}") from error
    targets = arrays.get("targets", arrays.get("labels"))
    if "images" not in arrays or targets is None:
        names = ", ".join(arrays) or "nothing"
        raise ArtifactError(f"{path}: holds {names}: expected images and targets (or labels)")
    classes = arrays.get("classes")
    if classes is not None:
        classes = _targets(classes, path)
    return Published(_images(arrays["images"], path), _targets(targets, path), classes=classes)


def _folder(path: Path) -> Published:
    """Class folders, sorted, below `path` or its `train`; targets from the columns `target_*` of
    `labels.csv` where it has them, else class indices.
    """
    root = path / "train" if (path / "train").is_dir() else path
    files = class_files(root)
    paths = [one for own in files.values() for one in own]
    images = torch.from_numpy(decode(paths, ImageForm()))
    classes = [c for c, own in enumerate(files.values()) for _ in own]
    targets = None
    if (path / TABLE).is_file():
        targets = _table(path / TABLE, [one.relative_to(path).as_posix() for one in paths])
    if targets is None:
        targets = torch.tensor(classes)
    return Published(images, targets, class_names=tuple(files), classes=torch.tensor(classes))


def _table(path: Path, names: list[str]) -> Tensor | None:
    """The targets of the files `names` in a table; None where it has no columns of targets."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = [name for name in table.fieldnames or () if name.startswith(TARGET)]
            if not columns:
                return None
            rows = {row["file"]: [float(row[name]) for name in columns] for row in table}
        values = torch.tensor([rows[name] for name in names])
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ArtifactError(f"{path}: the table is damaged ({error}): {REMEDY}") from error
    except KeyError as error:
        raise ArtifactError(f"{path}: has no line for {error}: {REMEDY}") from error
    return values[:, 0].long() if len(columns) == 1 else values


def _load(path: Path) -> Any:  # noqa: ANN401 - what was saved
    return tensor_file.read(path, what="the file", remedy=f"{REMEDY}, as tensors without classes")


def _images(value: Any, path: Path) -> Tensor:  # noqa: ANN401
    if not _is_plain(value):
        raise ArtifactError(f"{path}: the images are {_described(value)}: expected a dense tensor")
    value = value.detach().contiguous()
    return value if value.dtype == torch.uint8 else value.float()


def _targets(value: Any, path: Path) -> Tensor:  # noqa: ANN401
    if not _is_plain(value) or value.ndim not in (1, 2):
        raise ArtifactError(
            f"{path}: the labels are {_described(value)}: expected class indices (N,) or logits"
            " (N, classes), dense"
        )
    value = value.detach().contiguous()
    if value.ndim == 2:
        return value.float()
    if value.is_floating_point() and not torch.equal(value, value.round()):
        raise ArtifactError(f"{path}: the labels (N,) are no whole numbers: expected class indices")
    return value.long()


def _is_plain(value: Any) -> bool:  # noqa: ANN401
    """Whether `value` is a tensor of real numbers that are all there."""
    if not isinstance(value, Tensor) or value.is_quantized or value.is_complex():
        return False
    return value.layout == torch.strided and value.device.type == "cpu"


def _rate(value: Any, path: Path) -> float:  # noqa: ANN401
    lr = float(value) if isinstance(value, int | float) else math.nan
    if _is_plain(value) and value.numel() == 1:
        lr = float(value.detach())
    if not 0 < lr < math.inf:
        raise ArtifactError(
            f"{path}: holds {_described(value)}: expected one learning rate above 0"
        )
    return lr


def _described(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
