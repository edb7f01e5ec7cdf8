"""Unfinished work of one job, in one file that a killed run leaves behind and the next run picks
up.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from apm_core.errors import ArtifactError, InterruptedRunError
from apm_core.runtime import tensor_file
from apm_core.settings.text import fingerprint

FORMAT = 2
MOST = 0.01  # share of the time that saving may take
Item = TypeVar("Item")
SavedState = dict[str, Any]


class Resume:
    """Saves and restores a job's state: tensors, numbers, strings, lists and dicts of them.

    The file's name and contents carry the fingerprint of all that the state depends on, so a state
    of other settings is never continued. It is written as a whole and never holds code
    (`weights_only`).

    Attributes: stopping, the number of the signal that asked the job to stop, if one did. The next
    save is then due at once, and raises InterruptedRunError.
    """

    def __init__(self, folder: str | Path, identity: Any, *, every: float = 60.0) -> None:  # noqa: ANN401
        self.fingerprint = fingerprint(identity)
        self.path = Path(folder) / f"{self.fingerprint}.pt"
        self.every = every  # seconds between saves; 0: whenever there is something to save
        self.stopping: int | None = None
        self._cost = 0.0  # seconds that the last save took
        self.earlier = 0.0  # seconds of work of the killed runs, up to the state that was loaded
        self._saved = self._started = time.monotonic()

    def load(self) -> SavedState | None:
        """The saved state, or None. Raises ArtifactError for a damaged file or one of other
        settings.
        """
        if not self.path.is_file():
            return None
        remedy = f"delete {self.path} to start this stage anew"
        saved = tensor_file.read(self.path, what="the resume file", remedy=remedy)
        try:
            header = (saved["format"], saved["fingerprint"])
            state, seconds = saved["state"], float(saved.get("seconds", 0.0))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{self.path}: the resume file is damaged ({error}): {remedy}"
            ) from error
        if header != (FORMAT, self.fingerprint):
            raise ArtifactError(
                f"{self.path}: the resume file has format {header[0]} and settings {header[1]},"
                f" expected {FORMAT} and {self.fingerprint}: {remedy}"
            )
        self.earlier = seconds
        return state

    def due(self) -> bool:
        """Whether `every` seconds have passed since the last save, and so many that saving does not
        slow the work by more than the share `MOST`; or the job is to stop.
        """
        wait = max(self.every, self._cost / MOST) if self.every else 0.0
        return self.stopping is not None or time.monotonic() - self._saved >= wait

    def save(self, state: SavedState) -> None:
        """Replace the file by one that holds `state`; raises InterruptedRunError when the job is to
        stop.
        """
        started = time.monotonic()
        saved = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "seconds": self.earlier + time.monotonic() - self._started,
            "state": state,
        }
        tensor_file.write(self.path, saved)
        self._saved = time.monotonic()
        self._cost = self._saved - started
        if self.stopping is not None:
            raise InterruptedRunError(
                f"stopped by {signal.Signals(self.stopping).name}: what is done so far is kept, the"
                " same command goes on from there"
            )

    def clear(self) -> None:
        """Remove the file; the work is done."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Part:
    """The unfinished one of several items, kept in the state of all of them; the items of a part
    have parts of their own.
    """

    resume: "Resume | Part"
    done: Sequence[Any]  # results of the items before it
    state: SavedState | None  # what a killed run had done of it

    def load(self) -> SavedState | None:
        """What a killed run had done of this item, or None."""
        return self.state

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.resume.due()

    def save(self, state: SavedState) -> None:
        """Keep `state` of this item, and the items before it."""
        self.resume.save({"done": self.done, "part": state})


def each(
    items: Sequence[Item],
    work: Callable[[Sequence[Any], Item, Part | None], Any],
    resume: Resume | Part | None,
) -> list[Any]:
    """`work(done, item, part)` for every item, in order, `done` being the results of those before
    it; with `resume`, finished items are not done again, and an unfinished one goes on from what it
    saved as its `part`.
    """
    saved = (resume.load() if resume else None) or {"done": []}
    done, state = list(saved["done"]), saved.get("part")
    for item in items[len(done) :]:
        part = Part(resume, done, state) if resume else None
        done.append(work(done, item, part))
        state = None
        if resume and resume.due():
            resume.save({"done": done})
    return done
