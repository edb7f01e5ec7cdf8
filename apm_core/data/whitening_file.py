"""The whitening of a data set as a file of its own, which lies beside the distilled sets."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apm_core.data.prepared import PreparedData
from apm_core.data.whitening import Whitening
from apm_core.errors import ArtifactError
from apm_core.runtime import store

KIND = "whitening"


@dataclass(frozen=True)
class WhiteningFile:
    """Path and expected content of a whitening; the file is read at first use.

    Attributes:
        path: the file, which must exist only when `whitening` is used.
        content: hash of its arrays.
    """

    path: Path
    content: str

    @cached_property
    def whitening(self) -> Whitening:
        """The whitening in the file.

        Raises ArtifactError when the file is missing, damaged or of another data set.
        """
        if not self.path.is_file():
            raise ArtifactError(
                f"{self.path}: there is no such file, and the set beside it needs it for its"
                f" whitening: copy it from where the set was made, or run snakemake {self.path}"
            )
        stored = store.read(self.path, KIND)
        if stored.content != self.content:
            raise ArtifactError(
                f"{self.path}: this is the whitening of other data than the set beside it was"
                f" made from ({stored.content[:12]} against {self.content[:12]}): put the file that"
                " belongs to the set here, or make the set again"
            )
        return _whitening_of(stored)


def read(path: Path) -> Whitening:
    """The whitening in the file at `path`; raises ArtifactError as `store.read`."""
    return _whitening_of(store.read(path, KIND))


def _whitening_of(stored: store.Artifact) -> Whitening:
    return Whitening.from_arrays(stored.info["whitening"], stored.arrays)


def keep(path: str | Path, whitening: Whitening) -> WhiteningFile | None:
    """Write a whitening that comes without its data; None for the kind "none", which needs no file.

    Raises ArtifactError when the file cannot be written.
    """
    if whitening.kind == "none":
        return None
    info = {"whitening": whitening.kind}
    stored = store.write(path, KIND, whitening.arrays(), settings={}, info=info)
    return WhiteningFile(Path(path), stored.content)


def write(path: str | Path, data: PreparedData) -> store.Artifact:
    """Write the whitening of `data` to `path`; an empty artifact for the kind "none"."""
    return store.write(
        path,
        KIND,
        data.whitening.arrays(),
        settings=data.artifact.settings,
        inputs={"data": data.artifact},
        info={"whitening": data.whitening.kind},
    )
