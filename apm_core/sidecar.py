"""What an exported set is, in a JSON file beside it: the space of its images and all that training
on it takes.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import ValidationError, model_validator

from apm_core.data import whitening_file
from apm_core.data.whitening import Whitening
from apm_core.data.whitening_file import WhiteningFile
from apm_core.distilled import DistilledSet
from apm_core.errors import ArtifactError
from apm_core.runtime import store
from apm_core.settings.section import Above, Section
from apm_core.training.recipe import Recipe

NAME = "set.json"  # in the folder of a set; beside a file FILE it is FILE.json
Space = Literal["pixels", "normalised", "whitened"]
SPACES: dict[str, Space] = {"none": "pixels", "channel": "normalised", "zca": "whitened"}


class Images(Section):
    """The decoded images.

    pixels: uint8, or in [0, 1]; normalised: (pixels - mean) / std of each channel; whitened: ZCA.
    float32 images are as networks see them.
    """

    space: Space
    type: Literal["float32", "uint8"]
    shape: list[int]  # N, C, H, W
    tiles: int  # along a side of a stored image, from which these were decoded


class Normalisation(Section):
    """What networks are to see: pixels ("none"), normalised ("channel") or whitened ("zca")."""

    kind: Literal["none", "channel", "zca"]
    mean: list[float] | None = None  # of each channel
    std: list[Above] | None = None
    file: str | None = None  # holds the ZCA, in the same folder
    content: str | None = None  # hash of its arrays

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "channel" and not (self.mean and len(self.mean) == len(self.std or ())):
            raise ValueError("channel needs mean and std, one of each channel")
        if self.kind == "zca" and not (self.file and self.content):
            raise ValueError("zca needs file and content")
        return self


class Targets(Section):
    """The labels: logits for a loss, or class indices."""

    kind: Literal["logits", "class indices"]
    loss: str
    bits: int  # of each, as the set is stored


class Bytes(Section):
    """What the set takes as it is stored, before its images are decoded."""

    images: int
    labels: int


class Origin(Section):
    """What made the set."""

    entry: str | None
    method: str | None
    content: str  # hash of the set's arrays
    settings: dict[str, Any]
    versions: dict[str, str]  # of the exporting process


class Sidecar(Section):
    """All that is known of an exported set."""

    version: Literal[1] = 1
    format: str
    images: Images
    normalisation: Normalisation
    labels: Targets
    recipe: dict[str, Any]
    class_names: list[str]
    classes: list[int]  # of each image
    bytes: Bytes
    made_by: Origin

    @model_validator(mode="after")
    def _of_one_space(self) -> Self:
        networks = SPACES[self.normalisation.kind]
        if self.images.type == "float32" and self.images.space != networks:
            raise ValueError(f"float32 images are {self.images.space}, and networks see {networks}")
        return self


def place(path: Path) -> Path:
    """Where the sidecar of a set's file or folder, which exists, lies."""
    return path / NAME if path.is_dir() else path.with_name(f"{path.name}.json")


def write(distilled: DistilledSet, path: Path, kind: str, *, pixels: bool) -> None:
    """Describe the export of `distilled` to the file or folder `path` in the format `kind`, and put
    the file of a ZCA beside it. `pixels`: its images are uint8, else as networks see them.

    Raises ArtifactError when the set's whitening is not there, or nothing can be written.
    """
    beside = place(path)
    normalisation = _normalisation(distilled, beside)
    indices = not distilled.targets.is_floating_point()
    info = distilled.artifact.info
    described = Sidecar(
        format=kind,
        images=Images(
            space="pixels" if pixels else SPACES[normalisation.kind],
            type="uint8" if pixels else "float32",
            shape=[len(distilled), *distilled.shape.image],
            tiles=distilled.tiles,
        ),
        normalisation=normalisation,
        labels=Targets(
            kind="class indices" if indices else "logits",
            loss=distilled.recipe.loss,
            bits=8 * distilled.labels.values.element_size(),
        ),
        recipe=distilled.recipe.to_dict(),
        class_names=list(distilled.class_names),
        classes=distilled.classes.tolist(),
        bytes=Bytes(images=distilled.image_bytes, labels=distilled.label_bytes),
        made_by=Origin(
            entry=info.get("entry"),
            method=info.get("method"),
            content=distilled.artifact.content,
            settings=dict(distilled.artifact.settings),
            versions=store.versions(),
        ),
    )
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in described.model_dump().items()]
    with store.atomic_path(beside) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _normalisation(distilled: DistilledSet, beside: Path) -> Normalisation:
    whitening = distilled.whitening
    if whitening.kind != "zca":
        fields = {} if whitening.kind == "none" else {"mean": whitening.mean, "std": whitening.std}
        numbers = {name: tensor.tolist() for name, tensor in fields.items()}
        return Normalisation(kind=whitening.kind, **numbers)
    kept = whitening_file.keep(beside.with_suffix(".whitening.zarr.zip"), whitening)
    return Normalisation(kind="zca", file=kept.path.name, content=kept.content)


def read(path: Path) -> Sidecar | None:
    """What lies beside the set `path`, or None where nothing does.

    Raises ArtifactError when it is there and cannot be understood.
    """
    beside = place(path)
    if not beside.is_file():
        return None
    try:
        found = Sidecar.model_validate(json.loads(beside.read_text(encoding="utf-8")))
        Recipe(**found.recipe)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
    else:
        return found
    raise ArtifactError(
        f"{beside}: does not describe a set ({reason}): mend it, or remove it and say with options"
        " what the images are"
    )


def whitening_of(found: Sidecar, path: Path) -> Whitening:
    """From pixels to what networks are to see, as the sidecar `found` of `path` states it; a ZCA
    from the file beside.

    Raises ArtifactError when that file is missing, damaged or another one.
    """
    stated = found.normalisation
    if stated.kind == "zca":
        file = place(path).parent / Path(stated.file or "").name
        return WhiteningFile(file, stated.content or "").whitening
    if stated.kind == "none":
        return Whitening("none")
    return Whitening("channel", mean=torch.tensor(stated.mean), std=torch.tensor(stated.std))
