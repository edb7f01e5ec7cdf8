"""What the methods that match trajectories share: pieces of the experts' training, and how images
and learned rate move.
"""

import torch
from torch import Tensor

from apm_core.errors import ConfigError
from apm_core.methods.base import Job, Method
from apm_core.methods.matching.trajectory import InnerTraining, Loss, Match, Trajectory
from apm_core.methods.movers import Momentum, Mover, State
from apm_core.runtime import memory, streams
from apm_core.settings.methods.mtt import TrajectorySettings

LEAST_RATE = 0.01  # share of the rate at the start


class Experts:
    """Pieces of `expert_epochs` epochs of the experts' training that start before `start_below`.

    The epochs are held in memory: on a GPU with room for them there, else in host memory.
    Raises ConfigError, naming the setting of `method`, when the last piece is not inside the
    training.
    """

    def __init__(self, job: Job, method: Method) -> None:
        below, length = method.settings.start_below, method.settings.expert_epochs
        groups = job.teachers.trajectories
        last = min(group.shape[1] for group in groups) - 1
        if below - 1 + length > last:
            raise ConfigError(
                f"{method.key('start_below')}: from epoch {below - 1}, {length} epochs on, is"
                f" beyond the {last} epochs of the experts: lower start_below, or raise"
                f" {method.settings.pool}.epochs"
            )
        epochs = [group[:, : below + length] for group in groups]
        home = memory.home(sum(group.nbytes for group in epochs), job.compute, job.limit)
        self.members = [member for group in epochs for member in group.to(home)]
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
    job: Job, inner: InnerTraining, loss: Loss, *, exact: bool = True, learn_targets: bool = False
) -> Trajectory:
    """The training on the distilled images that each round of a job differentiates."""
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


def movers_of(settings: TrajectorySettings) -> dict[str, Mover]:
    """The movers of the images and of the learning rate of the inner training, which stays above a
    share of its start.
    """
    momentum, least = settings.momentum_images, LEAST_RATE * settings.rate
    return {
        "images": Momentum(settings.lr_images, momentum=momentum),
        "rate": Momentum(settings.lr_rate, momentum=momentum, least=least),
    }


def start_of(settings: TrajectorySettings, images: Tensor, classes: Tensor, job: Job) -> State:
    """The start of a state, on the device: images (N, C, H, W), their classes (N,) and the rate."""
    images = images.to(job.compute.device)
    rate = torch.tensor(settings.rate, device=images.device, dtype=images.dtype)
    return {"images": images, "classes": classes.to(images.device), "rate": rate}


def figures_of(match: Match) -> dict[str, float]:
    """The loss, and the norm of all gradients together: finite only if all of them are."""
    gradients = [match.images, match.rate]
    gradients += [] if match.targets is None else [match.targets]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return {"match": float(match.loss), "gradient": float(norm)}
