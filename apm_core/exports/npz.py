"""One file for NumPy: images, targets and classes."""

from pathlib import Path

import numpy as np

from apm_core import sidecar
from apm_core.distilled import DistilledSet
from apm_core.runtime import store

SUFFIX = ".npz"


def export(distilled: DistilledSet, path: Path) -> None:
    """Write `images` (N, C, H, W) float32, as networks see them, `targets`, logits (N, classes) or
    class indices (N,), and `classes` (N,).
    """
    arrays = {name: getattr(distilled, name).numpy() for name in ("images", "targets", "classes")}
    with store.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    sidecar.write(distilled, path, "npz", pixels=False)
