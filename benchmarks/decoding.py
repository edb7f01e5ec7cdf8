"""How fast a folder of photographs is decoded, against Pillow alone.

    python -m benchmarks.decoding

JPEGs of the size of ImageNet's are made in a temporary folder and brought to 64x64, on all cores,
in turns: by `decode`, which stage 1 calls, and by threads that open, resize and store each file and
do nothing else: no headers first, no orientation, no transparency, no list of damaged files.
"""

import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apm_core.data.images import ImageForm, decode
from apm_core.runtime import memory
from apm_core.runtime.device import Compute
from benchmarks.measure import options, ratio, record, show, together

SIDE = 64  # pixels of the decoded images
SIZE, QUICK_SIZE = (500, 375), (40, 30)  # of the files, as most of ImageNet's
COUNT, QUICK_COUNT = 2000, 20
GRAIN = 25  # pixels between the random values that a picture interpolates


def pictures(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Write `count` JPEGs of smooth noise, all different, of a width and a height."""
    random = np.random.default_rng(0)
    coarse = [max(2, side // GRAIN) for side in reversed(size)]
    paths = []
    for index in range(count):
        values = random.integers(0, 256, (*coarse, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def by_pillow(paths: Sequence[Path]) -> np.ndarray:
    """Images (N, 3, S, S) uint8, with as many threads as `decode` has."""
    images = np.empty((len(paths), 3, SIDE, SIDE), dtype=np.uint8)

    def fill(index: int) -> None:
        with Image.open(paths[index]) as image:
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        images[index] = np.asarray(small).transpose(2, 0, 1)

    with ThreadPoolExecutor() as executor:
        list(executor.map(fill, range(len(paths))))
    return images


def report(compute: Compute, quick: bool) -> dict[str, Any]:
    """Measure both ways and print a table; the memory is what the process's peak grew by."""
    count, size = (QUICK_COUNT, QUICK_SIZE) if quick else (COUNT, SIZE)
    form = ImageForm(resolution=SIDE)
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(Path(folder), count, size)
        memory.reset_peak(compute)
        before = memory.peak(compute)
        held = decode(paths, form).nbytes
        grown = memory.peak(compute) - before
        ways = {"Pillow alone": lambda: by_pillow(paths), "ours": lambda: decode(paths, form)}
        times = together(ways, compute)
    rows = [
        {
            "way": way,
            "images/s": count / statistics.median(times[way]),
            "x Pillow": ratio(times, way, "Pillow alone"),
        }
        for way in ways
    ]
    show(f"{count} JPEGs of {size[0]}x{size[1]} to {SIDE}x{SIDE}", rows)
    return {
        "files": {"count": count, "width": size[0], "height": size[1]},
        "side": SIDE,
        "rows": rows,
        "MB of the images": held / 1e6,
        "MB that the peak grew by": grown / 1e6,
    }


if __name__ == "__main__":
    record("decoding", report, options(__doc__).parse_args())
