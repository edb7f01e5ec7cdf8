"""Class-incremental learning with a distilled set as the memory.

The classes come in steps. After each one a network is trained from scratch on the memory of the
classes seen so far and tested on the test images of these, of which it chooses one (GDumb: Prabhu
et al., ECCV 2020; so do DSA and DM). A set that was distilled with networks which knew all classes
shows how well parts of it serve as memory: to be read as an upper bound for distilling by steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apm_core.data.examples import Examples
from apm_core.data.prepared import PreparedData
from apm_core.distilled import DistilledSet
from apm_core.errors import ConfigError, DivergenceError
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.resume import Part, each
from apm_core.runtime.run import Run
from apm_core.scores import summarize
from apm_core.settings.stages import CollectSettings, ContinualSettings
from apm_core.stages.collect import about_run, pieces_of
from apm_core.stages.evaluate import train_and_test
from apm_core.training.rate_search import REAL

STAGE = "continual"
KIND = "continual results"


def continual(
    distilled: DistilledSet, data: PreparedData, settings: ContinualSettings, run: Run
) -> dict[str, Any]:
    """Train a network after every step of every order of the classes, on the images and labels of
    the classes seen so far alone (`DistilledSet.only`), by the set's recipe.

    Network and order do not depend on the set, so sets can be compared pair by pair.

    Returns: what was measured; the orders, as class names; by step, the classes seen and the
        accuracy on their test images over the orders, with the learning rate of each; the mean
        over the steps, over the orders; and the seconds.
    Raises ConfigError for more steps than classes, ArtifactError when the set was not distilled
    from `data`, and DivergenceError.
    """
    distilled.artifact.require_input("data", data.artifact)
    count = len(distilled.class_names)
    seen = seen_after(count, settings.steps)
    orders = [class_order(count, settings.seed, number) for number in range(settings.orders)]
    test = data.examples("test", run.compute)
    train = data.examples("train", run.compute) if settings.rates else None
    recipe = distilled.recipe.with_epochs(settings.epochs)
    items = [(number, most) for number in range(settings.orders) for most in seen]

    def one(earlier: Sequence[Any], item: tuple[int, int], part: Part | None) -> dict[str, float]:
        """Accuracy and rate of the network after one step of one order."""
        number, most = item
        classes, stream = orders[number][:most], (settings.seed, STAGE, *item)
        memory = distilled.only(classes)

        def show(done: int, total: int, figures: dict[str, float]) -> None:
            run.progress(len(earlier) * total + done, len(items) * total, figures)

        try:
            found = train_and_test(
                Examples(
                    memory.images.to(run.compute.device), memory.targets.to(run.compute.device)
                ),
                test.only(classes),
                recipe,
                Spec.of(settings.network, memory.shape),
                1,
                replace(run, progress=show),
                part,
                *stream,
                rates=[factor * recipe.lr for factor in settings.rates],
                real=train.only(classes).some(REAL, *stream, "real") if train else None,
            )
        except DivergenceError as error:
            raise DivergenceError(f"order {number}, {most} classes seen: {error}") from error
        return {"accuracy": found["metrics"]["accuracy"]["mean"], "lr": found["recipe"]["lr"]}

    found = each(items, one, run.resume)
    accuracies = np.array([network["accuracy"] for network in found]).reshape(len(orders), -1)
    rates = np.array([network["lr"] for network in found]).reshape(len(orders), -1)
    return {
        "measured": {
            "stage": STAGE,
            "entry": distilled.artifact.info["entry"],
            "network": settings.network.network,
        },
        "orders": [[distilled.class_names[c] for c in order] for order in orders],
        "steps": [
            {"classes": most, "accuracy": summarize(runs), "lr": lrs.tolist()}
            for most, runs, lrs in zip(seen, accuracies.T, rates.T, strict=True)
        ],
        "average": summarize(accuracies.mean(axis=1)),
        "seconds": run.seconds(),
    }


def seen_after(classes: int, steps: int) -> list[int]:
    """The number of classes seen after each step; the first steps bring one more where they cannot
    be equal. Raises ConfigError for more steps than classes.
    """
    if steps > classes:
        raise ConfigError(
            f"config: continual.steps: {steps} steps need as many classes, the data have {classes}:"
            " lower it"
        )
    parts = np.array_split(np.arange(classes), steps)
    return np.cumsum([len(part) for part in parts]).tolist()


def class_order(classes: int, seed: int, number: int) -> list[int]:
    """The class indices in the order `number` in which they come."""
    random = streams.generator(seed, STAGE, "order", number)
    return torch.randperm(classes, generator=random).tolist()


def curves(
    dataset: str,
    settings: CollectSettings,
    sets: Mapping[str, DistilledSet],
    files: Sequence[str | Path],
) -> dict[str, Any]:
    """The results of all `sets`, by entry, from their score files; ArtifactError for a file that
    was measured on another set or other data.
    """
    pieces = pieces_of(sets, files)
    by_entry = {piece["measured"]["entry"]: piece for piece in pieces}
    return {
        "run": about_run(dataset, settings, sets, pieces, (STAGE,)),
        "network": pieces[0]["measured"]["network"],
        "orders": pieces[0]["orders"],
        "methods": {
            entry: {
                "bytes_per_class": {
                    "images": one.image_bytes // len(one.class_names),
                    "labels": one.label_bytes // len(one.class_names),
                },
                "tiles": one.tiles,
                **{key: by_entry[entry][key] for key in ("steps", "average", "seconds")},
            }
            for entry, one in sets.items()
        },
    }
