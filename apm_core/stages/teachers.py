"""Stage 2: a pool of networks trained on the full data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apm_core.data.prepared import PreparedData
from apm_core.nets.spec import Spec
from apm_core.runtime import store
from apm_core.runtime.resume import Part, each
from apm_core.runtime.run import Run
from apm_core.settings.stages import PoolSettings
from apm_core.training.inference import accuracy
from apm_core.training.recipe import teacher_recipe
from apm_core.training.teacher_pool import KIND, initial
from apm_core.training.trainer import Trainer


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
    (member, epoch, parameter) of type `snapshot_type`.
    """
    spec, training = Spec.of(settings.network, data.shape), settings.training
    recipe, seed = teacher_recipe(training), settings.seed
    train, test = data.examples("train", run.compute), data.examples("test", run.compute)
    net = spec.network(run.compute.device)
    trainer = Trainer(net, recipe, run.compute, train, networks=len(members))

    kind = getattr(torch, training.snapshot_type)
    if training.snapshots:
        size = len(members) * (recipe.passes + 1) * net.size * kind.itemsize / 1e9
        run.compute.report(f"snapshots of {len(members)} networks will take {size:.3g} GB")

    def one(earlier: Sequence[Any], member: int, part: Part | None) -> dict[str, Any]:
        def show(done: int, total: int, figures: dict[str, float]) -> None:
            run.progress(len(earlier) * total + done, len(members) * total, figures)

        start = initial(spec, seed, member)
        keep = range(recipe.passes) if training.snapshots else ()
        kept = trainer.fit(start, seed, "teacher", member, keep=keep, progress=show, part=part)
        return {
            "parameters": trainer.net.snapshot().cpu(),
            "snapshots": [vector.to("cpu", kind) for vector in (start, *kept)],
            "accuracy": accuracy(trainer.net, test, run.compute),
        }

    trained = each(members, one, run.resume)
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
