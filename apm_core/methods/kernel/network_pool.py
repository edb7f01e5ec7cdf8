"""A pool of networks that learn from the distilled images while these change (FRePo, RCIG).

The networks are rows of a few tensors of the method's state, so that a resumed run finds them as
they were: parameters, running statistics, and the moments of Adam.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from apm_core.methods.base import Job
from apm_core.methods.movers import State
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.training.losses.half_mse import loss as half_mse
from apm_core.training.optimizers import Moments, adam_

Build = Callable[[], nn.Module]


def fresh_pool(build: Build, networks: int, *stream: streams.Key) -> State:
    """Fresh networks on the CPU: vectors (n, P), buffers (n, B) and moments at rest."""
    pairs = [fresh(build, *stream, "pool", number) for number in range(networks)]
    vectors = torch.stack([vector for vector, _ in pairs])
    return {
        "vectors": vectors,
        "buffers": torch.stack([buffers for _, buffers in pairs]),
        "vectors_first": torch.zeros_like(vectors),
        "vectors_second": torch.zeros_like(vectors),
        "vectors_count": torch.zeros(networks, dtype=torch.float64),
    }


def replace(state: State, member: int, build: Build, *stream: streams.Key) -> None:
    """Put a fresh network in the place of `member`."""
    vector, buffers = fresh(build, *stream, "fresh")
    state["vectors"][member].copy_(vector)
    state["buffers"][member].copy_(buffers)
    for key in ("first", "second", "count"):
        state[f"vectors_{key}"][member] = 0


def load(state: State, member: int, net: FlatNet) -> None:
    """Make `net` the network `member`."""
    net.load(state["vectors"][member])
    buffers = statistics(net.module)
    pieces = state["buffers"][member].split([buffer.numel() for buffer in buffers])
    for buffer, piece in zip(buffers, pieces, strict=True):
        buffer.copy_(piece.view_as(buffer))


def store(state: State, member: int, net: FlatNet, moments: Moments) -> None:
    """Keep `net` with its moments as `member`."""
    state["vectors"][member].copy_(net.vector)
    state["buffers"][member].copy_(flat_buffers(net.module))
    for key, value in vars(moments).items():
        state[f"vectors_{key}"][member].copy_(value)


def train(
    net: FlatNet,
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    moments: Moments,
    rate: float,
    job: Job,
) -> None:
    """One step of Adam on half the squared error of a batch, without augmentation.

    `logits` is what computes them with the parameters of `net`. The batch passes in segments, but
    as a whole where the network normalises over it.
    """
    net.module.train()
    gradient = torch.zeros_like(net.vector)
    size = len(images) if statistics(net.module) else job.segment or len(images)
    for part, labels in zip(images.split(size), targets.split(size), strict=True):
        with job.compute.autocast():
            outputs = logits(part)
        share = len(part) / len(images)
        gradient += net.gradient(share * half_mse(outputs.to(net.vector.dtype), labels))
    net.module.eval()
    adam_(net.vector, gradient, moments, rate)


def member_moments(state: State, member: int) -> Moments:
    """A copy of the moments of a network."""
    keys = ("first", "second", "count")
    return Moments(*(state[f"vectors_{key}"][member].clone() for key in keys))


def fresh(build: Build, *stream: streams.Key) -> tuple[Tensor, Tensor]:
    """Parameters (P,) and running statistics (B,) of a new network, on the CPU."""
    with streams.seeded(*stream):
        module = build()
    return parameters_to_vector(module.parameters()).detach(), flat_buffers(module)


def statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics of a network, without the count of batches, which nothing reads."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]


def flat_buffers(module: nn.Module) -> Tensor:
    """The running statistics as one vector (B,)."""
    pieces = [buffer.detach().flatten() for buffer in statistics(module)]
    return torch.cat(pieces) if pieces else torch.zeros(0)
