"""Files of `torch.save`, whoever wrote them: numbers and containers, never code."""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from apm_core.errors import ArtifactError
from apm_core.runtime import store


def read(path: str | Path, *, what: str, remedy: str) -> Any:  # noqa: ANN401 - what was saved
    """The tensors, numbers, strings and containers in `path`, on the CPU.

    Loaded with `weights_only`, so a file that would run code is refused.
    Raises ArtifactError, which calls the file `what` and ends in `remedy`, when it cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as members:  # torch itself ignores the checksums
                if broken := members.testzip():
                    raise zipfile.BadZipFile(f"{broken} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    # torch reports damage by errors of zipfile, pickle or its own
    except Exception as error:
        if refused := re.search(r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)", str(error)):
            raise ArtifactError(
                f"{path}: {what} holds {refused[1]}, which takes code to load: {remedy}"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: {what} is damaged ({reason}): {remedy}") from error


def write(path: str | Path, value: Any) -> None:  # noqa: ANN401 - what `read` returns
    """Replace `path` by a file that holds `value`; raises ArtifactError when it cannot be
    written.
    """
    with store.atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(value, file)
        except RuntimeError as error:  # torch's, while it clears up after a failed write
            raise (error.__context__ or error) from None
