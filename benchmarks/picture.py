"""Distilled images, beside real ones where the data are named: a column for each class.

    python -m benchmarks.picture SET OUT.png --data work/digits/data.zarr.zip

The real images are the first of each class in the order in which shards take theirs: those that a
method with `start: real` moved.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apm_core import load
from apm_core.data.prepared import PreparedData
from apm_core.runtime import store

CLASSES = 10  # shown at most
WIDTH = 900  # of the picture, about
MARGIN, GAP = 90, 6  # pixels
FONT = ImageFont.load_default(15)


def real(data: PreparedData, count: int) -> np.ndarray:
    """The first `count` training images of the first classes, (classes, count, H, W, 3) uint8."""
    pixels = np.moveaxis(data.pictures(count, CLASSES), 2, -1)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def picture(rows: dict[str, np.ndarray], names: list[str]) -> Image.Image:
    """A sheet with a block of rows for each label, of images (classes, count, H, W, 3)."""
    classes, _, height, width = next(iter(rows.values())).shape[:4]
    zoom = max(1, ((WIDTH - MARGIN) // classes - GAP) // width)
    high, wide = height * zoom + GAP, width * zoom + GAP
    count = sum(images.shape[1] for images in rows.values())
    size = (MARGIN + classes * wide, 24 + count * high + 3 * GAP * (len(rows) - 1))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        at = (MARGIN + column * wide + (wide - GAP) // 2, 12)
        draw.text(at, name, fill="black", font=FONT, anchor="mm")
    top = 24
    for label, images in rows.items():
        block = images.shape[1] * high
        draw.text((4, top + (block - GAP) // 2), label, fill="black", font=FONT, anchor="lm")
        for column, row in np.ndindex(images.shape[:2]):
            pixels = images[column, row].repeat(zoom, axis=0).repeat(zoom, axis=1)
            sheet.paste(Image.fromarray(pixels), (MARGIN + column * wide, top + row * high))
        top += block + 3 * GAP
    return sheet


def main() -> None:
    """Read both files, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("distilled", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="the data artifact, for real images beside them")
    parser.add_argument("--rows", type=int, default=2, help="images of a class, of each kind")
    options = parser.parse_args()
    distilled = load(options.distilled).select(ipc=options.rows)
    shape = (len(distilled.class_names), options.rows, *distilled.images_rgb().shape[1:])
    rows = {"distilled": distilled.images_rgb().reshape(shape)}
    if options.data:
        rows = {"real": real(PreparedData.open(options.data), options.rows), **rows}
    rows = {label: images[:CLASSES] for label, images in rows.items()}
    sheet = picture(rows, list(distilled.class_names[:CLASSES]))
    with store.atomic_path(options.out) as temporary:
        sheet.quantize(256).save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
