"""The gallery of the page: real images beside distilled ones, from the first round to the last."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apm_core.data.prepared import PreparedData
from apm_core.data.tiles import Tiles
from apm_core.data.whitening import Whitening, to_uint8
from apm_core.distilled import DistilledSet
from apm_core.methods.history import CLASSES, IPC, History, shown

GAP = 1  # white pixels between images
BUDGET = 12 << 20  # bytes of the pixels of a page; classes beyond it are left out
LEAST_CLASSES = 4
ZOOMED = 40  # pixels of a screen that an image is wide, at least
END = "end"  # of the rounds
Frames = Mapping[str, Tensor]  # images (n, C, H, W) uint8, class by class, by rounds done


@dataclass(frozen=True)
class Sheet:
    """A picture with a row of images for each class."""

    png: str  # base64
    width: int
    height: int

    @classmethod
    def of(cls, images: np.ndarray, classes: int) -> "Sheet":
        """Of images (n, C, H, W) uint8, n / classes in a row; grey ones in three equal channels."""
        pixels = np.moveaxis(images, 1, -1)
        pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
        framed = np.pad(pixels, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
        count, high, wide, _ = framed.shape
        grid = framed.reshape(classes, count // classes, high, wide, 3).swapaxes(1, 2)
        sheet = Image.fromarray(grid.reshape(classes * high, -1, 3))
        out = io.BytesIO()
        sheet.save(out, format="PNG", optimize=True)
        return cls(base64.b64encode(out.getvalue()).decode(), sheet.width, sheet.height)

    def element(self, zoom: int, alternative: str, *, hidden: bool = False) -> str:
        """The picture, enlarged, in a page."""
        return (
            f'<img src="data:image/png;base64,{self.png}" width="{zoom * self.width}"'
            f' height="{zoom * self.height}" alt="{escape(alternative)}"'
            f"{' hidden' if hidden else ''}>"
        )


def gallery(
    sets: Mapping[str, DistilledSet], data: PreparedData, histories: Mapping[str, History]
) -> str:
    """A figure for each set: a row for each class, real images left, those of the set right, and a
    slider over the rounds where there is a history. Sets of tiles are shown as they are stored, and
    as networks see them.
    """
    any_set = next(iter(sets.values()))
    classes = list(any_set.class_names)[: _affordable(sets, histories)]
    real = data.pictures(min(IPC, any_set.ipc), len(classes))
    sheet = Sheet.of(real.reshape(-1, *real.shape[2:]), len(classes))
    figures = (
        _figure(name, one, histories.get(name), sheet, classes) for name, one in sets.items()
    )
    return (
        f"<p>True colours, the whitening undone; {len(classes)} of {len(any_set.class_names)}"
        " classes. The slider goes back to the images that the distillation started from.</p>"
        f'<div class="sets">{"".join(figures)}</div>'
    )


def _affordable(sets: Mapping[str, DistilledSet], histories: Mapping[str, History]) -> int:
    """How many classes are shown."""
    any_set = next(iter(sets.values()))
    frames = sum(
        (2 + (len(histories[name].seen) if name in histories else 0)) * (1 + (one.tiles**2))
        for name, one in sets.items()
    )
    bytes_of_a_class = IPC * frames * 3 * any_set.stored.shape[-1] ** 2
    most = max(LEAST_CLASSES, BUDGET // bytes_of_a_class)
    return min(CLASSES, most, len(any_set.class_names))


def _figure(
    name: str, one: DistilledSet, history: History | None, real: Sheet, classes: Sequence[str]
) -> str:
    zoom = max(1, -(-ZOOMED // one.stored.shape[-1]))
    frames = _frames(one, history, len(classes))
    rows = f"images of {', '.join(classes)}, a row for each"
    labels = "".join(f"<span>{escape(label)}</span>" for label in classes)
    parts = [_block("real", real.element(zoom, f"real {rows}"))]
    title, what = "in the set", f"{name}, {rows}"
    if one.tiles > 1:
        stored = f"stored, {one.tiles} x {one.tiles} tiles"
        parts.append(_block(stored, _strip(frames, zoom, f"{stored}: {what}", len(classes))))
        decoder = Tiles(one.tiles, Whitening("none"))
        frames = {when: to_uint8(decoder.decode(frame)) for when, frame in frames.items()}
        title = "as networks see them"
    parts.append(_block(title, _strip(frames, zoom, what, len(classes))))
    kind = "set tiled" if one.tiles > 1 else "set"
    return (
        f'<figure class="{kind}"><figcaption><h3>{escape(name)}</h3>{_slider(name, list(frames))}'
        f'</figcaption><div class="wide" tabindex="0"><div class="rows">'
        f'<div class="block"><span></span><div class="labels">{labels}</div></div>'
        f"{''.join(parts)}</div></div></figure>"
    )


def _frames(one: DistilledSet, history: History | None, count: int) -> Frames:
    """The stored images of the first `count` classes, at each snapshot and at the end."""
    frames = {END: one.pixels[shown(one.classes[:: one.tiles**2])]}
    if history:
        earlier = zip(history.seen.tolist(), torch.from_numpy(history.images), strict=True)
        frames = {str(done): frame for done, frame in earlier} | frames
    kept = min(CLASSES, len(one.class_names))
    return {when: frame[: len(frame) // kept * count] for when, frame in frames.items()}


def _strip(frames: Frames, zoom: int, what: str, classes: int) -> str:
    """All frames in one place, of which the last is seen."""
    return "".join(
        Sheet.of(frame.numpy(), classes).element(
            zoom, what if when == END else f"{what}, after {when} rounds", hidden=when != END
        )
        for when, frame in frames.items()
    )


def _slider(name: str, when: Sequence[str]) -> str:
    """A slider over the frames, which stands at the last one; none for a single frame."""
    if len(when) == 1:
        return ""
    last = len(when) - 1
    return (
        f'<label class="slider">rounds done <input type="range" min="0" max="{last}"'
        f' value="{last}" data-rounds="{" ".join(when)}"'
        f' aria-label="rounds done of {escape(name)}"> <output>{END}</output></label>'
    )


def _block(title: str, images: str) -> str:
    return f'<div class="block"><span>{title}</span><div class="frames">{images}</div></div>'
