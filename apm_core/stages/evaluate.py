"""Stage 5: networks trained from scratch on a distilled set, and on all of the data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

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
from apm_core.settings.evaluation import OfLogits, Protocol
from apm_core.settings.stages import CeilingSettings, EvaluateSettings
from apm_core.training.inference import labeller, measures
from apm_core.training.rate_search import REAL, accuracy_at, best_rate
from apm_core.training.recipe import Recipe, online_recipe, teacher_recipe
from apm_core.training.teacher_pool import TeacherPool
from apm_core.training.trainer import Labeller, Trainer, Training, fit_together

KIND = "scores"


def protocol_recipe(
    distilled: DistilledSet, settings: EvaluateSettings, protocol: Protocol
) -> Recipe:
    """What a network is trained with under a protocol. But for kd, with the E epochs of the
    settings and, where they state it, their learning rate, batch, optimizer, schedule and loss
    between logits.

    own: the method's labels and recipe; hard: classes and cross-entropy; plain: the method's
    labels, without augmentation; kd: a teacher's online labels, with a recipe of their own.
    """
    if protocol == "kd":
        return online_recipe(settings.kd, distilled.ipc)
    own = distilled.recipe
    recipe = replace(
        own.with_epochs(settings.epochs),
        lr=settings.lr or own.lr,
        batch=settings.batch or own.batch,
        optimizer=settings.optimizer or own.optimizer,
    )
    if settings.schedule not in (None, own.schedule):  # warm-up and floor belong to a schedule
        recipe = replace(recipe, schedule=settings.schedule, warmup=0, floor=0.0)
    if protocol == "hard":
        return recipe.with_hard_labels()
    if settings.loss and own.loss in get_args(OfLogits):
        recipe = replace(recipe, loss=settings.loss)
    return replace(recipe, augment="none") if protocol == "plain" else recipe


def evaluate(
    distilled: DistilledSet,
    data: PreparedData,
    settings: EvaluateSettings,
    run: Run,
    teachers: TeacherPool | None = None,
) -> dict[str, Any]:
    """Train fresh networks on the set under each protocol, one after the other, and measure each
    network once on the test split, after its last epoch. The scores of a protocol do not depend on
    the others.

    With `rates`, factors of the recipe's learning rate, the network's own is first looked for: one
    network for each, judged on images of the training split. Under kd, which has a rate of its own,
    the first of the `teachers` labels the batches.

    Returns: what was measured; by protocol, mean, sample standard deviation, n and runs of every
        metric, the recipe, the accuracy at each rate, and who labels online; and the seconds of all
        protocols.
    Raises ArtifactError when the set was not distilled from `data`, and DivergenceError.
    """
    distilled.artifact.require_input("data", data.artifact)
    device, spec = run.compute.device, Spec.of(settings.network, data.shape)
    test = data.examples("test", run.compute)
    real = _real(data, settings, run.compute)
    images = distilled.images.to(device)
    recipes = [protocol_recipe(distilled, settings, protocol) for protocol in settings.protocols]
    passes = [settings.networks * recipe.passes for recipe in recipes]

    def one(earlier: Sequence[Any], protocol: Protocol, part: Part | None) -> dict[str, Any]:
        """The scores under a protocol."""

        def show(done: int, _: int, figures: dict[str, float]) -> None:
            run.progress(sum(passes[: len(earlier)]) + done, sum(passes), figures)

        recipe, online = recipes[len(earlier)], protocol == "kd"
        targets = distilled.targets if protocol in ("own", "plain") else distilled.classes
        try:
            found = train_and_test(
                Examples(images, targets.to(device)),
                test,
                recipe,
                spec,
                settings.networks,
                replace(run, progress=show),
                part,
                *_stream(settings, protocol),
                rates=[] if online else [factor * recipe.lr for factor in settings.rates],
                real=real.get(protocol),
                label=labeller(teachers.load(0), run.compute) if online else None,
            )
        except DivergenceError as error:
            raise DivergenceError(f"protocol {protocol}: {error}") from error
        return {**found, "teacher": _first(teachers)} if online else found

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


def _first(teachers: TeacherPool) -> dict[str, Any]:
    """Who the first of the teachers is."""
    group = teachers.artifacts[0]
    return {
        "network": teachers.spec.name,
        "accuracy": group.info["test_accuracy"][0],
        "content": group.content,
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
    label: Labeller | None = None,
) -> dict[str, Any]:
    """Train `networks` networks on `examples`, one stream each, and summarize what they score on
    `test`. Where there are `rates`, the best of them on `real` takes the place of the recipe's;
    what `label` says of the images, that of their targets.

    What is finished is kept in `resume`, in place of that of the run.
    """
    compute, groups = run.compute, run.compute.groups(range(networks))
    planned = len(groups) + len(rates)
    trainers = [
        Trainer(
            spec.network(compute.device), recipe, compute, examples, networks=planned, label=label
        )
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
