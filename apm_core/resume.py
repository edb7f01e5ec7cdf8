"""Unfinished work of one job, in one file that a killed run leaves behind and the next run picks
up.
"""

import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from apm_core import store
from apm_core.errors import ArtifactError
from apm_core.settings import fingerprint

FORMAT = 2
Item = TypeVar("Item")


class Resume:
    """Saves and restores a job's state: tensors, numbers, strings, lists and dicts of them.

    The file's name and contents carry the fingerprint of all that the state depends on, so a state
    of other settings is never continued. It is written as a whole and never holds code
    (`weights_only`).
    """

    def __init__(self, folder: str | Path, identity: Any, *, every: float = 60.0) -> None:  # noqa: ANN401
        self.fingerprint = fingerprint(identity)
        self.path = Path(folder) / f"{self.fingerprint}.pt"
        self.every = every  # seconds between saves
        self.earlier = 0.0  # seconds of work of the killed runs, up to the state that was loaded
        self._saved = self._started = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None. Raises ArtifactError for a damaged file or one of other
        settings.
        """
        if not self.path.is_file():
            return None
        remedy = f"delete {self.path} to start this stage anew"
        try:
            with zipfile.ZipFile(self.path) as members:  # torch itself ignores the checksums
                if broken := members.testzip():
                    raise zipfile.BadZipFile(f"{broken} does not match its checksum")
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            header = (saved["format"], saved["fingerprint"])
            state, seconds = saved["state"], float(saved.get("seconds", 0.0))
        # torch reports damage by errors of zipfile, pickle or its own
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArtifactError(
                f"{self.path}: the resume file is damaged ({reason}): {remedy}"
            ) from error
        if header != (FORMAT, self.fingerprint):
            raise ArtifactError(
                f"{self.path}: the resume file has format {header[0]} and settings {header[1]},"
                f" expected {FORMAT} and {self.fingerprint}: {remedy}"
            )
        self.earlier = seconds
        return state

    def due(self) -> bool:
        """Whether `every` seconds have passed since the last save."""
        return time.monotonic() - self._saved >= self.every

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file by one that holds `state`."""
        with store.atomic_path(self.path) as temporary:
            saved = {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "seconds": self.earlier + time.monotonic() - self._started,
                "state": state,
            }
            torch.save(saved, temporary)
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Remove the file; the work is done."""
        self.path.unlink(missing_ok=True)


def each(
    items: Sequence[Item], work: Callable[[int, Item], Any], resume: Resume | None
) -> list[Any]:
    """`work(position, item)` for every item, in order; with `resume`, finished items are not done
    again.
    """
    done: list[Any] = (resume.load() or {"done": []})["done"] if resume else []
    for position in range(len(done), len(items)):
        done.append(work(position, items[position]))
        if resume:
            resume.save({"done": done})
    return done
