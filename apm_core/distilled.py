"""The distilled set: its images, targets and recipe, and the file that holds them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from apm_core.data.labels import Labels, renumbered
from apm_core.data.tiles import Tiles, are_whitened
from apm_core.data.whitening import Whitening, to_uint8
from apm_core.data.whitening_file import WhiteningFile
from apm_core.errors import ArtifactError, ConfigError
from apm_core.nets.base import Shape
from apm_core.runtime import store
from apm_core.settings.names import module_of
from apm_core.training.recipe import Recipe

KIND = "distilled set"


@dataclass(frozen=True)
class DistilledSet:
    """A few images per class, with their targets and the recipe to train on them.

    N images are stored in n of them, N = n t^2, where each holds t x t tiles; n is N without tiles.

    Attributes:
        stored: (n, C, H, W), class by class inside each shard: float32 in the working space
            (whitened), or in [0, 1] where they hold tiles; or uint8 pixels.
        classes: (N,) int64, the class that each image stands for.
        labels: the targets as they are stored.
        recipe: how to train on it.
        pixels: (n, C, H, W) uint8, the stored images with the whitening undone.
        whitening_file: file of the whitening of the images; None when they are [0, 1] pixels.
        class_names: in the order of the class indices.
        artifact: settings, versions, seconds and hashes of the run that made it.
        tiles: t, along a side of a stored image; 1: stored images are what networks see.
    """

    stored: Tensor
    classes: Tensor
    labels: Labels
    recipe: Recipe
    pixels: Tensor
    whitening_file: WhiteningFile | None
    class_names: tuple[str, ...]
    artifact: store.Artifact
    tiles: int = 1

    @cached_property
    def images(self) -> Tensor:
        """The images (N, C, H, W) that networks see, in the working space.

        Raises ArtifactError where pixels are to be whitened and the whitening's file is not there.
        """
        if are_whitened(self.stored, self.tiles):
            return self.stored
        return self._decoded(self.whitening)

    @property
    def targets(self) -> Tensor:
        """What each image is trained on: (N, classes) float32 for the recipe's loss, usually
        teacher logits, or class indices (N,).
        """
        return self.labels.targets

    def _decoded(self, whitening: Whitening) -> Tensor:
        return Tiles(self.tiles, whitening).decode(self.stored)

    @property
    def shape(self) -> Shape:
        """The shape of images and classes that a network must have."""
        return Shape.of(self.stored.shape, len(self.class_names))

    @property
    def whitening(self) -> Whitening:
        """From pixels to the working space and back; apply it to test images.

        Raises ArtifactError when its file does not lie beside the set or is of other data.
        """
        return self.whitening_file.whitening if self.whitening_file else Whitening("none")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return int(torch.bincount(self.classes).max()) // self.tiles**2

    def dataset(self) -> TensorDataset:
        """Pairs of an image and its targets, to train on with `recipe`."""
        return TensorDataset(self.images, self.targets)

    def images_rgb(self, *, stored: bool = False) -> np.ndarray:
        """The images in true colours: (N, H, W, 3) uint8, grey sets repeated over the three
        channels. With `stored` as they are stored: (n, H, W, 3).
        """
        pixels = self.pixels
        if self.tiles > 1 and not stored:
            pixels = to_uint8(self._decoded(Whitening("none")))
        pixels = pixels.permute(0, 2, 3, 1).numpy()
        return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels

    def select(
        self, *, classes: Sequence[int | str] | None = None, ipc: int | None = None
    ) -> "DistilledSet":
        """A set of the images of some classes (indices or names), or of the first `ipc` stored ones
        per class.

        Targets keep their columns, those of all classes (`only` drops the others). Raises
        ConfigError for a class or an ipc that the set does not have.
        """
        if classes is not None and not classes:
            raise ConfigError("classes: none given: name at least one")
        indices = range(len(self.class_names)) if classes is None else map(self._class, classes)
        rows, count = [], self.tiles**2
        for c in indices:
            members = torch.nonzero(self.classes[::count] == c).flatten()
            if ipc is not None and not 1 <= ipc <= len(members):
                raise ConfigError(
                    f"ipc: {ipc} asked for, class {self.class_names[c]!r} has {len(members)} images"
                )
            rows.append(members[:ipc])
        index = torch.cat(rows)
        seen = (index[:, None] * count + torch.arange(count)).flatten()
        return replace(
            self,
            stored=self.stored[index],
            classes=self.classes[seen],
            labels=self.labels.select(seen),
            pixels=self.pixels[index],
        )

    def only(self, classes: Sequence[int | str]) -> "DistilledSet":
        """The set of some classes as if there were no others: they are numbered in the order given,
        and logits have their columns alone, so that nothing is learnt of classes that are not
        there, as of those still to come in continual learning.

        Raises ConfigError for a class that the set does not have, or that is named twice.
        """
        indices = [self._class(key) for key in classes]
        if len(set(indices)) < len(indices):
            raise ConfigError(f"classes: one is named twice: {', '.join(map(str, classes))}")
        chosen = self.select(classes=indices)
        return replace(
            chosen,
            classes=renumbered(chosen.classes, indices),
            labels=chosen.labels.only(indices),
            class_names=tuple(self.class_names[index] for index in indices),
        )

    def _class(self, key: int | str) -> int:
        if key in self.class_names:
            return self.class_names.index(key)
        if isinstance(key, int) and 0 <= key < len(self.class_names):
            return key
        raise ConfigError(
            f"classes: there is no class {key!r}; known: {', '.join(self.class_names)}"
        )

    def export(self, kind: str, path: str | Path) -> None:
        """Write the decoded images, class by class, with their targets to `path`, in the format of
        a module of `apm_core.exports`: one file ("pt", "npz") or a folder ("tensors", "folder",
        "hf"). A JSON file says what they are, and the file of a ZCA whitening lies beside.

        Raises ConfigError for an unknown format, a name that does not fit it, and a path that is
        taken; ArtifactError where the whitening's file is not there, or nothing can be written.
        """
        exporter, path = module_of("exports", kind), Path(path)
        suffix = exporter.SUFFIX
        if suffix and path.suffix != suffix:
            raise ConfigError(f"{path}: {kind} is one file: name it {path.stem}{suffix}")
        empty = not suffix and path.is_dir() and not any(path.iterdir())
        if path.exists() and not empty:
            raise ConfigError(f"{path} exists and is not an empty folder: name a new one")
        _ = self.whitening  # where it is missing, nothing is written
        try:
            exporter.export(self.select(), path)
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot be written ({error.strerror or error}): remove what is there, make"
                " room, or allow writing, and export again"
            ) from error

    @property
    def image_bytes(self) -> int:
        """Bytes of `stored`."""
        return self.stored.nbytes

    @property
    def label_bytes(self) -> int:
        """Bytes of the labels as they are stored."""
        return self.labels.bytes


def save(
    path: str | Path,
    distilled: DistilledSet,
    *,
    settings: dict[str, Any],
    inputs: dict[str, store.Artifact],
    info: dict[str, Any],
) -> store.Artifact:
    """Write `distilled`, without its artifact, to `path`; return the new artifact.

    `settings`, `inputs` and `info` are recorded with it. Raises ArtifactError when the file cannot
    be written.
    """
    arrays = {
        "images": distilled.stored.numpy(),
        "classes": distilled.classes.numpy(),
        **distilled.labels.arrays(),
    }
    if distilled.stored.is_floating_point():  # else they are the pixels
        arrays["pixels"] = distilled.pixels.numpy()
    file = distilled.whitening_file
    info = {
        **info,
        "recipe": distilled.recipe.to_dict(),
        "whitening": {"file": file.path.name, "content": file.content} if file else None,
        "class_names": list(distilled.class_names),
        "tiles": distilled.tiles,
    }
    return store.write(path, KIND, arrays, settings=settings, inputs=inputs, info=info)


def load(path: str | Path) -> DistilledSet:
    """Open a distilled set such as `results/cifar10_ipc50.apm.zarr.zip`. The file of its whitening
    must lie in the same folder when `whitening` is used.

    Raises ArtifactError when the file is missing, damaged, not a distilled set, or one of another
    version.
    """
    artifact = store.read(path, KIND)
    images = torch.from_numpy(artifact.arrays["images"])
    if images.is_floating_point() and "pixels" not in artifact.arrays:
        raise ArtifactError(
            f"{path}: an earlier apm wrote it, with its whitening inside and without its pixels:"
            f" delete {path} and run snakemake again"
        )
    try:
        recipe = Recipe(**artifact.info["recipe"])
    except (TypeError, ConfigError) as error:
        raise ArtifactError(
            f"{path}: another apm wrote its recipe ({error}): use that one, or delete {path} and"
            " run snakemake again"
        ) from error
    pixels = torch.from_numpy(artifact.arrays["pixels"]) if images.is_floating_point() else images
    class_names = tuple(artifact.info["class_names"])
    record = artifact.info["whitening"]
    file = record and WhiteningFile(
        Path(path).parent / Path(record["file"]).name,  # no other folder, whatever the file says
        record["content"],
    )
    return DistilledSet(
        stored=images,
        classes=torch.from_numpy(artifact.arrays["classes"]),
        labels=Labels.from_arrays(artifact.arrays, len(class_names)),
        recipe=recipe,
        pixels=pixels,
        whitening_file=file,
        class_names=class_names,
        artifact=artifact,
        tiles=artifact.info.get("tiles", 1),  # a set from before there were tiles says nothing
    )
