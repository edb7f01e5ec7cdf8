"""Where decoded images lie: in memory, or in files from which a killed run goes on."""

import hashlib
import math
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apm_core.errors import DataError


@dataclass(frozen=True)
class Room:
    """Memory, or files in `folder`, which the system keeps in memory only while nothing else needs
    it.
    """

    folder: Path | None = None

    def images(self, paths: Sequence[Path], shape: tuple[int, ...], form: object) -> "Decoded":
        """Room for the images of files, of `shape` (C, S, S) each, decoded to `form`.

        In a folder, images that an earlier run left of the same files, by name, size and time of
        change, are there already; those of other files are removed.

        Raises DataError when the folder has no room.
        """
        name = ""
        if self.folder:
            name = _identity(paths, (shape, form))
            for other in self.folder.glob("*"):
                if not other.name.startswith(name):
                    other.unlink()
        return Decoded(self, name, (len(paths), *shape))

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A uint8 array, zero at first, or as it was left in the file `name`; raises DataError when
        the folder has no room.
        """
        size = math.prod(shape)
        if not self.folder or not size:
            return np.zeros(shape, dtype=np.uint8)
        path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                # a write into a hole of the file would end the process when the disk is full
                reserve = getattr(os, "posix_fallocate", None)
                if reserve:
                    reserve(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror or error}): make room for"
                f" {size / 1e9:.2g} GB, or allow writing there, and run the same command again"
            ) from error

    def clear(self) -> None:
        """Remove the files; the arrays in them can still be used."""
        if self.folder and self.folder.is_dir():
            shutil.rmtree(self.folder)


IN_MEMORY = Room()


class Decoded:
    """Images (N, C, S, S) uint8 that are decoded one by one, and which of them are there."""

    def __init__(self, room: Room, name: str, shape: tuple[int, ...]) -> None:
        self.room, self.name = room, name
        self.pixels = room.array(f"{name}.pixels", shape)
        self._there = room.array(f"{name}.there", shape[:1])

    @property
    def missing(self) -> list[int]:
        """Positions of the images that are to be decoded."""
        return np.flatnonzero(self._there == 0).tolist()

    def done(self, rows: Sequence[int]) -> None:
        """Keep the pixels of the images at `rows`."""
        if isinstance(self.pixels, np.memmap):
            self.pixels.flush()  # before the marks, in case the machine fails between the two
        self._there[rows] = 1

    def without(self, rows: Collection[int]) -> np.ndarray:
        """The images but those at `rows`."""
        if not rows:
            return self.pixels
        kept = np.setdiff1d(np.arange(len(self.pixels)), list(rows))
        found = self.room.array(f"{self.name}.kept", (len(kept), *self.pixels.shape[1:]))
        # any mode but "raise", the default, writes into `out` without a copy
        return np.take(self.pixels, kept, axis=0, out=found, mode="clip")


def _identity(paths: Sequence[Path], rest: object) -> str:
    """Sixteen hexadecimal digits that name the files as they are now, below the folder that they
    share, and `rest`; taken file by file, for the text of a million would fill the memory.
    """
    found = hashlib.sha256(repr(rest).encode())
    folder = os.path.commonpath([path.parent for path in paths]) if paths else ""
    for path in paths:
        try:
            stat = path.stat()
            state = (stat.st_size, stat.st_mtime_ns)
        except OSError:  # it cannot be decoded either, which is reported with all the others
            state = None
        name = os.path.relpath(path, folder)
        found.update(os.fsencode(name) + repr(state).encode())
    return found.hexdigest()[:16]
