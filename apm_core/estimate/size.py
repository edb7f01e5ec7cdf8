"""How large the data set of a run is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apm_core.data import public_size
from apm_core.data.dataset import PublicSize
from apm_core.data.prepared import PreparedData
from apm_core.data.survey import survey
from apm_core.nets.base import Shape
from apm_core.settings.plan import Plan


@dataclass(frozen=True)
class Size:
    """The data set of a run."""

    train: int  # images
    test: int
    shape: Shape


def size_of(plan: Plan) -> Size | None:
    """What the prepared data hold, if they are of these settings, else what everybody knows of the
    set, else what lies in the folder; None where only reading the images would tell.

    Raises DataError for a folder that cannot be used.
    """
    file = Path("work", plan.settings.dataset.name, "data.zarr.zip")
    if file.is_file():
        data = PreparedData.open(file)
        if _images(data.artifact.settings) == _images(plan.prepare().to_dict()):
            counts = (data.artifact.shapes[f"{split}_images"][0] for split in ("train", "test"))
            return Size(*counts, data.shape)
    images = plan.prepare().images
    known = public_size(images.source)
    if known:
        known = _there(known, images.data_dir)
        train, test, classes = known.train, known.test, known.classes
        channels, side = known.channels, known.side
    elif images.data_dir and Path(images.data_dir).expanduser().is_dir():
        fraction = images.test_fraction
        found = survey(Path(images.data_dir).expanduser(), test_fraction=fraction)
        train, test = sum(found.train.values()), sum(found.test.values())
        channels, classes = found.channels, len(found.train)
        side = found.side if found.alike else None
    else:
        return None
    side = images.resolution or side
    if side is None:
        return None
    if images.held_out:
        test = round(train * images.held_out)
        train -= test
    return Size(train, test, Shape(images.channels or channels, side, classes))


def _images(prepared: Mapping[str, Any]) -> dict[str, Any]:
    """What decides on the images among settings of the data stage, wherever the files lie."""
    return {key: value for key, value in prepared["images"].items() if key != "data_dir"}


def _there(known: PublicSize, data_dir: str | None) -> PublicSize:
    """The size of the classes that there are folders of; of all, where there are none."""
    root = Path(data_dir or "").expanduser() / (known.folder or "")
    if not (data_dir and known.folder and root.is_dir()):
        return known
    classes = min(known.classes, sum(path.is_dir() for path in root.iterdir())) or known.classes
    train, test = (images * classes // known.classes for images in (known.train, known.test))
    return replace(known, classes=classes, train=train, test=test)
