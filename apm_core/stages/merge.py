"""Stage 4: put the shards together and store the final labels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from apm_core import distilled
from apm_core.data.labels import Labels
from apm_core.data.prepared import PreparedData
from apm_core.data.tiles import Tiles, are_whitened
from apm_core.data.whitening import to_uint8
from apm_core.data.whitening_file import WhiteningFile
from apm_core.distilled import DistilledSet
from apm_core.errors import ArtifactError
from apm_core.runtime import store, streams
from apm_core.runtime.device import Compute
from apm_core.settings.stages import MergeSettings
from apm_core.settings.text import canonical
from apm_core.stages.distill import KIND as SHARD
from apm_core.training.recipe import Recipe
from apm_core.training.teacher_pool import TeacherPool


def merge(
    path: str | Path,
    settings: MergeSettings,
    shard_paths: Sequence[str | Path],
    data: PreparedData,
    pool: TeacherPool | None,
    compute: Compute,
    whitening_name: str = "whitening.zarr.zip",
) -> store.Artifact:
    """Concatenate the shards in the order given, label them and write the distilled set to `path`.

    A learned learning rate is the mean of the shards'. `whitening_name` is that of the file beside
    the set which holds the whitening of `data`; the file itself is not touched.

    Raises ArtifactError when a shard comes from other data or other settings than the first,
    ConfigError when the loss of the recipe does not go with the labels.
    """
    shards = [store.read(one, SHARD) for one in shard_paths]
    for shard in shards:
        shard.require_input("data", data.artifact)
        if canonical(shard.settings) != canonical(shards[0].settings):
            raise ArtifactError(
                f"{shard.path}: was distilled with other settings than {shards[0].path}:"
                f" delete {shard.path} and run again"
            )
    stored = torch.cat([torch.from_numpy(shard.arrays["images"]) for shard in shards])
    factor = shards[0].settings["tiles"]
    pixels = stored if factor > 1 else data.whitening.invert(stored)
    if settings.product.pixels == "uint8":
        stored = to_uint8(pixels)
    images = stored
    if not are_whitened(stored, factor):
        images = Tiles(factor, data.whitening).decode(stored)
    classes = torch.cat([torch.from_numpy(shard.arrays["classes"]) for shard in shards])
    if "targets" in shards[0].arrays:
        targets = torch.cat([torch.from_numpy(shard.arrays["targets"]) for shard in shards])
    elif settings.labels == "classes":
        targets = classes
    else:
        targets = pool_labels(pool, images, settings, compute)
    recipe = Recipe.of(settings.recipe)
    recipe.require_targets(targets, f"entry {settings.entry}")
    if shards[0].info["rate"] is not None:
        recipe = replace(recipe, lr=sum(shard.info["rate"] for shard in shards) / len(shards))
    result = DistilledSet(
        stored,
        classes,
        Labels.of(targets, bits=settings.product.label_bits, top=settings.product.top),
        recipe,
        to_uint8(pixels),
        whitening_beside(path, whitening_name, data),
        tuple(data.class_names),
        data.artifact,
        factor,
    )
    info = {
        "entry": settings.entry,
        "method": shards[0].settings["method"],
        "real_bytes": data.train_bytes,
        "teacher_seconds": max(
            sum(group.info["seconds"] for group in pool.artifacts) if pool else 0.0,
            shards[0].info["pool_seconds"],
        ),
        "distill_seconds": sum(shard.info["seconds"] for shard in shards),
        "peak_memory_bytes": max(shard.info["peak_memory_bytes"] for shard in shards),
        "device": shards[0].info["device"],
        "precision": shards[0].info["precision"],
    }
    inputs = {"data": data.artifact}
    inputs |= {
        f"teachers{number}": group for number, group in enumerate(pool.artifacts if pool else ())
    }
    inputs |= {f"shard{number}": shard for number, shard in enumerate(shards)}
    return distilled.save(path, result, settings=settings.to_dict(), inputs=inputs, info=info)


def whitening_beside(path: str | Path, name: str, data: PreparedData) -> WhiteningFile | None:
    """The file `name` beside `path` with the whitening of `data`; None where there is none to
    undo.
    """
    if data.whitening.kind == "none":
        return None
    content = store.content_hash(data.whitening.arrays())
    return WhiteningFile(Path(path).with_name(name), content)


def pool_labels(
    pool: TeacherPool, images: Tensor, settings: MergeSettings, compute: Compute
) -> Tensor:
    """Logits (N, C) of one teacher drawn by the run seed, or of the pool's mean, on the clean
    images.

    With `label_epoch` the teachers are as they were after so many epochs of their training.
    The draw does not depend on the method, so that methods are compared under the same labels.
    """
    chosen = None
    if settings.labels == "teacher":
        random = streams.generator(settings.seed, "labels")
        chosen = int(torch.randint(len(pool), (), generator=random))
    epoch = settings.label_epoch
    if epoch is not None:
        pool.require_epochs([epoch], f"label_epoch of {settings.entry}")
    # float32 whatever the precision of training: the labels are part of the product
    return pool.logits(chosen, images.to(compute.device), compute.exact(), epoch=epoch).cpu()
