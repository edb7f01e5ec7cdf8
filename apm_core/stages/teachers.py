"""Stage 2: a pool of networks trained on the full data."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apm_core.data.examples import Examples
from apm_core.data.prepared import PreparedData
from apm_core.nets.spec import Spec
from apm_core.runtime import store
from apm_core.runtime.device import Compute
from apm_core.runtime.resume import Part, each
from apm_core.runtime.run import Run
from apm_core.settings.stages import PoolSettings
from apm_core.settings.training import OrderedTraining
from apm_core.training.difficulty import Lessons, gradient_norms, require_batches
from apm_core.training.inference import accuracy
from apm_core.training.recipe import teacher_recipe
from apm_core.training.teacher_pool import KIND, initial
from apm_core.training.trainer import Among, Trainer, Training, everything, fit_together


def train_group(
    path: str | Path,
    settings: PoolSettings,
    members: Sequence[int],
    data: PreparedData,
    run: Run,
) -> store.Artifact:
    """Train the teachers numbered `members` and write them to `path`.

    Each teacher has a stream of its own, so a pool can grow without a change to those that are
    there. The last epoch is kept; test accuracies are recorded and choose nothing. With
    `snapshots`, the parameters at initialisation and after every epoch are kept as one array
    (member, epoch, parameter) of type `snapshot_type`. With a `curriculum` the job first scores the
    images; the scores are saved with its progress.
    """
    spec, training = Spec.of(settings.network, data.shape), settings.training
    recipe, seed = teacher_recipe(training), settings.seed
    compute = run.compute
    train, test = data.examples("train", compute), data.examples("test", compute)
    plan = training.curriculum if isinstance(training, OrderedTraining) else None
    before = plan.networks * plan.epochs if plan else 0  # passes
    passes = before + len(members) * recipe.passes
    classes = train.targets.cpu()
    if plan:
        require_batches(plan, classes, recipe.batch)
    groups = compute.groups(members)
    trainers = [
        Trainer(spec.network(compute.device), recipe, compute, train, networks=len(groups))
        for _ in groups[0]
    ]

    kind = getattr(torch, training.snapshot_type)
    if training.snapshots:
        size = len(members) * (recipe.passes + 1) * trainers[0].net.size * kind.itemsize
        size /= 1e9
        compute.report(f"snapshots of {len(members)} networks will take {size:.3g} GB")

    def some(
        among: Among, earlier: Sequence[Any], group: Sequence[int], part: Part | None
    ) -> list[dict[str, Any]]:
        first = before + sum(map(len, earlier)) * recipe.passes

        def shown(done: int, _: int, figures: dict[str, float]) -> None:
            run.progress(first + len(group) * done, passes, figures)

        trainings = [Training(initial(spec, seed, n), (seed, "teacher", n)) for n in group]
        keep = range(recipe.passes) if training.snapshots else ()
        used = trainers[: len(group)]
        kept = fit_together(used, trainings, keep=keep, among=among, progress=shown, part=part)
        return [
            {
                "parameters": trainer.net.snapshot().cpu(),
                "snapshots": [vector.to("cpu", kind) for vector in (one.start, *vectors)],
                "accuracy": accuracy(trainer.net, test, compute),
            }
            for trainer, one, vectors in zip(used, trainings, kept, strict=True)
        ]

    def show(done: int, _: int, figures: dict[str, float], *, first: int) -> None:
        run.progress(first + done, passes, figures)

    def phase(earlier: Sequence[Any], name: str, part: Part | None) -> Any:  # noqa: ANN401
        if name == "scores":
            return scores(settings, spec, train, compute, part, show)
        return each(groups, partial(some, Lessons(plan, earlier[0], classes)), part)

    if plan:
        _, found = each(("scores", "teachers"), phase, run.resume)
    else:
        found = each(groups, partial(some, everything), run.resume)
    trained = [teacher for group in found for teacher in group]
    arrays = {"parameters": torch.stack([t["parameters"] for t in trained]).numpy()}
    if training.snapshots:
        arrays["snapshots"] = torch.stack([torch.stack(t["snapshots"]) for t in trained]).numpy()
    info = {
        "network": spec.to_dict(),
        "members": list(members),
        "test_accuracy": [t["accuracy"] for t in trained],
        "seconds": run.seconds(),
        "device": compute.describe(),
        "precision": compute.precision,
    }
    return store.write(
        path,
        KIND,
        arrays,
        settings=settings.to_dict(),
        inputs={"data": data.artifact},
        info=info,
    )


def scores(
    settings: PoolSettings,
    spec: Spec,
    train: Examples,
    compute: Compute,
    part: Part | None,
    show: Callable[..., None],
) -> Tensor:
    """How difficult each training image is, (N,): the mean of its gradient's norm over networks in
    the first epochs of the teachers' recipe, without its search for flat minima.
    """
    plan = settings.training.curriculum
    recipe = teacher_recipe(settings.training)
    recipe = replace(recipe, passes=plan.epochs, drop=None, rho=0.0)
    net = spec.network(compute.device)
    trainer = Trainer(net, recipe, compute, train, networks=plan.networks)
    judge = spec.network(compute.device)  # outside our own kernels, which have no vmap

    def one(earlier: Sequence[Tensor], number: int, part: Part | None) -> Tensor:
        stream = (settings.seed, "difficulty", number)
        shown = partial(show, first=len(earlier) * plan.epochs)
        trainer.fit(spec.fresh(*stream, "weights"), *stream, progress=shown, part=part)
        judge.module.load_state_dict(net.module.state_dict())
        return gradient_norms(judge, train)

    return torch.stack(each(range(plan.networks), one, part)).mean(dim=0)
