"""Reading a data set by the name of its source."""

from dataclasses import dataclass
from pathlib import Path

from apm_core.data.dataset import Dataset, PublicSize
from apm_core.data.images import ImageForm
from apm_core.data.room import IN_MEMORY, Room
from apm_core.errors import DataError
from apm_core.settings.dataset import Images
from apm_core.settings.names import module_of

FOLDER = "data.sources"
DEFAULTS = Images()
Constants = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std per channel of [0, 1] pixels


@dataclass(frozen=True)
class Request:
    """The arguments of a source's `read`; a source ignores those that do not apply to it."""

    name: str  # of the source, for messages
    form: ImageForm
    data_dir: Path | None
    test_fraction: float  # of each class, in sets that come without a test split
    split_seed: int
    download: bool
    skip_unreadable: bool  # files, which are named in warnings
    room: Room  # for the images of sources that decode files

    @property
    def root(self) -> Path:
        """The folder of the files; raises DataError when `data_dir` is None."""
        if self.data_dir is None:
            raise DataError(
                f"{self.name} needs a folder: set dataset.data_dir to where its files are"
            )
        return self.data_dir.expanduser()


def read(
    name: str,
    *,
    data_dir: str | Path | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    fit: str = DEFAULTS.fit,
    test_fraction: float = DEFAULTS.test_fraction,
    split_seed: int = 0,
    download: bool = True,
    skip_unreadable: bool = False,
    room: Room = IN_MEMORY,
) -> Dataset:
    """Read a data set as uint8.

    Args:
        name: a module of `apm_core.data.sources`.
        data_dir: folder of the data (`folder` also takes an archive); `digits` needs none.
        resolution: side in pixels to resize to, with antialiasing; None keeps the files' own,
            which must then be square and all alike.
        channels: 1 or 3; None keeps what the set has, 3 unless all its images are greyscale.
        fit: "squash" resizes the whole image to a square; "crop" resizes the shorter side, then
            cuts the centre.
        test_fraction: share of each class kept for testing, in sets that come without a test split.
        split_seed: seed of that split.
        download: fetch `cifar10` and `cifar100` if missing; the others are never downloaded.
        skip_unreadable: leave out image files that cannot be read, with a warning for each.
        room: where images lie that are decoded from files.

    Raises:
        DataError: data that are missing, damaged or inconsistent.
        ConfigError: an unknown name; resolution, channels, fit or test_fraction out of bounds.
    """
    source = module_of(FOLDER, name)
    form = ImageForm(resolution, channels, fit)
    folder = None if data_dir is None else Path(data_dir)
    return source.read(
        Request(name, form, folder, test_fraction, split_seed, download, skip_unreadable, room)
    )


def public_size(name: str) -> PublicSize | None:
    """The size of a data set that is the same for everybody, or None; raises ConfigError for an
    unknown name.
    """
    return module_of(FOLDER, name).SIZE


def channel_constants(name: str) -> Constants | None:
    """Mean and std of each channel by which the literature whitens a data set, or None to measure
    them; raises ConfigError for an unknown name.
    """
    return module_of(FOLDER, name).CHANNELS
