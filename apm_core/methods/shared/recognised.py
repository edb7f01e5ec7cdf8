"""Real images that trained networks recognise, and what the networks say about them.

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
    """The images that `shard` starts from, class by class, when it starts from those that the
    networks with parameters `vectors` ((P,) each) classify correctly.

    A class is put in one order: the images that the first network classifies correctly, then those
    that only the second does, and so on, and those that none does at the end, each in the order of
    `data.shard`; the shards are cut from it, so they share no image. No more images are looked at
    than needed. How many of the last kind were taken is reported.

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
    """Rows of all images of class `c` in that order, and whether a network is right about them."""
    left = data.order(c)
    for vector in vectors:
        wrong = [left[:0]]
        for at in range(0, len(left), BATCH):
            rows = left[at : at + BATCH]
            net.load(vector)
            images = data.at(rows)[0].to(compute.device)
            correct = (logits(net, images, compute).argmax(dim=1) == c).cpu().numpy()
            for row in rows[correct]:
                yield int(row), True
            wrong.append(rows[~correct])
        left = np.concatenate(wrong)
    for row in left:
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
        found = logits(net, images, compute)
        hit = (found.argmax(dim=1) == classes)[:, None]
        total, correct, count = total + found, correct + found * hit, count + hit
    return torch.where(count > 0, correct / count.clamp_min(1), total / len(vectors))
