"""CIFAR-10 and CIFAR-100 through torchvision, which checks every file against its MD5.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import warnings
from http.client import HTTPException
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from apm_core.data.dataset import Dataset, Split
from apm_core.data.images import ImageForm, refit
from apm_core.data.request import Request
from apm_core.errors import DataError


def read_cifar(source: type[CIFAR10], request: Request) -> Dataset:
    """Read the official files of `source`, or their archive, in the request's folder.

    With `download`, what is missing is fetched into it; files already there are used without
    network.

    Raises:
        DataError: missing or damaged files, and no download.
    """
    data_dir = request.root
    # torchvision unpacks an archive only on the way of a download, for which an intact one suffices
    archive = data_dir / source.filename
    download = request.download or check_integrity(archive, source.tgz_md5)
    try:
        train, test = (
            _load(source, data_dir, train=part, download=download) for part in (True, False)
        )
    except (RuntimeError, OSError, HTTPException) as error:
        files = [entry[0] for entry in source.train_list + source.test_list]
        files.append(source.meta["filename"])
        reason = " ".join(str(error).split())
        raise DataError(
            f"{request.name} is not in {data_dir} ({reason}): put there {source.filename}, or the "
            f"folder {source.base_folder} with the official files {', '.join(files)}"
        ) from error
    return Dataset(_split(train, request.form), _split(test, request.form), tuple(train.classes))


def _load(source: type[CIFAR10], data_dir: Path, *, train: bool, download: bool) -> CIFAR10:
    with warnings.catch_warnings():
        # the official pickles predate NumPy 2.4, which remarks on their dtype flags
        warnings.filterwarnings("ignore", message=r"dtype\(\): align", category=Warning)
        return source(data_dir, train=train, download=download)


def _split(part: CIFAR10, form: ImageForm) -> Split:
    images = part.data.transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    return Split(refit(images, form), np.asarray(part.targets, dtype=np.int64))
