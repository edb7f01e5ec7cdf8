"""Stage 6: does a distilled set rank architectures as the full data do?

Networks of NAS-Bench-201 are trained on the distilled set; their accuracies are compared with a
reference ranking, which comes from the benchmark's table or from training the same networks on the
full data. Beside the set stand two rankings that need none: by trainings on the full data that are
as short as those on the set, and by the number of parameters.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apm_core import scores
from apm_core.data.examples import Examples
from apm_core.data.prepared import PreparedData
from apm_core.distilled import DistilledSet
from apm_core.errors import DataError
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.nasbench201 import network, parse, sample
from apm_core.runtime import streams
from apm_core.runtime.device import Compute, threads_of
from apm_core.runtime.resume import Part, each
from apm_core.runtime.run import Run
from apm_core.settings.evaluation import RankedNetworks
from apm_core.settings.stages import RankingSettings
from apm_core.training.inference import accuracy
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Among, Trainer, Training, everything, fit_together

ARCH_COLUMN = "arch_str"


def proxy(
    distilled: DistilledSet,
    data: PreparedData,
    settings: RankingSettings,
    run: Run,
) -> dict[str, Any]:
    """Train every network on the distilled set with the method's labels, `seeds` times.

    Returns: entry; architectures (n); accuracies in percent, (seeds, n); parameters (n); seconds;
    device.
    Raises ArtifactError when the set was not distilled from `data`.
    """
    distilled.artifact.require_input("data", data.artifact)
    examples = Examples(
        distilled.images.to(run.compute.device), distilled.targets.to(run.compute.device)
    )
    recipe = _recipe(settings, loss=distilled.recipe.loss, augment=distilled.recipe.augment)
    ranking = _train_all(examples, data, recipe, settings, run, stage="nas proxy")
    return {"entry": distilled.artifact.info["entry"], **ranking}


def train_short(
    data: PreparedData,
    images_per_class: int,
    settings: RankingSettings,
    run: Run,
) -> dict[str, Any]:
    """The same networks on the full training split with class labels, in trainings as long as those
    of `proxy` on a set of `images_per_class`: as many passes, each over so many other images, at
    most all, in as many steps, or one fewer where the last batch would be short.
    """
    recipe = _recipe(settings, loss="ce", augment=settings.augment)
    examples = data.examples("train", run.compute)
    count = len(examples.targets)
    images = min(images_per_class * data.shape.classes, count)
    # of equal size, since a part of the examples may have no batch of another
    recipe = replace(recipe, batch=math.ceil(images / math.ceil(images / recipe.batch)))
    name = settings.seed, "nas short"
    rounds = math.ceil(images * recipe.passes / count)
    every = [torch.randperm(count, generator=streams.generator(*name, n)) for n in range(rounds)]
    order = torch.cat(every)

    def among(index: int) -> Tensor:
        return order[index * images : (index + 1) * images]

    ranking = _train_all(examples, data, recipe, settings, run, stage="nas short", among=among)
    return {"images_per_class": images_per_class, **ranking}


def train_reference(
    data: PreparedData,
    settings: RankingSettings,
    run: Run,
) -> dict[str, Any]:
    """The same networks on the full training split with class labels, once each."""
    recipe = _recipe(settings, loss="ce", augment=settings.augment)
    examples = data.examples("train", run.compute)
    once = settings.changed({"seeds": 1})
    return _train_all(examples, data, recipe, once, run, stage="nas reference")


def table_reference(path: str | Path, column: str, archs: Sequence[str]) -> list[float]:
    """The accuracies of `archs` in a CSV (or CSV.gz) table with a column `arch_str`.

    Raises DataError when the file, the column or an accuracy is missing, or not what it should be.
    """
    path, place = Path(path), f"nas.reference.table: {path}"
    if not path.is_file():
        raise DataError(f"nas.reference.table: there is no file {path}")
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            rows = csv.DictReader(file)
            columns, cells = rows.fieldnames or [], list(rows)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise DataError(f"{place} cannot be read ({error}): replace it") from error
    for key, name in ((ARCH_COLUMN, "table"), (column, "column")):
        if key not in columns:
            known = ", ".join(columns)
            raise DataError(f"nas.reference.{name}: {path} has no column {key!r}; it has: {known}")
    accuracies = {row[ARCH_COLUMN]: row[column] for row in cells}
    found = []
    for arch in archs:
        if arch not in accuracies:
            raise DataError(f"{place} has no row for {arch}")
        try:
            found.append(float(accuracies[arch]))
        except (TypeError, ValueError):
            value = accuracies[arch]
            raise DataError(f"{place} has no {column} for {arch}, but {value!r}") from None
    return found


def compare(
    proxies: dict[str, Any],
    reference: Sequence[float],
    source: str,
    seed: int,
    *,
    short: dict[str, Any] | None = None,
    trained: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Rank agreement of a proxy with the reference, both in the order of the architectures, and
    what a search by the proxy comes to; `short` is the ranking by short trainings on the full data
    and `trained` that by long ones, if they were made.

    Spearman and Kendall are means over the proxy's seeds; their 95 % interval comes from drawing
    networks anew, with each network's mean accuracy. All accuracies that are ranked are in the
    outcome too. A correlation or an interval that does not exist (all proxies equal) is None.

    The search takes the architecture that the proxy likes best: `pick`, several where they are
    level, as `best`. Their accuracies by the reference, and the mean of all, which is what a random
    choice comes to, are in `reference`. `baselines` are rankings without a set: by the number of
    parameters, and by `short`, with agreement, choice, its accuracy and the cost.
    """
    archs, runs = proxies["architectures"], np.array(proxies["accuracies"])  # (seeds, n)
    mean = runs.mean(axis=0)
    rankings = {"parameters": {"accuracies": [proxies["parameters"]], "seconds": 0.0}}
    if short:
        rankings["short"] = short
    return {
        "measured": {"stage": "nas", "entry": proxies["entry"]},
        "networks": len(reference),
        "seeds": len(runs),
        **_agreement(reference, runs, seed),
        "top10_recall": scores.top_recall(reference, mean, 0.1),
        "reference": {
            "source": source,
            "pick": scores.pick(reference, mean),
            "best": max(reference),
            "mean": float(np.mean(reference)),
        },
        "search": {
            "pick": _first(archs, mean),
            "best": _first(archs, reference),
            "by_set": _cost(proxies),
            "by_full_data": _cost(trained) if trained else None,
        },
        "baselines": {
            name: _baseline(ranking, archs, reference, seed) for name, ranking in rankings.items()
        },
        "accuracies": {"reference": list(reference), "proxy": mean.tolist()},
        "seconds": proxies["seconds"],
    }


def _agreement(reference: Sequence[float], runs: np.ndarray, seed: int) -> dict[str, Any]:
    """Spearman and Kendall of `runs` (seeds, n) with the reference."""
    found, mean = {}, runs.mean(axis=0)
    for name, statistic in (("spearman", scores.spearman), ("kendall", scores.kendall)):
        values = [statistic(reference, run) for run in runs]
        defined = not any(math.isnan(value) for value in values)
        interval = scores.bootstrap_ci(
            reference, mean, statistic, seed=streams.derive(seed, "bootstrap", name)
        )
        summary = scores.summarize(values) if defined else {"mean": None, "std": None}
        found[name] = {
            "mean": summary["mean"],
            "std": summary["std"],
            "ci95": list(interval) if defined and not math.isnan(interval[0]) else None,
        }
    return found


def _baseline(
    ranking: dict[str, Any], archs: Sequence[str], reference: Sequence[float], seed: int
) -> dict[str, Any]:
    """Agreement, choice and cost of a ranking that needs no set."""
    runs = np.array(ranking["accuracies"], dtype=float)
    mean = runs.mean(axis=0)
    return {
        **_agreement(reference, runs, seed),
        "pick": _first(archs, mean),
        "accuracy": scores.pick(reference, mean),
        "images_per_class": ranking.get("images_per_class"),
        "cost": _cost(ranking),
    }


def _first(archs: Sequence[str], accuracies: Sequence[float]) -> list[str]:
    """The architectures with the highest accuracy."""
    most = max(accuracies)
    return [arch for arch, one in zip(archs, accuracies, strict=True) if one == most]


def _cost(ranking: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a ranking, and core seconds where it ran on cores; rankings from before do not say
    where they ran.
    """
    device = ranking.get("device")
    cores = threads_of(device) if device else None
    seconds = ranking["seconds"]
    return {
        "seconds": seconds,
        "core_seconds": cores * seconds if cores else None,
        "device": device,
    }


def architectures(settings: RankingSettings) -> list[str]:
    """The architectures that are ranked; a larger number extends the list of a smaller one."""
    return sample(settings.ranked.networks, settings.seed)


def _recipe(settings: RankingSettings, *, loss: str, augment: str) -> Recipe:
    training = settings.training
    return Recipe(
        passes=training.epochs,
        lr=training.lr,
        batch=training.batch,
        weight_decay=training.weight_decay,
        nesterov=True,
        schedule="cosine",
        loss=loss,
        augment=augment,
    )


def _train_all(
    examples: Examples,
    data: PreparedData,
    recipe: Recipe,
    settings: RankingSettings,
    run: Run,
    *,
    stage: str,
    among: Among = everything,
) -> dict[str, Any]:
    archs, seeds = architectures(settings), settings.seeds
    test = data.examples("test", run.compute)
    jobs = [(seed, arch) for seed in range(seeds) for arch in archs]

    def some(
        done: Sequence[list[list[float]]], group: Sequence[tuple[int, str]], part: Part | None
    ) -> list[list[float]]:
        """Accuracy and number of parameters of each network of a group."""
        names = [(settings.seed, stage, *job) for job in group]
        nets = [
            _network(arch, data.shape, settings.ranked, run.compute, name)
            for name, (_, arch) in zip(names, group, strict=True)
        ]
        trainers = [Trainer(net, recipe, run.compute, examples, networks=1) for net in nets]
        trainings = [Training(net.snapshot(), name) for net, name in zip(nets, names, strict=True)]
        fit_together(trainers, trainings, among=among, part=part)
        found = [[accuracy(net, test, run.compute), net.vector.numel()] for net in nets]
        finished = sum(map(len, done)) + len(group)
        run.progress(finished, len(jobs), {"accuracy": found[-1][0]})
        return found

    found = each(run.compute.groups(jobs), some, run.resume)
    networks = [one for group in found for one in group]
    accuracies = [accuracy for accuracy, _ in networks]
    return {
        "architectures": archs,
        "accuracies": np.array(accuracies).reshape(seeds, len(archs)).tolist(),
        "parameters": [parameters for _, parameters in networks[: len(archs)]],
        "seconds": run.seconds(),
        "device": run.compute.describe(),
    }


def _network(
    arch: str,
    shape: Shape,
    ranked: RankedNetworks,
    compute: Compute,
    stream: tuple[streams.Key, ...],
) -> FlatNet:
    with streams.seeded(*stream, "weights"):
        module = network(
            parse(arch),
            shape,
            stem=ranked.stem,
            cells=ranked.cells,
            norm=ranked.norm,
        )
    return FlatNet(module.to(compute.device))
