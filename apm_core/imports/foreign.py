"""Makes a distilled set of what somebody published, after it is settled what the files mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apm_core import distilled, sidecar
from apm_core.data import whitening_file
from apm_core.data.labels import Labels
from apm_core.data.whitening import Whitening, to_uint8
from apm_core.distilled import DistilledSet
from apm_core.errors import ConfigError, DataError
from apm_core.imports import files
from apm_core.imports.files import Published
from apm_core.runtime import store
from apm_core.settings.run import ENTRY_NAME, RESERVED
from apm_core.settings.training import RecipeSettings
from apm_core.sidecar import Sidecar, Space
from apm_core.training.recipe import Recipe

SMALLEST = 1e-8  # probability, of which a logarithm is taken


@dataclass(frozen=True)
class Meaning:
    """What a person says about a set; None: what its files say.

    Attributes:
        space: "pixels" in [0, 1]; "normalised", with mean and std of each channel; "whitened" by
            the ZCA in the file `whitening`.
        loss: of the training on its labels.
        lr: learning rate of that training.
    """

    space: Space | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    whitening: Path | None = None
    loss: str | None = None
    lr: float | None = None


def place(name: str) -> Path:
    """The file of the imported set `name`; raises ConfigError unless an entry can have the name."""
    if not re.fullmatch(ENTRY_NAME, name) or name in RESERVED:
        raise ConfigError(
            f"--as {name}: not the name of an entry: lower-case letters, digits and _, a letter"
            " first"
        )
    return Path("sets", f"{name}.zarr.zip")


def import_set(path: Path, target: Path, meaning: Meaning) -> DistilledSet:
    """Read the published set `path` and write it as a distilled set to `target`, with the whitening
    of its images beside it.

    Images stay as they are, in the space in which networks see them. A form without soft labels
    has class indices; soft labels that sum to one are probabilities, of which the logarithm is
    taken.
    Raises ConfigError where nobody says what the files mean, ArtifactError and DataError as
    `files.read`.
    """
    found, beside = files.read(path), sidecar.read(path)
    whitening = _whitening(found, beside, meaning, path)
    pixels = _pixels(found, whitening, path)
    recipe = _recipe(found, beside, meaning, path)
    names = _class_names(found, beside, path)
    classes = _classes(found, beside, len(names), path)
    name = target.name.removesuffix(".zarr.zip")
    file = whitening_file.keep(target.with_name(f"{name}.whitening.zarr.zip"), whitening)
    made = DistilledSet(
        stored=found.images,
        classes=classes,
        labels=Labels.of(_targets(found.targets, recipe)),
        recipe=recipe,
        pixels=pixels,
        whitening_file=file,
        class_names=names,
        artifact=store.Artifact(distilled.KIND, {}, {}),
    )
    settings = {
        "file": path.name,
        "recipe": recipe.to_dict(),
        "class_names": list(names),
        "whitening": file.content if file else None,
    }
    info: dict[str, Any] = {
        "entry": name,
        "method": "imported",
        "made_by": beside.made_by.model_dump() if beside else None,
    }
    distilled.save(target, made, settings=settings, inputs={}, info=info)
    return distilled.load(target)


def entry(found: DistilledSet, path: Path) -> dict[str, Any]:
    """The entry of `distill.methods` that evaluates the imported set `found` at `path`, with all of
    its recipe that a config can state.
    """
    recipe = found.recipe.to_dict() | {"epochs": found.recipe.passes - 1}
    name = path.name.removesuffix(".zarr.zip")
    stated = {key: recipe[key] for key in RecipeSettings.model_fields}
    return {"name": name, "method": "imported", "file": path.as_posix(), "recipe": stated}


def _are_bytes(found: Published) -> bool:
    return found.images.dtype == torch.uint8


def _pixels(found: Published, whitening: Whitening, path: Path) -> Tensor:
    """The images as uint8 pixels; raises DataError for a whitening of other images."""
    try:
        if _are_bytes(found):
            whitening.apply(found.images[:1])
            return found.images
        return to_uint8(whitening.invert(found.images))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _whitening(found: Published, beside: Sidecar | None, meaning: Meaning, path: Path) -> Whitening:
    """From pixels to the space of the images, or, where they are bytes, to what networks see."""
    if meaning.space is None and beside:
        return sidecar.whitening_of(beside, path)
    if meaning.space is None and _are_bytes(found):
        return Whitening("none")
    if meaning.space is None:
        raise ConfigError(
            f"{path}: nothing says what space its images are in: add --space pixels, --space"
            " normalised with --mean and --std, or --space whitened with --whitening FILE"
        )
    if meaning.space == "pixels":
        _require_pixels(found.images, path)
        return Whitening("none")
    if meaning.space == "normalised":
        return _normalisation(found, meaning)
    if meaning.whitening is None:
        raise ConfigError(
            "--space whitened: needs --whitening FILE with the ZCA: that of a run on the same data"
            " (snakemake results/NAME.whitening.zarr.zip)"
        )
    return whitening_file.read(meaning.whitening)


def _require_pixels(images: Tensor, path: Path) -> None:
    """Raise DataError for images that are far outside [0, 1]; distilled pixels may leave it."""
    if images.is_floating_point() and not -1 <= float(images.mean()) <= 2:
        raise DataError(
            f"{path}: the images have the mean {float(images.mean()):.3g}, pixels in [0, 1] have"
            " not: choose another --space"
        )


def _normalisation(found: Published, meaning: Meaning) -> Whitening:
    channels = found.images.shape[1]
    for key, numbers in (("--mean", meaning.mean), ("--std", meaning.std)):
        if numbers is None or len(numbers) != channels:
            given = "none" if numbers is None else len(numbers)
            raise ConfigError(
                f"{key}: {given} given: --space normalised needs {channels}, one of each channel"
            )
    if min(meaning.std) <= 0:
        raise ConfigError(f"--std: {min(meaning.std)} is not above 0")
    mean, std = (
        torch.tensor(numbers, dtype=torch.float32) for numbers in (meaning.mean, meaning.std)
    )
    return Whitening("channel", mean=mean, std=std)


def _recipe(found: Published, beside: Sidecar | None, meaning: Meaning, path: Path) -> Recipe:
    """That of the sidecar, or the default one; with the loss and the rate that were stated."""
    recipe = Recipe(**beside.recipe) if beside else Recipe.of(RecipeSettings())
    lr = meaning.lr or (recipe.lr if beside else found.lr) or recipe.lr
    soft = found.targets.ndim == 2
    loss = meaning.loss or (recipe.loss if beside else None) or (None if soft else "ce")
    if loss is None:
        raise ConfigError(
            f"{path}: nothing says what loss its soft labels are for: add --loss soft_ce (or l1,"
            " half_mse)"
        )
    recipe = replace(recipe, lr=lr, loss=loss)
    recipe.require_targets(found.targets, str(path))
    return recipe


def _targets(targets: Tensor, recipe: Recipe) -> Tensor:
    """The labels as the loss takes them: logits in the place of probabilities."""
    if targets.ndim == 1 or recipe.loss not in ("soft_ce", "kl"):
        return targets
    sums = targets.sum(dim=1)
    if bool((targets >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return targets.clamp_min(SMALLEST).log()
    return targets


def _class_names(found: Published, beside: Sidecar | None, path: Path) -> tuple[str, ...]:
    """The names of the classes, or their numbers where nobody names them."""
    if beside:
        names = tuple(beside.class_names)
    elif found.class_names:
        names = found.class_names
    else:
        soft = found.targets.ndim == 2
        count = found.targets.shape[1] if soft else int(found.targets.max()) + 1
        names = tuple(map(str, range(count)))
    if found.targets.ndim == 2 and found.targets.shape[1] != len(names):
        raise DataError(
            f"{path}: labels of {found.targets.shape[1]} classes, and {len(names)} class names"
        )
    return names


def _classes(found: Published, beside: Sidecar | None, count: int, path: Path) -> Tensor:
    """The class of each image: what the files say, else the order of DD-Ranking, class by class,
    the same number of each.
    """
    if beside:
        classes = torch.tensor(beside.classes)
    elif found.targets.ndim == 1:
        classes = found.targets
    elif found.classes is not None:
        classes = found.classes
    elif len(found.images) % count:
        raise DataError(
            f"{path}: {len(found.images)} images with soft labels are not the same number of each"
            f" of {count} classes, so their classes are not known: export the set as .npz with"
            " classes"
        )
    else:
        classes = torch.arange(count).repeat_interleave(len(found.images) // count)
    if (
        len(classes) != len(found.images)
        or not 0 <= int(classes.min()) <= int(classes.max()) < count
    ):
        raise DataError(
            f"{path}: classes from {int(classes.min())} to {int(classes.max())} of"
            f" {len(classes)} images: expected 0 to {count - 1} for {len(found.images)} images"
        )
    return classes
