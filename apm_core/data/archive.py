"""Opens a folder of images, or an archive of one, as a folder."""

import os
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apm_core.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """Yield the folder at `source`, or the contents of the archive there in a temporary folder.

    Messages of errors raised inside the block name the archive in place of the temporary folder,
    which is gone by the time they are read.

    Args:
        source: a folder, or a .zip, .tar, .tar.gz or .tgz file.

    Raises:
        DataError: nothing there, another kind of file, a damaged archive, or members that would be
            written outside of the temporary folder.
    """
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise DataError(f"{source} does not exist: correct the path, or dataset.data_dir")
    with tempfile.TemporaryDirectory(prefix="apm-") as temporary:
        folder = Path(temporary).resolve()
        _unpack(source, folder)
        try:
            yield folder
        except DataError as error:
            raise DataError(str(error).replace(str(folder), str(source))) from error


def _unpack(source: Path, folder: Path) -> None:
    """Write the members of an archive below `folder` and nowhere else."""
    name = source.name.lower()
    try:
        if name.endswith(".zip"):
            _unzip(source, folder)
        elif name.endswith(TAR_SUFFIXES):
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        else:
            raise DataError(
                f"{source} is neither a folder nor a .zip, .tar or .tar.gz file: "
                "set dataset.data_dir to one of these"
            )
    except tarfile.FilterError as error:
        raise DataError(
            f"{source} is unsafe to unpack ({error}): make the archive again"
        ) from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        RuntimeError,
    ) as error:
        raise DataError(
            f"{source} cannot be unpacked ({error}): make the archive again or give the folder"
        ) from error


def _unzip(source: Path, folder: Path) -> None:
    with zipfile.ZipFile(source) as archive:
        for member in archive.namelist():
            # zipfile would strip such paths in silence; an archive that has them is no accident
            if not (folder / member).resolve().is_relative_to(folder):
                raise DataError(
                    f"{source} is unsafe to unpack ({member!r} lies outside of it): "
                    "make the archive again"
                )
        archive.extractall(folder)
        for member in archive.infolist():  # times tell a later run what is decoded already
            changed = time.mktime((*member.date_time, 0, 0, -1))
            os.utime(folder / member.filename, (changed, changed))
