"""1,797 scans of handwritten digits, 8 x 8 pixels of 17 levels, shipped with scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits

from apm_core.data.dataset import Dataset, PublicSize, cut
from apm_core.data.images import refit
from apm_core.data.request import Request

CHANNELS = None
SIZE = PublicSize(1438, 359, 1, 8, 10)  # split at the default dataset.test_fraction


def read(request: Request) -> Dataset:
    """Read and split the scans; raises ConfigError for a share of test images out of bounds."""
    scans = load_digits()
    images = refit(np.rint(scans.images * (255 / 16)).astype(np.uint8)[:, None], request.form)
    labels = scans.target.astype(np.int64)
    names = tuple(str(digit) for digit in scans.target_names)
    train, test = cut(
        images, labels, names, fraction=request.test_fraction, seed=request.split_seed
    )
    return Dataset(train, test, names)
