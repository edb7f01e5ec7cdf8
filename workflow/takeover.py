"""Removal of the locks of a killed run, so that the plain command continues.

Snakemake writes lock files, which outlive a killed run, and then refuses to start before --unlock.
A lock of the operating system ends with its process: every run and every job holds one, and where
none is held, Snakemake's lock files are stale. A job that outlives its run, as on a cluster, thus
keeps the next run from doing the same work a second time.
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
    """Hold the lock of a job in Snakemake's `folder`; do nothing where there are no file locks."""
    folder.mkdir(exist_ok=True)
    with (folder / NAME).open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def hold(folder: Path) -> tuple[TextIO | None, bool]:
    """Hold the lock of a run in Snakemake's `folder`, after removing the locks of dead runs.

    Returns: the open file, to be kept open until the run ends, and whether locks were removed.
    Where the file system has no locks the file is None and nothing is removed.
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
    has_stale = stale.is_dir() and any(stale.iterdir())
    if has_stale:
        shutil.rmtree(stale)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file, has_stale
