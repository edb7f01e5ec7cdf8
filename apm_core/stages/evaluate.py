"""Stage 5: networks trained from scratch on a distilled set, and on all of the data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from apm_core.data.examples import Examples
from apm_core.data.prepared import PreparedData
from apm_core.distilled import DistilledSet
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.resume import Part, each
from apm_core.runtime.run import Run
from apm_core.scores import summarize
from apm_core.settings.stages import CeilingSettings, EvaluateSettings
from apm_core.training.inference import measures
from apm_core.training.rate_search import REAL, accuracy_at, best_rate
from apm_core.training.recipe import Recipe, teacher_recipe
from apm_core.training.trainer import Trainer

KIND = "scores"


def protocol_recipe(recipe: Recipe, settings: EvaluateSettings) -> Recipe:
    """What a network is trained with under a protocol, with the E epochs and, where there is one,
    the learning rate of the settings.

    own: the method's labels and recipe; hard: classes and cross-entropy; plain: the method's
    labels, without augmentation.
    """
    recipe = replace(recipe, lr=settings.lr or recipe.lr).with_epochs(settings.epochs)
    if settings.protocol == "hard":
        return recipe.with_hard_labels()
    return replace(recipe, augment="none") if settings.protocol == "plain" else recipe


def evaluate(
    distilled: DistilledSet, data: PreparedData, settings: EvaluateSettings, run: Run
) -> dict[str, Any]:
    """Train fresh networks on the set and measure each once on the test split, after its last
    epoch.

    With `rates`, factors of the recipe's learning rate, the network's own is first looked for: one
    network for each, judged on images of the training split.

    Returns: what was measured; mean, sample standard deviation, n and runs of every metric;
        seconds; the recipe; and the accuracy at each rate.
    Raises ArtifactError when the set was not distilled from `data`, and DivergenceError.
    """
    distilled.artifact.require_input("data", data.artifact)
    protocol = settings.protocol
    recipe = protocol_recipe(distilled.recipe, settings)
    targets = distilled.classes if protocol == "hard" else distilled.targets
    examples = Examples(distilled.images.to(run.compute.device), targets.to(run.compute.device))
    measured = {
        "stage": "evaluate",
        "entry": distilled.artifact.info["entry"],
        "network": settings.network.network,
        "protocol": protocol,
    }
    stream = (settings.seed, "evaluate", protocol)
    rates = [factor * recipe.lr for factor in settings.rates]
    scores = train_and_test(examples, data, recipe, settings, run, *stream, rates=rates)
    return {"measured": measured, **scores}


def ceiling(data: PreparedData, settings: CeilingSettings, run: Run) -> dict[str, Any]:
    """Train networks on the whole training split with the teachers' recipe; measured and returned
    as by `evaluate`.
    """
    stream, recipe = (settings.seed, "ceiling"), teacher_recipe(settings.training)
    examples = data.examples("train", run.compute)
    measured = {"stage": "ceiling", "network": settings.network.network}
    scores = train_and_test(examples, data, recipe, settings, run, *stream)
    return {"measured": measured, **scores}


def train_and_test(
    examples: Examples,
    data: PreparedData,
    recipe: Recipe,
    settings: EvaluateSettings | CeilingSettings,
    run: Run,
    *stream: streams.Key,
    rates: Sequence[float] = (),
) -> dict[str, Any]:
    """Train the networks that `settings` name on `examples`, one stream each, and summarize what
    they score on the test split. Where there are `rates`, the best of them takes the place of the
    recipe's.
    """
    spec = Spec.of(settings.network, data.shape)
    test = data.examples("test", run.compute)
    networks = settings.networks
    real = data.examples("train", run.compute).some(REAL, *stream, "real") if rates else None
    net = spec.network(run.compute.device)
    trainer = Trainer(net, recipe, run.compute, examples, networks=networks + len(rates))

    def one(earlier: Sequence[Any], number: int, part: Part | None) -> Any:  # noqa: ANN401
        """The accuracy at a rate, or the metrics of a network."""
        if number < len(rates):
            name = (*stream, spec.name, "rate")
            return accuracy_at(trainer, spec, rates[number], real, *name, part=part)
        number -= len(rates)

        def show(done: int, total: int, figures: dict[str, float]) -> None:
            run.progress(number * total + done, networks * total, figures)

        start, name = spec.fresh(*stream, spec.name, number, "weights"), (*stream, spec.name)
        lr = best_rate(rates, earlier[: len(rates)]) if rates else None
        trainer.fit(start, *name, number, lr=lr, progress=show, part=part)
        return measures(trainer.net, test, run.compute)

    results = each(range(len(rates) + networks), one, run.resume)
    accuracies, metrics = results[: len(rates)], results[len(rates) :]
    used = replace(recipe, lr=best_rate(rates, accuracies)) if rates else recipe
    return {
        "metrics": {name: summarize([one[name] for one in metrics]) for name in metrics[0]},
        "seconds": run.seconds(),
        "recipe": used.to_dict(),
        "rates": [
            {"lr": lr, "accuracy": accuracy} for lr, accuracy in zip(rates, accuracies, strict=True)
        ],
    }
