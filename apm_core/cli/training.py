"""`apm train`: networks trained on a distilled set as its recipe says."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from apm_core import distilled
from apm_core.data.class_folders import class_files
from apm_core.data.examples import Examples
from apm_core.data.images import ImageForm, decode
from apm_core.distilled import DistilledSet
from apm_core.errors import DataError
from apm_core.nets.spec import Spec
from apm_core.runtime.device import choose
from apm_core.scores import summarize
from apm_core.training.inference import accuracy
from apm_core.training.trainer import Trainer

LINES = 10  # of progress for each network


@dataclass(frozen=True)
class Options:
    """What a person chooses; None: the recipe's, or the architecture's own."""

    networks: int = 1
    epochs: int | None = None
    lr: float | None = None
    width: int | None = None
    depth: int | None = None
    seed: int = 0
    device: str = "auto"


def train(
    file: Path, arch: str, test: Path | None, options: Options, say: Callable[[str], None]
) -> list[float]:
    """Train fresh networks on the set `file`, with progress; returns their accuracies in percent on
    the class folders `test`, or none.

    Raises ArtifactError, ConfigError and DataError for what cannot be read or does not fit
    together, DivergenceError.
    """
    found, compute = distilled.load(file), choose(options.device)
    device = compute.device
    measured = test_examples(found, test) if test else None
    recipe = replace(found.recipe, lr=options.lr or found.recipe.lr)
    recipe = recipe.with_epochs(options.epochs) if options.epochs else recipe
    spec = Spec(arch, found.shape, options.width, options.depth)
    net = spec.network(device)
    examples = Examples(found.images.to(device), found.targets.to(device))
    trainer = Trainer(net, recipe, compute, examples, networks=options.networks)
    say(
        f"{arch} on {len(found)} images of {file}: {recipe.passes} epochs, lr {recipe.lr:g}, loss"
        f" {recipe.loss}, on {device} in {compute.precision}"
    )
    accuracies = []
    for number in range(options.networks):

        def show(done: int, total: int, figures: dict[str, float], *, number: int = number) -> None:
            if done == total or done % max(1, total // LINES) == 0:
                say(f"network {number}: epoch {done}/{total}, loss {figures['loss']:.4f}")

        stream = (options.seed, "train", spec.name)
        trainer.fit(spec.fresh(*stream, number, "weights"), *stream, number, progress=show)
        if measured:
            on_device = Examples(measured.images.to(device), measured.targets.to(device))
            accuracies.append(accuracy(net, on_device, compute))
            say(f"network {number}: {accuracies[-1]:.1f} % of {len(measured.targets)} test images")
    if len(accuracies) > 1:
        score = summarize(accuracies)
        say(f"accuracy: {score['mean']:.1f} ± {score['std']:.1f} % ({score['n']} networks)")
    return accuracies


def test_examples(found: DistilledSet, folder: Path) -> Examples:
    """The images of the class folders of `folder`, in the size of the set and by its whitening,
    with the indices of its classes.

    Raises DataError for a folder that is missing or is no class of the set.
    """
    if not folder.is_dir():
        raise DataError(
            f"--test {folder}: there is no such folder: name one with a folder per class"
        )
    files = class_files(folder)
    strange = sorted(set(files) - set(found.class_names))
    if strange:
        raise DataError(
            f"{folder / strange[0]}: {strange[0]!r} is no class of the set: name the folders as"
            f" its classes, {', '.join(found.class_names[:5])}, ..."
        )
    form = ImageForm(found.shape.resolution, found.shape.channels)
    pixels = decode([path for own in files.values() for path in own], form)
    targets = [found.class_names.index(name) for name, own in files.items() for _ in own]
    return Examples(found.whitening.apply(torch.from_numpy(pixels)), torch.tensor(targets))
