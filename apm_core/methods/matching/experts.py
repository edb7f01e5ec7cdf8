"""What the methods that match trajectories share: pieces of the experts' training, and the steps of
images and learned rate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from apm_core.errors import ConfigError
from apm_core.methods import entry
from apm_core.methods.base import Job, Method, State, move_images
from apm_core.methods.matching.trajectory import Inner, Loss, Match, Trajectory
from apm_core.runtime import memory, streams

LEAST_RATE = 0.01  # of the rate at the start


class Experts:
    """Pieces of `length` epochs of the experts' training that start before epoch `below`.

    The epochs are held in memory: on a GPU with room for them there, else in host memory.
    Raises ConfigError, naming the setting of `method`, when the last piece is not inside the
    training.
    """

    def __init__(self, job: Job, method: Method, *, below: int, length: int) -> None:
        groups = job.teachers.trajectories
        last = min(group.shape[1] for group in groups) - 1
        if below - 1 + length > last:
            pool = entry(method.name).needs
            raise ConfigError(
                f"{method.key('start_below')}: from epoch {below - 1}, {length} epochs on, is"
                f" beyond the {last} epochs of the experts: lower start_below, or raise"
                f" {pool}.epochs"
            )
        needed = [group[:, : below + length] for group in groups]
        home = memory.home(sum(group.nbytes for group in needed), job.compute, job.limit)
        self.members = [member for group in needed for member in group.to(home)]
        self.length, self.like = length, job.teachers.net.vector

    def piece(self, epochs: range, *stream: streams.Key) -> tuple[Tensor, Tensor]:
        """Parameters (P,) of an expert at the start and at the end of a piece of its training that
        starts after one of the `epochs`.
        """
        random = streams.generator(*stream, "expert")
        expert = self.members[int(torch.randint(len(self.members), (), generator=random))]
        epoch = epochs[int(torch.randint(len(epochs), (), generator=random))]
        return expert[epoch].to(self.like), expert[epoch + self.length].to(self.like)


def inner_training(
    job: Job, inner: Inner, loss: Loss, *, exact: bool = True, learn_targets: bool = False
) -> Trajectory:
    """The training on the distilled images that is differentiated in every round of a job."""
    batch = inner.batch or job.ipc * job.spec.shape.classes
    return Trajectory(
        job.spec.network(job.compute.device),
        loss,
        job.compute,
        exact=exact,
        learn_targets=learn_targets,
        batch=(batch, *job.spec.shape.image),
        steps=inner.steps * job.rounds,
    )


@dataclass(frozen=True)
class Outer:
    """The steps of the images and of the learning rate of the inner training."""

    lr_images: float
    momentum: float  # of both
    rate: float  # at the start
    lr_rate: float

    def start(self, images: Tensor, classes: Tensor) -> State:
        """The state of images at rest."""
        return {
            "images": images,
            "classes": classes,
            "velocity": torch.zeros_like(images),
            "rate": torch.tensor(self.rate, device=images.device, dtype=images.dtype),
            "rate_velocity": torch.zeros((), device=images.device, dtype=images.dtype),
        }

    def move(self, state: State, found: Match) -> None:
        """One step; the rate stays above a share of its start."""
        move_images(state, found.images, rate=self.lr_images, momentum=self.momentum)
        state["rate_velocity"] = self.momentum * state["rate_velocity"] + found.rate
        moved = state["rate"] - self.lr_rate * state["rate_velocity"]
        state["rate"] = moved.clamp_min(LEAST_RATE * self.rate)


def figures_of(found: Match) -> dict[str, float]:
    """The loss, and the norm of all gradients together: finite only if all of them are."""
    gradients = [found.images, found.rate]
    gradients += [] if found.targets is None else [found.targets]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return {"match": float(found.loss), "gradient": float(norm)}
