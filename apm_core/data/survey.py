"""What a folder of images holds, from names and headers: no image is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median

from apm_core.data.images import header
from apm_core.data.sources import folder
from apm_core.errors import DataError

SAMPLE = 500  # headers that are read at most, spread over all files


@dataclass(frozen=True)
class Survey:
    """The classes of a folder, and how large its images are."""

    train: dict[str, int]  # images by class
    test: dict[str, int]
    side: int  # pixels; the median of the shorter sides
    sides: tuple[int, int]  # the shortest and the longest side
    channels: int  # 1 where all images are greyscale

    @property
    def alike(self) -> bool:
        """Whether all images are squares of one size."""
        return len(set(self.sides)) == 1


def survey(root: Path, *, test_fraction: float) -> Survey:
    """Look at the folder `root` (no archive), of whose classes `test_fraction` is kept for testing
    where it has no test images; sizes and channels are those of a sample.

    Raises DataError for what is no folder of images, and when no header of the sample can be read.
    """
    if root.is_file():
        raise DataError(f"{root} is a file: unpack it first, and name the folder")
    train, test = folder.splits(root, test_fraction, seed=0)
    files = list(chain(*train.values(), *test.values()))
    found = [one for one in map(header, _spread(files)) if one]
    if not found:
        raise DataError(f"{root}: no image of {len(files)} can be read: are these images?")
    lengths = [side for one in found for side in (one.width, one.height)]
    return Survey(
        train={name: len(paths) for name, paths in train.items()},
        test={name: len(paths) for name, paths in test.items()},
        side=int(median(min(one.width, one.height) for one in found)),
        sides=(min(lengths), max(lengths)),
        channels=1 if all(one.grey for one in found) else 3,
    )


def _spread(files: Sequence[Path]) -> Sequence[Path]:
    return files[:: max(1, -(-len(files) // SAMPLE))]
