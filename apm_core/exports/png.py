"""Exports a distilled set as PNG files in one folder per class, with a CSV table of targets."""

import csv
import re
from pathlib import Path

import numpy as np
from PIL import Image

from apm_core.distilled import DistilledSet

LONGEST = 50  # characters of a class name: 4 bytes each, they must fit into a file name of 255


def export(distilled: DistilledSet, folder: Path) -> None:
    """Write `CLASS/000.png`, in true colours, and `labels.csv`: file, class index and targets.

    A class folder is the index and the name of the class, with `_` for characters that a file
    name may not have.
    """
    names = [_folder(c, distilled.class_names) for c in range(len(distilled.class_names))]
    digits = max(3, len(str(distilled.ipc * distilled.tiles**2 - 1)))
    counts = dict.fromkeys(names, 0)  # images by class folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        targets = distilled.targets.numpy().reshape(len(distilled), -1)  # one column for indices
        images = distilled.images_rgb()
        table.writerow(["file", "class", *(f"target_{c}" for c in range(targets.shape[1]))])
        for c, pixels, row in zip(distilled.classes.tolist(), images, targets, strict=True):
            path = f"{names[c]}/{counts[names[c]]:0{digits}}.png"
            counts[names[c]] += 1
            _save(pixels, folder / path)
            table.writerow([path, c, *row])


def _folder(c: int, class_names: tuple[str, ...]) -> str:
    """The folder name of class `c`: its index, which makes it unique, and its name."""
    digits = max(2, len(str(len(class_names) - 1)))
    name = re.sub(r"[^\w-]+", "_", class_names[c])
    return f"{c:0{digits}}_{name[:LONGEST]}"


def _save(pixels: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) uint8 as a PNG."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
