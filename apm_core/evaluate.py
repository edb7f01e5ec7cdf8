"""Stage 5: networks trained from scratch on a distilled set, and on all of the data."""

from dataclasses import replace
from typing import Any

from apm_core import rng
from apm_core.distilled import DistilledSet
from apm_core.nets.spec import Spec
from apm_core.prepare import PreparedData
from apm_core.resume import Part, each
from apm_core.run import Run
from apm_core.scores import summarize
from apm_core.teachers import teacher_recipe
from apm_core.train import Examples, Recipe, Trainer, accuracy

# What a network is trained with: "own", the method's labels and recipe; "hard", classes and cross-
# entropy;
# "plain", the method's labels without augmentation.
PROTOCOLS = ("own", "hard", "plain")


def protocol_recipe(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe of the set under one protocol, with the E epochs and, where there is one, the
    learning rate of `settings`.
    """
    protocol = settings["protocol"]
    recipe = replace(recipe, lr=settings["lr"] or recipe.lr).with_epochs(settings["epochs"])
    if protocol == "hard":
        return recipe.with_hard_labels()
    return replace(recipe, augment="none") if protocol == "plain" else recipe


def evaluate(
    distilled: DistilledSet,
    data: PreparedData,
    settings: dict[str, Any],
    run: Run,
) -> dict[str, Any]:
    """Train `networks` fresh networks on the set and measure each once on the test split, after its
    last epoch.

    Returns: mean, sample standard deviation, n and runs of the test accuracy in percent, and
        seconds.
    Raises ArtifactError when the set was not distilled from `data`.
    """
    distilled.artifact.require_input("data", data.artifact)
    protocol = settings["protocol"]
    recipe = protocol_recipe(distilled.recipe, settings)
    targets = distilled.classes if protocol == "hard" else distilled.targets
    examples = Examples(distilled.images.to(run.compute.device), targets.to(run.compute.device))
    stream = (settings["seed"], "evaluate", protocol)
    return train_and_test(examples, data, recipe, settings, run, *stream)


def ceiling(
    data: PreparedData,
    settings: dict[str, Any],
    run: Run,
) -> dict[str, Any]:
    """The same for networks trained on the whole training split with the teachers' recipe."""
    stream = (settings["seed"], "ceiling")
    examples = data.examples("train", run.compute)
    return train_and_test(examples, data, teacher_recipe(settings), settings, run, *stream)


def train_and_test(
    examples: Examples,
    data: PreparedData,
    recipe: Recipe,
    settings: dict[str, Any],
    run: Run,
    *stream: rng.Path,
) -> dict[str, Any]:
    """Train the networks that `settings` name on `examples`, one stream each, and summarize their
    test accuracies.
    """
    spec = Spec.of(settings, data.shape)
    test = data.examples("test", run.compute)
    networks = settings["networks"]
    memory = spec.memory(run.compute.device)
    trainer = Trainer(memory, recipe, run.compute, examples, networks=networks)

    def one(position: int, number: int, part: Part | None) -> float:
        def show(done: int, total: int, figures: dict[str, float]) -> None:
            run.progress(position * total + done, networks * total, figures)

        start = spec.fresh(*stream, spec.name, number, "weights")
        trainer.fit(start, *stream, spec.name, number, progress=show, part=part)
        return accuracy(trainer.net, test, run.compute)

    accuracies = each(range(networks), one, run.resume)
    return {
        **summarize(accuracies),
        "seconds": run.seconds(),
        "recipe": recipe.to_dict(),
    }
