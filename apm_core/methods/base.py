"""The contract of a distillation method.

A method computes gradients for its images (labels, learning rate). Movers apply them
(`movers.py`); the stage saves and resumes the state, stops on divergence and makes segments smaller
when memory is full (`stages/distill.py`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from apm_core.data.prepared import PreparedData
from apm_core.data.tiles import Tiles
from apm_core.errors import ConfigError
from apm_core.methods.movers import Mover, Rows, State
from apm_core.methods.passes import Extent, Passes
from apm_core.methods.tiled import TiledImages
from apm_core.nets.spec import Spec
from apm_core.runtime import store
from apm_core.runtime.device import Compute
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Progress, silent
from apm_core.settings.method import Conditions, MethodSettings
from apm_core.training.recipe import Recipe
from apm_core.training.teacher_pool import TeacherPool


@dataclass(frozen=True)
class Job:
    """The inputs of one shard: data, pool, device, sizes and seed.

    `segment` is the number of images that pass through a network at once in the image update, and
    `home` where the images of the whole shard live between the rounds; both decide memory and
    speed, not the result. `progress` and `resume` are for one-shot methods: rounds have theirs.
    """

    data: PreparedData
    pool: TeacherPool | None
    compute: Compute
    ipc: int  # images per class of this shard
    shard: int
    rounds: int  # R: rounds 0..R are run
    seed: int
    segment: int | None = None  # None: all at once
    home: torch.device | None = None  # None: the device
    network: Spec | None = None  # None: that of the pool
    tiles: int = 1  # t: ipc counts the t * t images of each stored one
    limit: int | None = None  # bytes of the device that the job may take; None: all
    progress: Progress = silent
    resume: Resume | None = None
    shards: int = 1  # of the set, to which all of them belong

    @property
    def stream(self) -> tuple[int, str, int]:
        """The first keys of every random stream of this shard."""
        return (self.seed, "distill", self.shard)

    @property
    def teachers(self) -> TeacherPool:
        """The teacher pool; raises ConfigError when there is none."""
        if self.pool is None:
            raise ConfigError("this method needs teachers: give it the pool of the teachers stage")
        return self.pool

    @property
    def spec(self) -> Spec:
        """The architecture to distil with."""
        return self.network or self.teachers.spec

    def real_images(self) -> tuple[Tensor, Tensor]:
        """The real images (N, C, H, W) that the shard starts from and their classes (N,)."""
        images, classes = self.data.shard(self.ipc, self.shard)
        return images.to(self.home or self.compute.device), classes.to(self.compute.device)


@dataclass(frozen=True)
class Shard:
    """The distilled images of one shard, class by class."""

    images: Tensor  # (N, C, H, W) float32, working space
    classes: Tensor  # (N,) int64
    # (N, C) float32 logits or (N,) class indices; None: labelled when the shards are merged
    targets: Tensor | None = None
    rate: float | None = None  # learned learning rate; None: the recipe's
    source: store.Artifact | None = None  # a file that it was taken from


@dataclass(frozen=True)
class Update:
    """The outcome of a step: figures to show, and a gradient for each tensor to move."""

    figures: dict[str, float]  # all finite unless the method diverged
    gradients: Mapping[str, Tensor | Rows] = field(default_factory=dict)  # by name in the state
    # called with the state after the moves, which it may change
    then: Callable[[State], None] | None = None


class Configured:
    """What every method is built from.

    Args:
        settings: of the method.
        name: of the method in the config, for messages; one class may implement several.
        recipe: how networks are trained on the set, students included; None where no network runs.

    Raises ConfigError when settings and recipe contradict each other.
    """

    def __init__(self, settings: MethodSettings, *, name: str, recipe: Recipe | None) -> None:
        self.settings, self.name, self.recipe = settings, name, recipe
        told = (recipe.loss, recipe.passes - 1) if recipe else (None, None)
        if found := settings.contradiction(Conditions(*told)):
            key, reason = found
            raise ConfigError(f"{self.key(key)}: {reason}")

    def key(self, option: str) -> str:
        """The key of one of the method's settings in the config."""
        return f"methods.{self.name}.{option}"


class OneShot(Configured, ABC):
    """A method without rounds, which selects or makes all images at once."""

    def passes(self, extent: Extent) -> Passes | None:
        """The work of a shard; None: it cannot be told beforehand."""
        del extent
        return Passes()

    @abstractmethod
    def make(self, job: Job) -> Shard:
        """The images of a shard."""


class Method(Configured, ABC):
    """A method that distils in rounds.

    Attributes:
        movers: by name, one for each tensor of the state that `step` gives a gradient for; the
            constructor of the method sets them.
        in_segments: whether images pass in the segments of the job, so that smaller ones save
            memory.
    """

    movers: Mapping[str, Mover]
    in_segments: ClassVar[bool] = False

    def passes(self, extent: Extent) -> Passes | None:
        """The work of a round, the mean over all of them; None: it cannot be told beforehand."""
        del extent
        return None

    @abstractmethod
    def init(self, job: Job) -> State:
        """Call `attach` and return the state before round 0, without that of the movers.

        The state holds what rounds change; what they only read belongs to `attach`.
        """

    @abstractmethod
    def attach(self, job: Job) -> None:
        """Build what `step` only reads, for a state from `init` or from a resume file."""

    @abstractmethod
    def step(self, state: State, index: int) -> Update:
        """Compute the gradients and figures of round `index`.

        Only `state`, the job and `index` may decide the outcome: a run that resumes here must give
        the same bits. A round `in_segments` that runs out of memory is done again with smaller
        ones, so the state must stay as it is until all is computed; caches of a period may be put
        into it.
        """

    def finish(self, state: State) -> Shard:
        """The shard that `state` holds, on the CPU."""
        images = self.movers["images"].product(state, "images")
        return Shard(images.cpu(), state["classes"].cpu())

    def store_as(self, tiles: Tiles) -> None:
        """Keep the images as tiles: movers move these, and `step` sees what they are decoded to.

        Call it once, before `start` or `attach`.
        """
        self.movers = {**self.movers, "images": TiledImages(self.movers["images"], tiles)}

    def start(self, job: Job) -> State:
        """The state before round 0, with that of the movers, each tensor on its device."""
        return self.placed(self.at_rest(self.init(job)), job)

    def at_rest(self, state: State) -> State:
        """The state with that of movers which have not moved anything yet."""
        for name, mover in self.movers.items():
            state = state | mover.start(name, state[name])
        return state

    def round(self, state: State, index: int) -> dict[str, float]:
        """Run round `index`, which changes `state`, and return its figures and rates.

        No tensor moves when a figure is not finite.
        """
        update = self.step(state, index)
        rates = {f"lr_{name}": self.movers[name].rate_at(index) for name in update.gradients}
        if are_finite(update.figures):
            moved = dict(state)
            for name, gradient in update.gradients.items():
                moved |= self.movers[name].move(moved, name, gradient, index)
            if update.then:
                update.then(moved)
            state |= moved
        return {**update.figures, **rates}

    def rehearse(self, state: State, clock: Callable[[], float]) -> tuple[int, float]:
        """Run once the parts of a round that take its memory and time; `state` stays as it is.

        Returns: the number of images that a round updates, and an estimate of its seconds by
        `clock`.
        """
        return len(state["images"]), self.seconds_of(0, state, clock)

    def seconds_of(self, index: int, state: State, clock: Callable[[], float]) -> float:
        """Of round `index`, by `clock`; `state` stays as it is."""
        copy = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        started = clock()
        self.round(copy, index)
        return clock() - started

    def placed(self, state: State, job: Job) -> State:
        """The state, each tensor in `job.home` (movers at home) or on the device (all others)."""
        device = job.compute.device
        at_home = tuple(name for name, mover in self.movers.items() if mover.at_home)

        def place(key: str) -> torch.device:
            stays_home = any(key == name or key.startswith(f"{name}_") for name in at_home)
            return (job.home or device) if stays_home else device

        return {k: v.to(place(k)) if isinstance(v, Tensor) else v for k, v in state.items()}


def are_finite(figures: dict[str, float]) -> bool:
    """Whether all figures are finite; where not, the method has diverged."""
    return all(map(math.isfinite, figures.values()))


def require_batch(key: str, batch: int | None, images: Tensor) -> None:
    """Raise ConfigError, naming `key`, when a batch is larger than the shard's images."""
    if batch is not None and batch > len(images):
        raise ConfigError(
            f"{key}: {batch} is more than the {len(images)} images of a shard: lower it, or set it"
            " to null for all images"
        )
