"""`apm plan`: the jobs of a run, counted, and what can be said of their time and space beforehand.

Counted are trainings: 3 x the operations of a forward pass (one forward, two backward) x images x
epochs, plus the overhead of a step, at the speeds of `apm_core.runtime.device`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from apm_core.data.prepared import PreparedData
from apm_core.errors import ConfigError
from apm_core.nets.base import Shape
from apm_core.nets.spec import Spec
from apm_core.runtime.device import PLAIN, Compute
from apm_core.settings.names import ROOT
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.section import laid_over
from apm_core.settings.training import Network, Pool
from apm_core.training.inference import forward_flops

# training and test images, channels, side and classes of sets that are the same for everybody
KNOWN = {
    "digits": (1438, 359, 1, 8, 10),
    "cifar10": (50_000, 10_000, 3, 32, 10),
    "cifar100": (50_000, 10_000, 3, 32, 100),
    "tiny_imagenet": (100_000, 10_000, 3, 64, 200),
}
DEVICES = {"cpu": "on two CPU cores", "cuda": "on a GPU (reckoned, not measured)"}
SNAPSHOT_BYTES = {"float32": 4, "float16": 2}
CPU = Compute(torch.device("cpu"), compile="off")


@dataclass(frozen=True)
class Size:
    """The data set of a run."""

    train: int  # images
    test: int
    shape: Shape


@dataclass(frozen=True)
class Work:
    """Networks in training, all of one stage."""

    flops: float = 0.0
    steps: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.steps + other.steps)

    def hours(self, device: str) -> float:
        """On one device, uncompiled."""
        plain = PLAIN[device]
        return (self.flops / plain.flops + self.steps * plain.step_s) / 3600


def lines(configs: Sequence[Path]) -> Iterator[str]:
    """The plan of a run in words; raises ConfigError for a config that is none."""
    plan = Plan(RunSettings.of(read(configs)))
    counts = jobs(plan)
    yield f"{'stage':<14}{'jobs':>6}"
    yield from (f"{stage:<14}{count:>6}" for stage, count in counts.items() if count)
    yield f"{'in all':<14}{sum(counts.values()):>6}"
    size = size_of(plan)
    if size is None:
        name = plan.settings.dataset.name
        yield (
            "estimates: need the number of images: run snakemake --configfile"
            f" {' '.join(map(str, configs))} -- work/{name}/data.zarr.zip first"
        )
        return
    yield "estimates, not measurements; hours of one device, uncompiled:"
    for stage, work in trainings(plan, size).items():
        if work.flops:
            hours = ", ".join(f"{work.hours(kind):.2g} h {name}" for kind, name in DEVICES.items())
            yield f"  {stage:<12}{work.flops:.1e} operations: {hours}"
    yield f"  disk        {disk_bytes(plan, size) / 1e9:.2g} GB, and resume files beside it"
    yield "  not estimated: distill (its job logs the hours after two rounds) and NAS"


def read(configs: Sequence[Path]) -> dict[str, Any]:
    """The configs laid over config.yaml, if that is at hand, and over each other, as Snakemake does
    it; raises ConfigError for a file that is missing or none.
    """
    base, found = ROOT.parent / "config.yaml", {}
    for path in [*([base] if base.is_file() else []), *configs]:
        try:
            stated = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file: check the path") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{path}: is not YAML ({reason})") from error
        if not isinstance(stated, dict):
            raise ConfigError(f"{path}: holds {type(stated).__name__}, expected keys and values")
        found = laid_over(found, stated)
    return found


def jobs(plan: Plan) -> dict[str, int]:
    """The number of jobs of each stage."""
    settings, entries = plan.settings, len(plan.entries)
    ranked = settings.nas.networks > 0
    return {
        "prepare": 1,
        "whitening": 1,
        "teachers": sum(len(plan.groups(pool)) for pool in pools(plan)),
        "distill": entries * settings.distill.shards,
        "merge": entries,
        "evaluate": entries * len(plan.protocols),
        "ceiling": len(settings.evaluate.ceiling.architectures),
        "nas_reference": int(ranked and settings.nas.reference.source == "train"),
        "nas_proxy": entries * ranked,
        "nas": entries * ranked,
        "collect": 1,
    }


def pools(plan: Plan) -> dict[str, Pool]:
    """The pools that the entries distil from, or that label their sets."""
    used = {find(entry) for entry in plan.entries for find in (plan.distill_pool, plan.label_pool)}
    return {name: pool for name, pool in plan.settings.pools.items() if name in used}


def size_of(plan: Plan) -> Size | None:
    """What the prepared data hold, else what everybody knows of the set, else None."""
    dataset = plan.settings.dataset
    file = Path("work", dataset.name, "data.zarr.zip")
    if file.is_file():
        data = PreparedData.open(file)
        counts = (data.artifact.shapes[f"{split}_images"][0] for split in ("train", "test"))
        return Size(*counts, data.shape)
    known = KNOWN.get(dataset.source or dataset.name)
    if known is None:
        return None
    train, test, channels, side, classes = known
    if dataset.held_out:
        test = round(train * dataset.held_out)
        train -= test
    return Size(
        train, test, Shape(dataset.channels or channels, dataset.resolution or side, classes)
    )


def trainings(plan: Plan, size: Size) -> dict[str, Work]:
    """The networks that each stage trains."""
    settings, made = plan.settings, set_images(plan, size)
    work = {"teachers": Work(), "evaluate": Work(), "ceiling": Work()}
    for name, pool in pools(plan).items():
        told = plan.pool(name)
        passes = pool.n * pool.epochs * (2 if pool.rho else 1)
        work["teachers"] += _trained(told.network, size, size.train, passes, pool.batch)
    for network, protocols in plan.protocols.items():
        told = plan.evaluate(network)
        passes = (told.networks + len(told.rates)) * (told.epochs + 1) * len(protocols)
        for entry in plan.entries:
            batch = plan.merge(entry).recipe.batch
            work["evaluate"] += _trained(told.network, size, made, passes, batch)
    for network in settings.evaluate.ceiling.architectures:
        told = plan.ceiling(network)
        passes = told.networks * told.training.epochs
        work["ceiling"] += _trained(told.network, size, size.train, passes, told.training.batch)
    return work


def set_images(plan: Plan, size: Size) -> int:
    """Stored images of a distilled set."""
    return plan.settings.ipc * size.shape.classes


def _trained(network: Network, size: Size, images: int, passes: int, batch: int) -> Work:
    net = Spec.of(network, size.shape).network(CPU.device)
    flops = 3 * forward_flops(net, size.shape.image, CPU) * images * passes
    return Work(flops, passes * math.ceil(images / batch))


def disk_bytes(plan: Plan, size: Size) -> float:
    """Data, pools and distilled sets, before they are compressed."""
    pixels, settings = math.prod(size.shape.image), plan.settings
    total = float((size.train + size.test) * pixels)
    if settings.dataset.whitening == "zca":
        total += 2 * 4 * pixels**2  # in the data, and beside the sets
    for name, pool in pools(plan).items():
        parameters = Spec.of(plan.pool(name).network, size.shape).network(CPU.device).size
        kept = (pool.epochs + 1) * SNAPSHOT_BYTES[pool.snapshot_type] if pool.snapshots else 0
        total += pool.n * parameters * (4 + kept)
    one = set_images(plan, size) * (pixels * 5 + 4 * size.shape.classes)  # float32 and uint8
    return total + 2 * one * len(plan.entries)  # shards and sets
