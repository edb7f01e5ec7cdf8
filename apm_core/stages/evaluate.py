"""Stage 5: networks trained from scratch on a distilled set, and on all of the data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from apm_core.data.examples import Examples
from apm_core.data.prepared import PreparedData
from apm_core.distilled import DistilledSet
from apm_core.errors import DivergenceError
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.runtime.resume import Part, Resume, each
from apm_core.runtime.run import Run
from apm_core.scores import summarize
from apm_core.settings.evaluation import Protocol
from apm_core.settings.stages import CeilingSettings, EvaluateSettings
from apm_core.training.inference import measures
from apm_core.training.rate_search import REAL, accuracy_at, best_rate
from apm_core.training.recipe import Recipe, teacher_recipe
from apm_core.training.trainer import Trainer, Training, fit_together

KIND = "scores"


def protocol_recipe(recipe: Recipe, settings: EvaluateSettings, protocol: Protocol) -> Recipe:
    """What a network is trained with under a protocol, with the E epochs and, where there is one,
    the learning rate of the settings.

    own: the method's labels and recipe; hard: classes and cross-entropy; plain: the method's
    labels, without augmentation.
    """
    recipe = replace(recipe, lr=settings.lr or recipe.lr).with_epochs(settings.epochs)
    if protocol == "hard":
        return recipe.with_hard_labels()
    return replace(recipe, augment="none") if protocol == "plain" else recipe


def evaluate(
    distilled: DistilledSet, data: PreparedData, settings: EvaluateSettings, run: Run
) -> dict[str, Any]:
    """Train fresh networks on the set under each protocol, one after the other, and measure each
    network once on the test split, after its last epoch. The scores of a protocol do not depend on
    the others.

    With `rates`, factors of the recipe's learning rate, the network's own is first looked for: one
    network for each, judged on images of the training split.

    Returns: what was measured; by protocol, mean, sample standard deviation, n and runs of every
        metric, the recipe, and the accuracy at each rate; and the seconds of all protocols.
    Raises ArtifactError when the set was not distilled from `data`, and DivergenceError.
    """
    distilled.artifact.require_input("data", data.artifact)
    device, spec = run.compute.device, Spec.of(settings.network, data.shape)
    test = data.examples("test", run.compute)
    real = _real(data, settings, run.compute)
    images = distilled.images.to(device)

    def one(earlier: Sequence[Any], protocol: Protocol, part: Part | None) -> dict[str, Any]:
        """The scores under a protocol."""

        def show(done: int, total: int, figures: dict[str, float]) -> None:
            run.progress(len(earlier) * total + done, len(settings.protocols) * total, figures)

        recipe = protocol_recipe(distilled.recipe, settings, protocol)
        targets = distilled.classes if protocol == "hard" else distilled.targets
        try:
            return train_and_test(
                Examples(images, targets.to(device)),
                test,
                recipe,
                spec,
                settings.networks,
                replace(run, progress=show),
                part,
                *_stream(settings, protocol),
                rates=[factor * recipe.lr for factor in settings.rates],
                real=real.get(protocol),
            )
        except DivergenceError as error:
            raise DivergenceError(f"protocol {protocol}: {error}") from error

    scores = each(settings.protocols, one, run.resume)
    return {
        "measured": {
            "stage": "evaluate",
            "entry": distilled.artifact.info["entry"],
            "network": settings.network.network,
        },
        "protocols": dict(zip(settings.protocols, scores, strict=True)),
        "seconds": run.seconds(),
    }


def _stream(settings: EvaluateSettings, protocol: Protocol) -> tuple[streams.Key, ...]:
    return settings.seed, "evaluate", protocol


def _real(
    data: PreparedData, settings: EvaluateSettings, compute: Compute
) -> dict[Protocol, Examples]:
    """The training images that judge the rates of each protocol; none without rates."""
    if not settings.rates:
        return {}
    train = data.examples("train", compute)
    return {p: train.some(REAL, *_stream(settings, p), "real") for p in settings.protocols}


def ceiling(data: PreparedData, settings: CeilingSettings, run: Run) -> dict[str, Any]:
    """Train networks on the whole training split with the teachers' recipe; measured as by
    `evaluate`, and returned as one of its protocols.
    """
    scores = train_and_test(
        data.examples("train", run.compute),
        data.examples("test", run.compute),
        teacher_recipe(settings.training),
        Spec.of(settings.network, data.shape),
        settings.networks,
        run,
        run.resume,
        *(settings.seed, "ceiling"),
    )
    measured = {"stage": "ceiling", "network": settings.network.network}
    return {"measured": measured, **scores, "seconds": run.seconds()}


def train_and_test(
    examples: Examples,
    test: Examples,
    recipe: Recipe,
    spec: Spec,
    networks: int,
    run: Run,
    resume: Resume | Part | None,
    *stream: streams.Key,
    rates: Sequence[float] = (),
    real: Examples | None = None,
) -> dict[str, Any]:
    """Train `networks` networks on `examples`, one stream each, and summarize what they score on
    `test`. Where there are `rates`, the best of them on `real` takes the place of the recipe's.

    What is finished is kept in `resume`, in place of that of the run.
    """
    compute, groups = run.compute, run.compute.groups(range(networks))
    planned = len(groups) + len(rates)
    trainers = [
        Trainer(spec.network(compute.device), recipe, compute, examples, networks=planned)
        for _ in groups[0]
    ]

    def one(earlier: Sequence[Any], work: float | range, part: Part | None) -> Any:  # noqa: ANN401
        """The accuracy at a rate, or the metrics of a group of networks."""
        if isinstance(work, float):
            name = (*stream, spec.name, "rate")
            return accuracy_at(trainers[0], spec, work, real, *name, part=part)

        def show(done: int, total: int, figures: dict[str, float]) -> None:
            run.progress(work[0] * total + len(work) * done, networks * total, figures)

        trainings = [
            Training(spec.fresh(*stream, spec.name, n, "weights"), (*stream, spec.name, n))
            for n in work
        ]
        lr = best_rate(rates, earlier[: len(rates)]) if rates else None
        used = trainers[: len(work)]
        fit_together(used, trainings, lr=lr, progress=show, part=part)
        return [measures(trainer.net, test, compute) for trainer in used]

    results = each([*rates, *groups], one, resume)
    accuracies = results[: len(rates)]
    metrics = [network for group in results[len(rates) :] for network in group]
    used = replace(recipe, lr=best_rate(rates, accuracies)) if rates else recipe
    return {
        "metrics": {name: summarize([one[name] for one in metrics]) for name in metrics[0]},
        "recipe": used.to_dict(),
        "rates": [
            {"lr": lr, "accuracy": accuracy} for lr, accuracy in zip(rates, accuracies, strict=True)
        ],
    }
