"""`apm inspect` and `apm doctor`: files and folders in words, sets also in pictures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.text import Text

from apm_core import distilled
from apm_core.data import examine, prepared, read, whitening_file
from apm_core.data.whitening_file import WhiteningFile
from apm_core.distilled import DistilledSet
from apm_core.report import continual as continual_report
from apm_core.report import table
from apm_core.runtime import store
from apm_core.stages import continual, distill
from apm_core.training import teacher_pool

GALLERY_CLASSES, GALLERY_IPC, GALLERY_SIDE = 10, 8, 16  # at most; the last in pixels of an image
JSON_KINDS = ("scores", "ranking")
TABLES = {"results": table.table, continual.KIND: continual_report.table}


def show(path: Path, *, gallery: bool | None) -> None:
    """Print what the file `path` is, and images of a distilled set: always, never, or (None) on a
    terminal with colours.

    Raises ArtifactError when it cannot be read.
    """
    console = Console(
        soft_wrap=True,
        highlight=False,
        force_terminal=gallery or None,
        color_system="truecolor" if gallery else "auto",
    )
    kind = store.kind_of(path)
    if kind == distilled.KIND:
        found = distilled.load(path)
        console.print("\n".join(facts(found)), markup=False)
        colours = console.is_terminal and console.color_system is not None
        if gallery or (gallery is None and colours):
            for line in half_blocks(sheet(found, console.width)):
                console.print(line, soft_wrap=True)
    elif kind in TABLES:
        console.print(TABLES[kind](store.read_json(path, kind)[0]))
    elif kind in JSON_KINDS:
        figures, inputs = store.read_json(path, kind)
        console.print(
            "\n".join([f"{path}: {kind}", *_figures(figures), *_inputs(inputs)]), markup=False
        )
    else:
        artifact = store.read(path, kind, lazy=True)
        lines = [f"{path}: {kind}", *FACTS.get(kind, _nothing)(artifact), *_history(artifact)]
        console.print("\n".join(lines), markup=False)


def facts(found: DistilledSet) -> list[str]:
    """A distilled set in words: what it holds, how to train on it, how it was made, its cost."""
    shape, info, recipe = found.shape, found.artifact.info, found.recipe
    names = ", ".join(found.class_names[:10]) + (", ..." if len(found.class_names) > 10 else "")
    soft = found.targets.is_floating_point()
    tiles = f", decoded from tiles of {found.tiles} x {found.tiles}" if found.tiles > 1 else ""
    made = f"{info.get('method')}" + (f" (entry {info['entry']})" if "entry" in info else "")
    file = found.whitening_file
    lines = [
        f"{found.artifact.path}: distilled set, made by {made}",
        f"images    {len(found)} of {shape.classes} classes, {shape}{tiles}",
        f"classes   {names}",
        f"labels    {'logits' if soft else 'class indices'} for the loss {recipe.loss}",
        f"whitening {_place(file)}",
        f"bytes     {found.image_bytes:,} of images, {found.label_bytes:,} of labels",
        f"recipe    {recipe.passes} epochs, batch {recipe.batch}, {recipe.optimizer}, lr"
        f" {recipe.lr:g} ({recipe.schedule}), augmentation {recipe.augment}",
    ]
    if "distill_seconds" in info:
        lines.append(
            f"cost      {info['distill_seconds']:.0f} s to distil, {info['teacher_seconds']:.0f} s"
            f" of teachers, {info['peak_memory_bytes'] / 1e9:.2g} GB, on {info['device']}"
        )
    return [*lines, *_inputs(found.artifact.inputs)]


def _place(file: WhiteningFile | None) -> str:
    if file is None:
        return "none: images are pixels in [0, 1]"
    return f"{file.path}" if file.path.is_file() else f"{file.path}, which is not there"


def examined(
    folder: Path, ipc: int | None, resolution: int | None, *, skip_unreadable: bool
) -> Iterator[str]:
    """What the doctor says of a folder or archive of class folders.

    Raises DataError for what would stop a run.
    """
    found = read("folder", data_dir=folder, resolution=resolution, skip_unreadable=skip_unreadable)
    for name, split in (("train", found.train), ("test", found.test)):
        count, channels, side, _ = split.images.shape
        classes = len(found.class_names)
        yield f"{name:<5} {count} images of {classes} classes, {side}x{side}x{channels}"
    yield from (f"warning: {line}" for line in found.warnings)
    remarks = examine(found, ipc=ipc)
    yield from (f"warning: {line}" for line in remarks)
    count = len(found.warnings) + len(remarks)
    yield f"can be distilled, with {count} warning{'s' * (count != 1)}"


def sheet(found: DistilledSet, width: int) -> np.ndarray:
    """Images in rows of one class, at most `width` pixels wide: (H, W, 3) uint8, H even."""
    side = min(GALLERY_SIDE, found.shape.resolution)
    columns = max(1, min(GALLERY_IPC, (width + 1) // (side + 1)))
    images, classes = found.images_rgb(), found.classes.numpy()
    rows = []
    for c in range(min(GALLERY_CLASSES, len(found.class_names))):
        row = np.zeros((side + side % 2, columns * (side + 1), 3), np.uint8)
        for column, pixels in enumerate(images[classes == c][:columns]):
            small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
            row[:side, column * (side + 1) : column * (side + 1) + side] = np.asarray(small)
        rows.append(row)
    return np.concatenate(rows)


def half_blocks(pixels: np.ndarray) -> Iterator[Text]:
    """Lines of text that show (H, W, 3) uint8: a character is two pixels, one above the other."""
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        line = Text()
        for above, below in zip(upper, lower, strict=True):
            colours = ("rgb({},{},{})".format(*one) for one in (above, below))
            line.append("▀", Style.parse("{} on {}".format(*colours)))
        yield line


def _data(artifact: store.Artifact) -> list[str]:
    info, shapes = artifact.info, artifact.shapes
    lines = [
        f"{split:<9} {shapes[f'{split}_images'][0]} images, {shapes[f'{split}_images'][1:]}"
        for split in ("train", "test")
    ]
    lines += [f"classes   {len(info['class_names'])}", f"whitening {info['whitening']}"]
    return [*lines, *(f"warning   {one}" for one in info["warnings"])]


def _teachers(artifact: store.Artifact) -> list[str]:
    info = artifact.info
    scores = ", ".join(f"{one:.1f}" for one in info["test_accuracy"])
    count, size = artifact.shapes["parameters"]
    kept = artifact.shapes.get("snapshots")
    return [
        f"networks  {count} of {info['network']['name']}, {size:,} parameters each",
        f"accuracy  {scores} %",
        f"snapshots {kept[1] - 1 if kept else 'no'} epochs",
        f"cost      {info['seconds']:.0f} s on {info['device']} in {info['precision']}",
    ]


def _shard(artifact: store.Artifact) -> list[str]:
    info, settings = artifact.info, artifact.settings
    return [
        f"images    {artifact.shapes['images'][0]}, shard {info['shard']} of {settings['method']}",
        f"cost      {info['seconds']:.0f} s, {info['peak_memory_bytes'] / 1e9:.2g} GB, on"
        f" {info['device']}",
    ]


def _whitening(artifact: store.Artifact) -> list[str]:
    return [f"whitening {artifact.info['whitening']}"]


def _nothing(_: store.Artifact) -> list[str]:
    return []


FACTS: dict[str, Callable[[store.Artifact], list[str]]] = {
    prepared.KIND: _data,
    teacher_pool.KIND: _teachers,
    distill.KIND: _shard,
    whitening_file.KIND: _whitening,
}


def _figures(figures: dict[str, Any]) -> list[str]:
    """Score and ranking files: what was measured, and means where there are some."""
    lines = [f"measured  {', '.join(map(str, figures.get('measured', {}).values()))}"]
    protocols = figures.get("protocols", {"own": figures} if "metrics" in figures else {})
    for protocol, one in protocols.items():
        for metric, score in one["metrics"].items():
            lines.append(
                f"{metric}  {protocol}: {score['mean']:.1f} ± {score['std']:.1f} %, {score['n']}"
                " networks"
            )
    return lines


def _history(artifact: store.Artifact) -> list[str]:
    lines = [f"bytes     {Path(artifact.path).stat().st_size:,}"]
    lines += [f"setting   {key}: {value}" for key, value in artifact.settings.items()]
    return [*lines, *_inputs(artifact.inputs)]


def _inputs(inputs: Any) -> list[str]:  # noqa: ANN401 - hashes by role
    return [f"made from {role} {content[:12]}" for role, content in inputs.items()]
