"""Stage 3: the loop around a method, one shard at a time: rounds, resume, divergence."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from apm_core import methods
from apm_core.data.prepared import PreparedData
from apm_core.data.tiles import Tiles
from apm_core.data.whitening import to_uint8
from apm_core.errors import ConfigError, DivergenceError, OutOfMemoryError
from apm_core.methods.base import Job, Method, OneShot, Shard
from apm_core.methods.history import Recorder, shown
from apm_core.methods.movers import State
from apm_core.nets.spec import Spec
from apm_core.runtime import memory, store
from apm_core.runtime.device import Compute
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Progress, Run, silent
from apm_core.settings.compute import ComputeSettings
from apm_core.settings.stages import DistillSettings
from apm_core.training.teacher_pool import TeacherPool

KIND = "shard"
LESS_MEMORY = "lower the batches of the method or teachers.width, or raise distill.shards"
NEAR = 0.7  # of the memory that can be had: peaks of rounds were up to 1.2 times the rehearsal's


@dataclass(frozen=True)
class Budget:
    """The memory that a job may take."""

    bytes: int
    key: str  # of the setting it comes from, for messages

    @classmethod
    def of(cls, settings: ComputeSettings, compute: Compute) -> "Budget | None":
        """The budget for this device, or None."""
        name = "gpu_memory_gb" if compute.device.type == "cuda" else "memory_gb"
        size = getattr(settings, name)
        return None if size is None else cls(int(size * memory.GB), f"compute.{name}")


def distill(
    method: Method,
    job: Job,
    *,
    rounds: int,
    resume: Resume | None = None,
    progress: Progress = silent,
    budget: Budget | None = None,
    recorder: Recorder | None = None,
) -> Shard:
    """Run rounds 0..R of `method` (rounds = R + 1; 0: only the images that it starts from), and
    show them to `recorder`.

    With `resume` the state is saved as time passes and a saved one is continued; the result has the
    same bits. With `budget` the segment is what fits into it, also of a continued run, whose
    segment stays as it was while the budget does, or is smaller where the job's is. When memory
    runs out all the same, the segment is halved and the round done again.
    Raises DivergenceError at the first round whose figures are not finite.
    """
    saved = resume.load() if resume else None
    if saved is None:
        state, first = method.start(job), 0
        if rounds:
            if budget:
                job = fitted(method, job, state, budget)
            job = predict(method, job, state, rounds)
    else:
        state, first = method.placed(saved["state"], job), saved["round"]
        if budget and saved.get("budget") != budget.bytes:  # set since the job was killed
            job = fitted(method, job, state, budget)
        else:
            if budget:
                memory.limit(budget.bytes, job.compute)
            given = [one for one in (job.segment, saved["segment"]) if one]
            job = replace(job, segment=min(given, default=None))
            method.attach(job)
        if recorder:
            recorder.kept = saved.get("history", recorder.kept)  # none before histories were kept
        job.compute.report(f"going on from round {first} of {rounds}")
    index = first
    while index < rounds:
        if recorder:
            recorder.see(index, lambda: method.finish(state))
        try:
            figures = method.round(state, index)
        except RuntimeError as error:
            job = smaller(method, job, state, error)
            continue
        require_finite(index, figures)
        index += 1
        if recorder:
            recorder.note(index, figures)
        if resume and resume.due():
            saved = {"round": index, "segment": job.segment, "state": state}
            saved["budget"] = budget and budget.bytes
            resume.save(saved | ({"history": recorder.kept} if recorder else {}))
        progress(index, rounds, figures)
    return method.finish(state)


def fitted(method: Method, job: Job, state: State, budget: Budget) -> Job:
    """The job with the largest segment whose rehearsal stays within the budget, or as it is where
    the method has no segments.

    It is measured uncompiled, which takes more memory than compiled and no time to compile; on a
    GPU with captured steps, whose memory stays theirs. Afterwards the limit is the allocator's too.
    Raises ConfigError when the budget is too small.
    """
    plain = replace(job.compute, compile="off")

    def need(segment: int) -> int:
        method.attach(replace(job, compute=plain, segment=segment))
        memory.reset_peak(plain)
        method.rehearse(state, plain.clock)
        return memory.peak(plain)

    allowed = f"{budget.bytes / memory.GB:.3g} GB"
    if method.in_segments:
        method.attach(replace(job, compute=plain, segment=1))
        images, _ = method.rehearse(state, plain.clock)
        most = min(images, job.segment or images)
        segment, needed = memory.largest_segment(need, most, budget.bytes, budget.key)
        job.compute.report(
            f"{budget.key}: {allowed} allow {segment} images at a time, which take"
            f" {needed / memory.GB:.3g} GB"
        )
        job = replace(job, segment=segment)
    elif (needed := need(len(state["images"]))) > budget.bytes:
        raise ConfigError(
            f"{budget.key}: {allowed} is less than the {needed / memory.GB:.3g} GB of a round:"
            f" raise it, or {LESS_MEMORY}"
        )
    memory.limit(budget.bytes, job.compute)
    method.attach(job)
    return job


def predict(method: Method, job: Job, state: State, rounds: int) -> Job:
    """Report how long the rounds will take, and compile what they need; returns the job, with a
    smaller segment if memory ran out.
    """
    while True:
        try:
            memory.reset_peak(job.compute)
            method.rehearse(state, job.compute.clock)
            _, seconds = method.rehearse(state, job.compute.clock)
            break
        except RuntimeError as error:
            job = smaller(method, job, state, error)
    needed, obtainable = memory.peak(job.compute), memory.obtainable(job.compute)
    job.compute.report(
        f"expected: {seconds * rounds / 3600:.2g} h for {rounds} rounds of {seconds:.3g} s, and"
        f" {needed / memory.GB:.3g} GB"
    )
    if obtainable and needed > NEAR * obtainable:
        job.compute.report(
            f"warning: the machine has {obtainable / memory.GB:.3g} GB for this job and may kill"
            " it: if it does, set compute.memory_gb and run the same command again"
        )
    return job


def smaller(method: Method, job: Job, state: State, error: RuntimeError) -> Job:
    """The job with half the segment, attached, after `error` said that memory ran out.

    Raises `error` when it says something else, OutOfMemoryError when the segment is one image or
    the method has no segments.
    """
    if not memory.is_exhausted(error):
        raise error
    reason = str(error).splitlines()[0]
    if not method.in_segments:
        raise OutOfMemoryError(
            f"distillation: out of memory: {LESS_MEMORY}, or use a larger device ({reason})"
        ) from error
    images = len(state["images"])
    before = min(job.segment or images, images)
    if before == 1:
        raise OutOfMemoryError(
            "distillation: out of memory with one image at a time: lower recipe.batch or"
            f" teachers.width, or use a larger device ({reason})"
        ) from error
    job.compute.report(f"out of memory with {before} images at a time: going on with {before // 2}")
    job = replace(job, segment=before // 2)
    memory.reset_peak(job.compute)
    method.attach(job)
    return job


def require_finite(index: int, figures: dict[str, float]) -> None:
    """Raise DivergenceError naming round, term and rates unless every figure is finite."""
    bad = next((name for name, value in figures.items() if not math.isfinite(value)), None)
    if bad is not None:
        rates = ", ".join(f"{k} {v:g}" for k, v in figures.items() if k.startswith("lr_"))
        raise DivergenceError(
            f"distillation: the term {bad!r} is {figures[bad]} in round {index}"
            f" ({rates or 'no learning rate'}): lower the learning rates of the method"
        )


def distill_shard(
    path: str | Path,
    settings: DistillSettings,
    shard: int,
    data: PreparedData,
    pool: TeacherPool | None,
    run: Run,
    *,
    shards: int = 1,
    segment: int | None = None,
    budget: Budget | None = None,
) -> store.Artifact:
    """Distil shard number `shard` of `shards` as the settings say and write it to `path`."""
    method, ipc, tiles = methods.build(settings), settings.ipc, None
    if settings.tiles > 1:
        tiles = Tiles(settings.tiles, data.whitening)
        tiles.require_fit(data.shape.resolution)
        ipc *= tiles.count
        if isinstance(method, Method):
            method.store_as(tiles)
    job = Job(
        data,
        pool,
        run.compute,
        ipc=ipc,
        shard=shard,
        rounds=settings.rounds or 0,
        seed=settings.seed,
        segment=segment,
        home=home_of(data, ipc, run.compute, budget),
        network=Spec.of(settings.network, data.shape) if settings.network else None,
        tiles=settings.tiles,
        limit=budget.bytes if budget else None,
        progress=run.progress,
        resume=run.resume,
        shards=shards,
    )
    rounds = 0 if settings.rounds is None else settings.rounds + 1
    recorder = Recorder(rounds, lambda shard: picture(shard, data, tiles)) if rounds else None
    if isinstance(method, OneShot):
        result = method.make(job)
    else:
        result = distill(
            method,
            job,
            rounds=rounds,
            resume=run.resume,
            progress=run.progress,
            budget=budget,
            recorder=recorder,
        )
    run.compute.report(f"peak memory {memory.peak(run.compute) / memory.GB:.3g} GB")
    images = tiles.encode(result.images) if tiles else result.images
    arrays = {"images": images.numpy(), "classes": result.classes.numpy()}
    if result.targets is not None:
        arrays["targets"] = result.targets.numpy()
    if recorder:
        arrays |= recorder.arrays()
    info = {
        "shard": shard,
        "rate": result.rate,
        "figures": recorder.names() if recorder else [],
        "pool_seconds": sum(group.info["seconds"] for group in pool.artifacts) if pool else 0.0,
        "seconds": run.seconds(),
        "peak_memory_bytes": memory.peak(run.compute),
        "device": run.compute.describe(),
        "precision": run.compute.precision,
    }
    inputs = {"data": data.artifact}
    for number, artifact in enumerate(pool.artifacts if pool else ()):
        inputs[f"teachers{number}"] = artifact
    if result.source:
        inputs["source"] = result.source
    return store.write(path, KIND, arrays, settings=settings.to_dict(), inputs=inputs, info=info)


def picture(shard: Shard, data: PreparedData, tiles: Tiles | None) -> Tensor:
    """The images that a snapshot shows, (n, C, H, W) uint8, as they are stored."""
    images = shard.images[shown(shard.classes, tiles.factor if tiles else 1)]
    return to_uint8(tiles.encode(images)) if tiles else data.whitening.to_uint8(images)


def home_of(data: PreparedData, ipc: int, compute: Compute, budget: Budget | None) -> torch.device:
    """Where a shard of `ipc` images per class lives, with its momentum."""
    pixels = ipc * data.shape.classes * math.prod(data.shape.image)
    return memory.home(2 * 4 * pixels, compute, budget.bytes if budget else None)  # float32
