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
from apm_core.training.trainer import Among, Trainer, everything


def train_group(
    path: str | Path,
    settings: PoolSettings,
    members: Sequence[int],
    data: PreparedData,
    run: Run,
) -> store.Artifact:
    """Train the teachers numbered `members` one after another and write them to `path`.

    Each teacher has a stream of its own, so a pool can grow without a change to those that are
    there. The last epoch is kept; test accuracies are recorded and choose nothing. With
    `snapshots`, the parameters at initialisation and after every epoch are kept as one array
    (member, epoch, parameter) of type `snapshot_type`. With a `curriculum` the job first scores the
    images; the scores are saved with its progress.
    """
    spec, training = Spec.of(settings.network, data.shape), settings.training
    recipe, seed = teacher_recipe(training), settings.seed
    train, test = data.examples("train", run.compute), data.examples("test", run.compute)
    plan = training.curriculum if isinstance(training, OrderedTraining) else None
    before = plan.networks * plan.epochs if plan else 0  # passes
    passes = before + len(members) * recipe.passes
    classes = train.targets.cpu()
    if plan:
        require_batches(plan, classes, recipe.batch)
    net = spec.network(run.compute.device)
    trainer = Trainer(net, recipe, run.compute, train, networks=len(members))

    kind = getattr(torch, training.snapshot_type)
    if training.snapshots:
        size = len(members) * (recipe.passes + 1) * net.size * kind.itemsize / 1e9
        run.compute.report(f"snapshots of {len(members)} networks will take {size:.3g} GB")

    def show(done: int, _: int, figures: dict[str, float], *, first: int) -> None:
        run.progress(first + done, passes, figures)

    def one(among: Among, earlier: Sequence[Any], member: int, part: Part | None) -> dict[str, Any]:
        start = initial(spec, seed, member)
        keep = range(recipe.passes) if training.snapshots else ()
        shown = partial(show, first=before + len(earlier) * recipe.passes)
        kept = trainer.fit(
            start, seed, "teacher", member, keep=keep, among=among, progress=shown, part=part
        )
        return {
            "parameters": trainer.net.snapshot().cpu(),
            "snapshots": [vector.to("cpu", kind) for vector in (start, *kept)],
            "accuracy": accuracy(trainer.net, test, run.compute),
        }

    def phase(earlier: Sequence[Any], name: str, part: Part | None) -> Any:  # noqa: ANN401
        if name == "scores":
            return scores(settings, spec, train, run.compute, part, show)
        return each(members, partial(one, Lessons(plan, earlier[0], classes)), part)

    if plan:
        _, trained = each(("scores", "teachers"), phase, run.resume)
    else:
        trained = each(members, partial(one, everything), run.resume)
    arrays = {"parameters": torch.stack([t["parameters"] for t in trained]).numpy()}
    if training.snapshots:
        arrays["snapshots"] = torch.stack([torch.stack(t["snapshots"]) for t in trained]).numpy()
    info = {
        "network": spec.to_dict(),
        "members": list(members),
        "test_accuracy": [t["accuracy"] for t in trained],
        "seconds": run.seconds(),
        "device": run.compute.describe(),
        "precision": run.compute.precision,
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
