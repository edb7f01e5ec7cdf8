"""Which images, and how they are prepared."""

from typing import Annotated, Literal

from pydantic import Field

from apm_core.settings.names import names_in
from apm_core.settings.section import Above, Section, setting

Source = Literal[names_in("data.sources")]
Share = Annotated[float, Field(gt=0, lt=1)]
SMALLEST, LARGEST = 4, 1024  # pixels per side


class Images(Section):
    """What the data stage depends on."""

    source: Source | None = setting(None, "reader of the images; null: the same as dataset.name")
    data_dir: str | None = setting("data", "folder of the files, or an archive for source folder")
    resolution: Annotated[int, Field(ge=SMALLEST, le=LARGEST)] | None = setting(
        None, "pixels per side, resized with antialias; null: as the images are"
    )
    channels: Literal[1, 3] | None = setting(None, "1 or 3; null: as the images are")
    fit: Literal["squash", "crop"] = setting("squash", "squash the whole image, or crop its centre")
    test_fraction: Share = setting(
        0.2, "share of each class kept for testing where the source has no test split"
    )
    held_out: Share | None = setting(
        None, "share of each training class that takes the place of the test split; null: off"
    )
    skip_unreadable: bool = setting(
        False, "leave out image files that cannot be read, and record them; false: refuse the set"
    )
    oversample: bool = setting(
        False, "a class with fewer images than a set starts from repeats them; false: refuse it"
    )
    whitening: Literal["none", "channel", "zca"] = setting("zca", "none, per channel, or ZCA")
    zca_eps: Above = setting(0.1, "added to the eigenvalues of the covariance of [0, 1] pixels")


class Dataset(Images):
    """The data set of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*$")] = setting(
        "cifar10", "names the files, results/{name}_ipc{ipc}.json; letters, digits, - and _"
    )
