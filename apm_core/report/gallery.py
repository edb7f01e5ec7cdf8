"""A picture of the distilled images, class by class."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from apm_core.distilled import DistilledSet
from apm_core.runtime import store

GALLERY_IPC = 10  # images per class, at most
GALLERY_CLASSES = 20
ZOOM_SIDE = 48  # pixels per image, at least


def write_gallery(path: str | Path, sets: Mapping[str, DistilledSet]) -> None:
    """Write a PNG of the images, whitening undone: a block for each set, a row for each class. Sets
    of tiles have a block for their stored images too.

    `sets` is by the name of the entry and not empty.
    """
    blocks = []
    for name, distilled in sets.items():
        if distilled.tiles > 1:
            blocks.append(_block(f"{name}, stored", distilled, stored=True))
        blocks.append(_block(name, distilled, stored=False))
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    with store.atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _block(name: str, distilled: DistilledSet, *, stored: bool) -> Image.Image:
    cells = list(_class_rows(distilled, stored=stored))
    side, margin, gap = cells[0][1].shape[1], 110, 2
    columns = max(len(images) for _, images in cells)
    block = Image.new(
        "RGB", (margin + columns * (side + gap), 22 + len(cells) * (side + gap)), "white"
    )
    draw = ImageDraw.Draw(block)
    draw.text((4, 4), name, fill="black")
    for row, (label, images) in enumerate(cells):
        top = 22 + row * (side + gap)
        draw.text((4, top + side // 2 - 6), label[:16], fill="black")
        for column, pixels in enumerate(images):
            block.paste(Image.fromarray(pixels), (margin + column * (side + gap), top))
    return block


def _class_rows(distilled: DistilledSet, *, stored: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs of a class name and its first images, enlarged: (n, S, S, 3) uint8."""
    pixels = distilled.images_rgb(stored=stored)
    classes = distilled.classes.numpy()[:: len(distilled) // len(pixels)]
    zoom = max(1, ZOOM_SIDE // pixels.shape[1])
    for index, label in list(enumerate(distilled.class_names))[:GALLERY_CLASSES]:
        images = pixels[classes == index][:GALLERY_IPC]
        yield label, images.repeat(zoom, axis=1).repeat(zoom, axis=2)
