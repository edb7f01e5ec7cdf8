"""How large the data set of a run is."""

from dataclasses import dataclass
from pathlib import Path

from apm_core.data import public_size
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
    """What the prepared data hold, else what everybody knows of the set, else what lies in the
    folder; None where only reading the images would tell.

    Raises DataError for a folder that cannot be used.
    """
    file = Path("work", plan.settings.dataset.name, "data.zarr.zip")
    if file.is_file():
        data = PreparedData.open(file)
        counts = (data.artifact.shapes[f"{split}_images"][0] for split in ("train", "test"))
        return Size(*counts, data.shape)
    images = plan.prepare().images
    known = public_size(images.source)
    if known:
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
