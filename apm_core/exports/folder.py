"""PNG files in class folders, named as RDED and SRe2L name theirs, with a CSV table of targets."""

import csv
import re
from pathlib import Path

from PIL import Image

from apm_core import sidecar
from apm_core.data.class_folders import TABLE
from apm_core.distilled import DistilledSet

SUFFIX = None
TARGET = "target_"  # begins the names of the columns of targets
LONGEST = 50  # characters of a class name: 4 bytes each, they must fit into a file name of 255


def export(distilled: DistilledSet, path: Path) -> None:
    """Write `train/CLASS/class00000_id00000.png`, in true colours (grey sets as grey files), and
    `labels.csv`: file, class index and targets.

    A class folder is the index and the name of the class, with `_` for characters that a file
    name may not have: sorted, the folders are in the order of the classes.
    """
    path.mkdir(parents=True, exist_ok=True)
    targets = distilled.targets.numpy().reshape(len(distilled), -1)  # one column for indices
    images, counts = distilled.images_rgb(), [0] * len(distilled.class_names)
    if distilled.shape.channels == 1:
        images = images[..., 0]
    with (path / TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "class", *(f"{TARGET}{c}" for c in range(targets.shape[1]))])
        for c, pixels, row in zip(distilled.classes.tolist(), images, targets, strict=True):
            name = f"train/{_folder(c, distilled.class_names)}/class{c:05}_id{counts[c]:05}.png"
            counts[c] += 1
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path / name)
            table.writerow([name, c, *row])
    sidecar.write(distilled, path, "folder", pixels=True)


def _folder(c: int, class_names: tuple[str, ...]) -> str:
    """The folder name of class `c`: its index, which makes it unique, and its name."""
    digits = max(2, len(str(len(class_names) - 1)))
    name = re.sub(r"[^\w-]+", "_", class_names[c])
    return f"{c:0{digits}}_{name[:LONGEST]}"
