"""Decodes files and arrays into one uint8 array of square images with 1 or 3 channels."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from apm_core.data.room import IN_MEMORY, Decoded, Room
from apm_core.errors import ConfigError, DataError
from apm_core.settings.dataset import LARGEST, SMALLEST

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
ORIENTATION_TAG = 0x0112  # EXIF; values 5 to 8 exchange width and height
BLOCK = 256  # images per task: one future per image would cost gigabytes on ImageNet
NAMED = 3  # damaged files named in a message


@dataclass(frozen=True)
class ImageForm:
    """The target size, channels and fit of images.

    Attributes:
        resolution: side in pixels, or None to keep a side that all images share.
        channels: 1, 3, or None for 3 unless every image is greyscale.
        fit: "squash" resizes the whole image; "crop" resizes the shorter side and cuts the centre.

    Raises:
        ConfigError: a value out of bounds.
    """

    resolution: int | None = None
    channels: int | None = None
    fit: str = "squash"

    def __post_init__(self) -> None:
        if self.resolution is not None and not SMALLEST <= self.resolution <= LARGEST:
            raise ConfigError(
                f"dataset.resolution must be {SMALLEST} to {LARGEST} pixels, not {self.resolution}"
            )
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"dataset.channels must be 1, 3 or empty, not {self.channels}")
        if self.fit not in ("squash", "crop"):
            raise ConfigError(f"dataset.fit must be 'squash' or 'crop', not {self.fit!r}")


class Header(NamedTuple):
    """Size and colour of a file, read before its pixels; width and height after EXIF rotation."""

    width: int
    height: int
    grey: bool


def decode(paths: Sequence[Path], form: ImageForm, room: Room = IN_MEMORY) -> np.ndarray:
    """Decode image files into one array (N, C, S, S) uint8, in the order given.

    Raises DataError for damaged files, and what `decode_readable` raises.
    """
    images, damage = _decoded(paths, form, room)
    if damage:
        first = "; ".join(damage[i] for i in sorted(damage)[:NAMED])
        more = ", ..." if len(damage) > NAMED else ""
        raise DataError(
            f"{len(damage)} of {len(paths)} images cannot be read: {first}{more}: replace or remove"
            " these files, or set dataset.skip_unreadable"
        )
    return images.pixels


def decode_readable(
    paths: Sequence[Path], form: ImageForm, room: Room = IN_MEMORY
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode the image files that can be read into one array, in the order given.

    EXIF orientation is applied, 16-bit values are scaled to 8 bits, transparency is laid on white,
    and of an animation the first frame is taken. Whether a file is greyscale is taken from its
    mode, not from its pixels.

    Args:
        paths: image files.
        form: target side, channels and fit.
        room: where the array lies; what it already holds of these files is not decoded again.

    Returns:
        (M, C, S, S) uint8; by position in `paths` the other N - M files, with the reason.

    Raises:
        DataError: sizes that differ or are not square without a resolution.
    """
    images, damage = _decoded(paths, form, room)
    return images.without(damage), damage


def _decoded(paths: Sequence[Path], form: ImageForm, room: Room) -> tuple[Decoded, dict[int, str]]:
    """All images, and by position the files that cannot be read, whose pixels are not set."""
    with ThreadPoolExecutor() as executor:
        headers: list[Header | None] = [None] * len(paths)

        def look(rows: Sequence[int]) -> None:
            for i in rows:
                headers[i] = header(paths[i])

        _in_blocks(executor, range(len(paths)), look)
        side = form.resolution or _common_side(paths, headers)
        channels = form.channels or (1 if all(h.grey for h in headers if h) else 3)
        images = room.images(paths, (channels, side, side), form)
        damage: dict[int, str] = {}

        def fill(rows: Sequence[int]) -> None:
            for i in rows:
                try:
                    with Image.open(paths[i]) as image:
                        images.pixels[i] = _pixels(image, channels, side, form.fit)
                except Exception as error:  # each codec raises its own kinds on damaged bytes
                    damage[i] = " ".join(f"{paths[i]} ({error})".split())
            images.done([i for i in rows if i not in damage])

        _in_blocks(executor, images.missing, fill)
    return images, damage


def refit(images: np.ndarray, form: ImageForm) -> np.ndarray:
    """Bring decoded images to `form` with the same resampling as files.

    Args:
        images: (N, C, H, W) uint8.
        form: target side, channels and fit.

    Returns:
        (N, C', S, S) uint8, contiguous; the input itself where nothing changes.
    """
    count, channels, height, _ = images.shape
    shape = (form.channels or channels, form.resolution or height)
    if shape == (channels, height):
        return np.ascontiguousarray(images)
    result = np.empty((count, shape[0], shape[1], shape[1]), dtype=np.uint8)

    def fill(rows: Sequence[int]) -> None:
        for i in rows:
            picture = images[i, 0] if channels == 1 else images[i].transpose(1, 2, 0)
            result[i] = _pixels(Image.fromarray(np.ascontiguousarray(picture)), *shape, form.fit)

    with ThreadPoolExecutor() as executor:
        _in_blocks(executor, range(count), fill)
    return result


def _in_blocks(
    executor: ThreadPoolExecutor, rows: Sequence[int], work: Callable[[Sequence[int]], None]
) -> None:
    """Call `work` with blocks of `rows`, one per task."""
    blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
    for _ in executor.map(work, blocks):  # fetching the results raises their errors
        pass


def header(path: Path) -> Header | None:
    """Size and kind of a file; None if damaged, which decoding then reports with all the others."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION_TAG, 1) >= 5:
                width, height = height, width
            return Header(width, height, image.mode in GREY_MODES)
    except Exception:  # each codec raises its own kinds on damaged bytes
        return None


def _common_side(paths: Sequence[Path], headers: Sequence[Header | None]) -> int:
    """The side that all images share; raises DataError when they differ or are not square."""
    sizes: dict[tuple[int, int], Path] = {}
    for path, header in zip(paths, headers, strict=True):
        if header:
            sizes.setdefault((header.width, header.height), path)
    lines = [f"{path} is {width} x {height}" for (width, height), path in sizes.items()]
    if len(lines) > 1:
        raise DataError(f"images differ in size: {lines[0]}, {lines[1]}: set dataset.resolution")
    width, height = next(iter(sizes), (1, 1))  # nothing readable: decoding says so
    if width != height:
        raise DataError(f"images are not square: {lines[0]}: set dataset.resolution")
    return width


def _pixels(image: Image.Image, channels: int, side: int, fit: str) -> np.ndarray:
    """One image as (channels, side, side) uint8."""
    image = _plain(ImageOps.exif_transpose(image), channels)
    if fit == "crop":
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    else:
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(side, side, channels).transpose(2, 0, 1)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """The image in 8 bits, opaque, in mode L or RGB."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save them with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255 instead of scaling
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError("pixel values exceed 16 bits; save them with 8 or 16 bits")
        image = Image.fromarray(np.rint(values / np.float32(257)).astype(np.uint8))
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").convert("RGB" if channels == 3 else "L")
