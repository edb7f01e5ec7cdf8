"""The distilled set: its images, targets and recipe, and the file that holds them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from apm_core.data.whitening import Whitening
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

    Attributes:
        images: (N, C, H, W) float32 in the working space (whitened); class by class inside each
            shard.
        classes: (N,) int64, the class that each image stands for.
        targets: (N, classes) float32 for the recipe's loss, usually teacher logits.
        recipe: how to train on it.
        pixels: (N, C, H, W) uint8, the images with the whitening undone.
        whitening_file: file of the whitening of the images; None when they are [0, 1] pixels.
        class_names: in the order of the class indices.
        artifact: settings, versions, seconds and hashes of the run that made it.
    """

    images: Tensor
    classes: Tensor
    targets: Tensor
    recipe: Recipe
    pixels: Tensor
    whitening_file: WhiteningFile | None
    class_names: tuple[str, ...]
    artifact: store.Artifact

    @property
    def shape(self) -> Shape:
        """The shape of images and classes that a network must have."""
        return Shape.of(self.images.shape, len(self.class_names))

    @property
    def whitening(self) -> Whitening:
        """From pixels to the working space and back; apply it to test images.

        Raises ArtifactError when its file does not lie beside the set or is of other data.
        """
        return self.whitening_file.whitening if self.whitening_file else Whitening("none")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return int(torch.bincount(self.classes).max())

    def dataset(self) -> TensorDataset:
        """Pairs of an image and its targets, to train on with `recipe`."""
        return TensorDataset(self.images, self.targets)

    def images_rgb(self) -> np.ndarray:
        """The images in true colours: (N, H, W, 3) uint8, grey sets repeated over the three
        channels.
        """
        pixels = self.pixels.permute(0, 2, 3, 1).numpy()
        return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels

    def select(
        self, *, classes: Sequence[int | str] | None = None, ipc: int | None = None
    ) -> "DistilledSet":
        """A set of the images of some classes (indices or names), or of the first `ipc` per class.

        Targets keep their columns. Raises ConfigError for a class or an ipc that the set does not
        have.
        """
        if classes is not None and not classes:
            raise ConfigError("classes: none given: name at least one")
        indices = range(len(self.class_names)) if classes is None else map(self._class, classes)
        rows = []
        for c in indices:
            members = torch.nonzero(self.classes == c).flatten()
            if ipc is not None and not 1 <= ipc <= len(members):
                raise ConfigError(
                    f"ipc: {ipc} asked for, class {self.class_names[c]!r} has {len(members)} images"
                )
            rows.append(members[:ipc])
        index = torch.cat(rows)
        return replace(
            self,
            images=self.images[index],
            classes=self.classes[index],
            targets=self.targets[index],
            pixels=self.pixels[index],
        )

    def _class(self, key: int | str) -> int:
        if key in self.class_names:
            return self.class_names.index(key)
        if isinstance(key, int) and 0 <= key < len(self.class_names):
            return key
        raise ConfigError(
            f"classes: there is no class {key!r}; known: {', '.join(self.class_names)}"
        )

    def export(self, kind: str, folder: str | Path) -> None:
        """Write the set to `folder` in the format of a module of `apm_core.exports`, such as "png".

        Raises ConfigError for an unknown format, and for a folder that holds files, which would
        look like part of the set.
        """
        exporter, folder = module_of("exports", kind), Path(folder)
        if any(folder.iterdir()) if folder.is_dir() else folder.exists():
            raise ConfigError(f"{folder} exists and is not an empty folder: name a new one")
        exporter.export(self, folder)

    @property
    def image_bytes(self) -> int:
        """Bytes of `images`."""
        return self.images.nbytes

    @property
    def label_bytes(self) -> int:
        """Bytes of `targets`."""
        return self.targets.nbytes


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
        "images": distilled.images.numpy(),
        "classes": distilled.classes.numpy(),
        "targets": distilled.targets.numpy(),
        "pixels": distilled.pixels.numpy(),
    }
    file = distilled.whitening_file
    info = {
        **info,
        "recipe": distilled.recipe.to_dict(),
        "whitening": {"file": file.path.name, "content": file.content} if file else None,
        "class_names": list(distilled.class_names),
    }
    return store.write(path, KIND, arrays, settings=settings, inputs=inputs, info=info)


def load(path: str | Path) -> DistilledSet:
    """Open a distilled set such as `results/cifar10_ipc50.apm.zarr.zip`. The file of its whitening
    must lie in the same folder when `whitening` is used.

    Raises ArtifactError when the file is missing, damaged, not a distilled set, or one of an
    earlier version.
    """
    artifact = store.read(path, KIND)
    if "pixels" not in artifact.arrays:
        raise ArtifactError(
            f"{path}: an earlier apm wrote it, with its whitening inside and without its pixels:"
            f" delete {path} and run snakemake again"
        )
    record = artifact.info["whitening"]
    file = record and WhiteningFile(
        Path(path).parent / Path(record["file"]).name,  # no other folder, whatever the file says
        record["content"],
    )
    return DistilledSet(
        images=torch.from_numpy(artifact.arrays["images"]),
        classes=torch.from_numpy(artifact.arrays["classes"]),
        targets=torch.from_numpy(artifact.arrays["targets"]),
        recipe=Recipe(**artifact.info["recipe"]),
        pixels=torch.from_numpy(artifact.arrays["pixels"]),
        whitening_file=file,
        class_names=tuple(artifact.info["class_names"]),
        artifact=artifact,
    )
