"""Real images that trained networks classify correctly, and the logits of those networks.

Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR
2024, start from such images.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from apm_core.data.prepared import PreparedData
from apm_core.nets.flat import FlatNet
from apm_core.runtime.device import Compute
from apm_core.training.inference import logits

BATCH = 256  # images through a network at once


def correct_shard(
    data: PreparedData,
    net: FlatNet,
    vectors: Sequence[Tensor],
    compute: Compute,
    ipc: int,
    shard: int,
) -> tuple[Tensor, Tensor]:
    """The initial images of `shard`, class by class: real images that the networks with parameters
    `vectors` ((P,) each) classify correctly.

    Each class is sorted: first the images that the first network classifies correctly, then those
    that only the second does, and so on, last those that none does; ties are in the order of
    `data.shard`. Shards are consecutive parts of that order, so they share no image. Only as many
    images are classified as needed. The number that no network classifies correctly is reported.

    Returns: images (classes * ipc, C, H, W) float32 in the working space, on the CPU; class
    indices. Raises DataError when a class has too few images.
    """
    rows, missed = [], 0
    for c in range(len(data.class_names)):
        best = list(islice(_best_first(data, net, vectors, compute, c), ipc * (shard + 1)))
        rows.append(data.cut(np.array([row for row, _ in best]), c, ipc, shard))
        missed += sum(not correct for _, correct in best[ipc * shard :])
    if missed:
        compute.report(
            f"start: of {sum(map(len, rows))} initial images, {missed} are random ones of their"
            f" class: the {len(vectors)} networks classify no more of them correctly"
        )
    return data.at(np.concatenate(rows))


def _best_first(
    data: PreparedData, net: FlatNet, vectors: Sequence[Tensor], compute: Compute, c: int
) -> Iterator[tuple[int, bool]]:
    """Rows of class `c` in the order of `correct_shard`, and whether a network is correct."""
    rest = data.order(c)
    for vector in vectors:
        wrong = [rest[:0]]
        for at in range(0, len(rest), BATCH):
            rows = rest[at : at + BATCH]
            net.load(vector)
            images = data.at(rows)[0].to(compute.device)
            correct = (logits(net, images, compute).argmax(dim=1) == c).cpu().numpy()
            for row in rows[correct]:
                yield int(row), True
            wrong.append(rows[~correct])
        rest = np.concatenate(wrong)
    for row in rest:
        yield int(row), False


def correct_logits(
    net: FlatNet, vectors: Sequence[Tensor], images: Tensor, classes: Tensor, compute: Compute
) -> Tensor:
    """Logits (N, C) of each image, mean over the networks that classify it correctly; over all of
    them where none does. `images` (N, ...) and `classes` (N,) are on the device.
    """
    total = correct = torch.zeros(())
    count = torch.zeros(len(images), 1, device=images.device)
    for vector in vectors:
        net.load(vector)
        output = logits(net, images, compute)
        hit = (output.argmax(dim=1) == classes)[:, None]
        total, correct, count = total + output, correct + output * hit, count + hit
    return torch.where(count > 0, correct / count.clamp_min(1), total / len(vectors))
