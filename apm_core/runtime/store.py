"""Artifacts: one zarr zip each, self-describing, checked when read, replaced as a whole.

The file holds arrays and, in the attributes of the root group, how they were made: format version,
kind, settings and their fingerprint, content hashes of the inputs, versions, facts of the kind
(`info`: device, seconds and the like), and a SHA-256 over the arrays. A file is written under a
temporary name, closed, synced and renamed, so a reader sees the whole old file or the whole new
one.
"""

import glob
import hashlib
import json
import os
import platform
import socket
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import ZipStore

from apm_core.errors import ArtifactError
from apm_core.settings.text import canonical, fingerprint

FORMAT = 2  # of artifacts
JSON_FORMAT = 1
CHUNK_BYTES = 4 << 20
PACKAGES = ("torch", "torchvision", "numpy", "zarr", "snakemake")


@dataclass(frozen=True)
class Artifact:
    """The arrays of one file and how they were made."""

    kind: str
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)  # role -> content hash of the input
    info: Mapping[str, Any] = field(default_factory=dict)  # kind-specific facts, JSON values
    content: str = ""  # SHA-256 over the arrays
    path: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the arrays

    def require_input(self, role: str, source: "Artifact") -> None:
        """Raise ArtifactError unless this artifact was made from `source`."""
        if self.inputs.get(role) != source.content:
            raise ArtifactError(
                f"{self.path}: this {self.kind} was made from another {role} than {source.path}"
                f" ({str(self.inputs.get(role))[:12]} against {source.content[:12]}):"
                f" delete {self.path} and run again"
            )


class StoredArrays(Mapping[str, np.ndarray]):
    """The arrays of an artifact's file, each read and checked when it is first asked for.

    Raises ArtifactError, on access, for an array that is damaged.
    """

    def __init__(self, path: str | Path, digests: Mapping[str, str]) -> None:
        self.path, self.digests = path, digests
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._read:
            wanted = self.digests[name]
            with _opened(self.path) as (root, _):
                array = np.asarray(root[name][...])
            if digest(array) != wanted:
                raise ArtifactError(
                    f"{self.path}: the array {name!r} does not match its checksum:"
                    f" {_remedy(self.path)}"
                )
            self._read[name] = array
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, name: object) -> bool:
        return name in self.digests


def digest(array: np.ndarray) -> str:
    """SHA-256 over type, shape and bytes of `array`."""
    array = np.asarray(array, order="C")
    found = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def content_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes of `arrays`; equal for equal content, whatever
    the file's bytes.
    """
    return checksum({name: digest(array) for name, array in arrays.items()})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `target`; rename it on success, remove it on error.

    The name is this process's own, on every node of a cluster, so two writers never mix: the last
    whole file stays. What killed processes of this host left behind is removed.
    Raises ArtifactError when the file cannot be written, for lack of space or of permission.
    """
    target, host = Path(target), socket.gethostname()
    job = os.environ.get("SLURM_JOB_ID", "local")
    temporary = target.with_name(f".{target.name}.{host}.{job}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{glob.escape(target.name)}.{glob.escape(host)}.*.tmp"):
            if not _runs(int(left.name.split(".")[-2])):
                left.unlink(missing_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(
            f"{target}: cannot be written ({error.strerror or error}): make room, or allow writing"
            " there, and run the same command again"
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _runs(process: int) -> bool:
    """Whether the process with this id is alive on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True


def write_json(
    path: str | Path, kind: str, figures: Mapping[str, Any], inputs: Mapping[str, str] | None = None
) -> None:
    """Write `figures` to `path` with what they are, the content hashes of what they were made from
    by role, and a checksum.
    """
    value = {**figures, "format": JSON_FORMAT, "kind": kind, "inputs": dict(inputs or {})}
    text = json.dumps({**value, "content": checksum(value)}, indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The figures that `write_json` wrote, and the hashes of what they were made from.

    Raises ArtifactError when the file is missing, damaged, of another kind or of another format
    version.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        content = value.pop("content")
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}): {_remedy(path)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: has no checksum, so apm did not write it: move it away and run"
            " snakemake again"
        ) from error
    if content != checksum(value):
        raise ArtifactError(f"{path}: does not match its checksum: {_remedy(path)}")
    _check_header(path, kind, value, JSON_FORMAT)
    inputs = value.pop("inputs")
    return {key: item for key, item in value.items() if key not in ("format", "kind")}, inputs


def checksum(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """SHA-256 over the canonical text of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write(
    path: str | Path,
    kind: str,
    arrays: Mapping[str, np.ndarray],
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Artifact] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write `arrays` and their history to `path`; returns what `read` would.

    A sound file that says the same is left alone: another writer of the same work was faster, and
    what was made from its file stays valid.
    """
    digests = {name: digest(array) for name, array in arrays.items()}
    content = checksum(digests)
    hashes = {role: artifact.content for role, artifact in (inputs or {}).items()}
    there = _sound(path, kind)
    made = (content, hashes, canonical(settings))
    if there and (there.content, there.inputs, canonical(there.settings)) == made:
        return there
    attributes = {
        "format": FORMAT,
        "kind": kind,
        "settings": dict(settings),
        "fingerprint": fingerprint(settings),
        "inputs": hashes,
        "info": dict(info or {}),
        "versions": versions(),
        "digests": digests,
        "content": content,
    }
    with atomic_path(path) as temporary, ZipStore(temporary, mode="w") as file:
        root = zarr.create_group(file, attributes=attributes)
        for name, array in arrays.items():
            rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes)) if array.ndim else 1
            root.create_array(
                name,
                data=np.asarray(array, order="C"),
                chunks=(min(rows, max(1, len(array))), *array.shape[1:]) if array.ndim else (),
                compressors=ZstdCodec(level=1, checksum=True),
            )
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    return Artifact(
        kind, dict(arrays), dict(settings), hashes, dict(info or {}), content, str(path), shapes
    )


def read(path: str | Path, kind: str, *, lazy: bool = False) -> Artifact:
    """Read and check an artifact; `lazy`: its arrays only when they are asked for.

    Raises ArtifactError when the file is missing, damaged, of another kind or of another format
    version.
    """
    with _opened(path) as (root, names):
        attributes = root.attrs.asdict()
        _check_header(path, kind, attributes, FORMAT)
        digests = attributes["digests"]
        if set(names) != set(digests) or checksum(digests) != attributes["content"]:
            raise ArtifactError(f"{path}: the arrays do not match their checksum: {_remedy(path)}")
        found = Artifact(
            kind,
            StoredArrays(path, digests),
            attributes["settings"],
            attributes["inputs"],
            attributes["info"],
            attributes["content"],
            str(path),
            {name: tuple(root[name].shape) for name in names},
        )
    return found if lazy else replace(found, arrays=dict(found.arrays))


def rows_of(path: str | Path, name: str, rows: np.ndarray) -> np.ndarray:
    """The rows `rows` of the array `name` of an artifact's file, without reading all of it.

    Only the checksums of the parts that are read are checked. ArtifactError as for `read`.
    """
    with _opened(path) as (root, _):
        return np.asarray(root[name].oindex[rows])


def kind_of(path: str | Path) -> str:
    """What the file `path` says it is, an artifact or a JSON of ours; ArtifactError as for `read`,
    and for a file that says nothing.
    """
    if Path(path).suffix == ".json" and Path(path).is_file():
        try:
            kind = json.loads(Path(path).read_text(encoding="utf-8")).get("kind")
        except (OSError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path}: cannot be read ({error}): {_remedy(path)}") from error
    else:
        with _opened(path) as (root, _):
            kind = root.attrs.get("kind")
    if not isinstance(kind, str):
        raise ArtifactError(f"{path}: does not say what it is, so apm did not write it")
    return kind


def content_of(path: str | Path) -> str:
    """The content hash that the file `path` states, without reading its arrays; ArtifactError as
    for `read`.
    """
    with _opened(path) as (root, _):
        return str(root.attrs["content"])


def _sound(path: str | Path, kind: str) -> Artifact | None:
    """The artifact at `path`, or None when there is none that can be used."""
    try:
        return read(path, kind)
    except ArtifactError:
        return None


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[zarr.Group, list[str]]]:
    """The root group of an artifact and the names of its arrays, with every sign of damage turned
    into an ArtifactError.
    """
    if not Path(path).is_file():
        raise _missing(path)
    try:
        if Path(path).suffix != ".zip" and not _begins_as_zip(path):
            raise ArtifactError(f"{path}: is another kind of file, expected one of apm's .zarr.zip")
        # looked into before zarr does, which hides a damaged directory behind errors of its own
        with zipfile.ZipFile(path) as members:
            places = [name.split("/") for name in members.namelist()]
        names = [place[0] for place in places if len(place) == 2 and place[1] == "zarr.json"]
        with ZipStore(path, mode="r") as file:
            yield zarr.open_group(file, mode="r"), names
    except ArtifactError:
        raise
    # a damaged zip can surface as almost any error of zipfile, zlib, zarr, json or the codecs
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        EOFError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: the file is damaged ({reason}): {_remedy(path)}") from error


def _begins_as_zip(path: str | Path) -> bool:
    """Whether a file is a zip or was one: what is cut short still begins as such."""
    with Path(path).open("rb") as file:
        return file.read(2) == b"PK"


def _missing(path: str | Path) -> ArtifactError:
    return ArtifactError(f"{path}: there is no such file: check the path, or run snakemake {path}")


def _remedy(path: str | Path) -> str:
    return f"delete {path} and run snakemake again"


def _check_header(path: str | Path, kind: str, attributes: Mapping[str, Any], version: int) -> None:
    if attributes.get("format") != version:
        raise ArtifactError(
            f"{path}: format version {attributes.get('format')}, this apm reads version {version}:"
            f" delete {path} and run snakemake again, or use the apm that wrote it"
        )
    if attributes.get("kind") != kind:
        raise ArtifactError(
            f"{path}: its kind is {attributes.get('kind')!r}, expected {kind!r}: check the path"
        )
