"""The contract of a distillation method. The loop around it (rounds, resume, divergence) is in
`distill.py`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apm_core.data.prepared import PreparedData
from apm_core.errors import ConfigError
from apm_core.nets.spec import Spec
from apm_core.runtime.device import Compute
from apm_core.training.recipe import Recipe
from apm_core.training.teacher_pool import TeacherPool

State = dict[str, Any]  # tensors and numbers: all that a later round depends on


@dataclass(frozen=True)
class Job:
    """What one shard has to work with.

    `segment` is the number of images that pass through a network at once in the image update, and
    `home` where the images of the whole shard live between the rounds; both decide memory and
    speed, not the result.
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
    limit: int | None = None  # bytes of the device that the job may take; None: all

    @property
    def stream(self) -> tuple[int, str, int]:
        """The name under which this shard draws its random numbers."""
        return (self.seed, "distill", self.shard)

    @property
    def teachers(self) -> TeacherPool:
        """The pool; raises ConfigError when the method was started without one."""
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


class Method(ABC):
    """One way to distil a set. Constructors take the settings of the method as plain keywords, and
    the name it goes by in the config, for messages: one class may serve several.

    Attributes: at_home, the names of the state's tensors that are as large as the whole shard and
    live in `job.home`; all others live on the device.
    """

    at_home: frozenset[str] = frozenset()

    def __init__(self, *, name: str) -> None:
        self.name = name

    def key(self, option: str) -> str:
        """The key of one of the method's settings in the config."""
        return f"methods.{self.name}.{option}"

    @abstractmethod
    def init(self, job: Job) -> State:
        """The state before round 0. Prepare here what the rounds share; keep in the state what they
        change.
        """

    @abstractmethod
    def step(self, state: State, index: int) -> dict[str, float]:
        """Do round `index`, changing `state`; returns figures to show, all finite unless the method
        diverged.

        Only `state`, the job and `index` may decide the outcome: a run that resumes here must give
        the same bits. A round that runs out of memory is done again with smaller segments, so the
        images must not move before all is computed.
        """

    @abstractmethod
    def attach(self, job: Job) -> None:
        """Prepare for `step` with a state that comes from a resume file; `init` calls it too."""

    def rehearse(self, state: State, clock: Callable[[], float]) -> tuple[int, float]:
        """Do once what takes the memory and the time of a round, leaving `state` alone.

        Returns: the images that a round updates, and the seconds by `clock` that a round will take.
        """
        copy = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        started = clock()
        self.step(copy, 0)
        return len(state["images"]), clock() - started

    def finish(self, state: State) -> Shard:
        """The distilled images."""
        return Shard(state["images"].cpu(), state["classes"].cpu())


def are_finite(figures: dict[str, float]) -> bool:
    """Whether a round went well. A round that did not leaves the state as it was: the loop reports
    the figures.
    """
    return all(map(math.isfinite, figures.values()))


def move_images(state: State, gradient: Tensor, *, rate: float, momentum: float) -> None:
    """One step of SGD with momentum on all images of the state."""
    state["velocity"] = momentum * state["velocity"] + gradient
    state["images"] = state["images"] - rate * state["velocity"]


def require_loss(key: str, recipe: Recipe, loss: str, labels: str) -> None:
    """Raise ConfigError, naming `key`, unless the recipe has the loss that goes with its labels."""
    if recipe.loss != loss:
        raise ConfigError(f"{key}: {recipe.loss} does not go with {labels}: set it to {loss}")


def require_embedding(key: str, spec: Spec, module: nn.Module) -> None:
    """Raise ConfigError, naming `key`, unless the network `module` of `spec` gives features."""
    if not hasattr(module, "embed"):
        raise ConfigError(f"{key}: {spec.name} has no embedding: use convnet")


def require_batch(key: str, batch: int | None, images: Tensor) -> None:
    """Raise ConfigError, naming `key`, when a batch is larger than the shard's images."""
    if batch is not None and batch > len(images):
        raise ConfigError(
            f"{key}: {batch} is more than the {len(images)} images of a shard: lower it, or set it"
            " to null for all images"
        )


def settled(state: State, method: Method, job: Job) -> State:
    """The state with each tensor where it lives during the rounds."""
    home, device = job.home or job.compute.device, job.compute.device
    return {
        k: v.to(home if k in method.at_home else device) if isinstance(v, Tensor) else v
        for k, v in state.items()
    }
