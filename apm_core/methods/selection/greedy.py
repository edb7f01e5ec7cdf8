"""Coresets that are picked one by one by their embeddings: herding and k-center.

The embedding of an image is what the head of a trained network reads, of length 1; where the
network offers none, its logits. Of several networks the embeddings are joined to one vector, so
that a scalar product is the sum of theirs: coordinates of different networks mean different things,
and their average would mean nothing.
"""

from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.methods.base import Job
from apm_core.methods.selection.coreset import Coreset
from apm_core.methods.shared.recognised import BATCH
from apm_core.training.inference import embeddings


class Greedy(Coreset):
    """Picks by the embeddings of a class."""

    def order(self, job: Job, images: Tensor, c: int, count: int) -> np.ndarray:
        """The picks in their order."""
        del c
        exact = job.compute.exact()
        parts = [
            F.normalize(embeddings(net, images, exact, batch=BATCH).double(), dim=1)
            for net in self.networks(job)
        ]
        return np.array(self.pick(torch.cat(parts, dim=1), count))

    @staticmethod
    @abstractmethod
    def pick(points: Tensor, count: int) -> list[int]:
        """The first `count` of `points` (n, D), by position."""


class Herding(Greedy):
    """Herding: the mean of the picks follows that of the class.

    Welling, "Herding Dynamical Weights to Learn", ICML 2009, in the form of iCaRL (Rebuffi et al.,
    CVPR 2017, Algorithm 4): pick k is the image that brings the mean of the k picks nearest to the
    mean of the class, and none is picked twice. The means of iCaRL are brought to length 1, these
    are not.
    """

    @staticmethod
    def pick(points: Tensor, count: int) -> list[int]:
        """Pick k is the p for which s + p is nearest to k m: m the mean, s the sum of the picks."""
        mean, halves = points.mean(dim=0), points.square().sum(dim=1) / 2
        total, picked = torch.zeros_like(mean), []
        for k in range(1, count + 1):
            nearness = points @ (k * mean - total) - halves
            nearness[picked] = -torch.inf
            picked.append(int(nearness.argmax()))
            total = total + points[picked[-1]]
        return picked


class KCenter(Greedy):
    """Greedy k-center: no image of the class is far from a pick.

    Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR
    2018, Algorithm 1: each pick is the image farthest from those before it. The first, for which
    there are labelled images there, is the image nearest to the mean of the class.
    """

    @staticmethod
    def pick(points: Tensor, count: int) -> list[int]:
        """The picks: the center, then the farthest ones."""
        picked = [int((points - points.mean(dim=0)).norm(dim=1).argmin())]
        distance = torch.full_like(points[:, 0], torch.inf)
        while len(picked) < count:
            distance = distance.minimum((points - points[picked[-1]]).norm(dim=1))
            distance[picked] = -torch.inf  # equal images lie at 0
            picked.append(int(distance.argmax()))
        return picked
