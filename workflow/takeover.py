"""Taking over the lock of a run that was killed, so that the plain command goes on.

Snakemake locks what a run works on in files that outlive a killed run, and then refuses to start
until it is told to unlock. A lock of the operating system dies with its process: every run and
every job holds one, and where nobody holds one the locks that lie there are nobody's. A job that
outlives its run, on a cluster say, so keeps the next run from doing the same work beside it.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

NAME = "apm.lock"


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold the lock of a job in Snakemake's `folder`, where the file system has locks."""
    folder.mkdir(exist_ok=True)
    with (folder / NAME).open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def hold(folder: Path) -> tuple[TextIO | None, bool]:
    """Hold the lock of a run in Snakemake's `folder`, after removing the locks of dead runs.

    Returns the open file, which has to be kept as long as the run lasts, and whether there were
    such locks. None where the file system has no locks: nothing is removed there.
    """
    folder.mkdir(exist_ok=True)
    file, stale = (folder / NAME).open("a"), folder / "locks"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another run lives, or a job
        fcntl.flock(file, fcntl.LOCK_SH)
        return file, False
    except OSError:
        file.close()
        return None, False
    found = stale.is_dir() and any(stale.iterdir())
    if found:
        shutil.rmtree(stale)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file, found
