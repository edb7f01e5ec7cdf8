"""Coresets by a score of each image, the mean over networks: EL2N, GraNd, forgetting and CAD.

The papers on difficulty (all but that of CAD) keep most of the images and leave out the lowest
scores. Where few are kept, the easy ones are worth more (Sorscher et al., "Beyond neural scaling
laws", NeurIPS 2022): `take: lowest` is the default, `highest` is the order of the papers, and
`middle` goes outwards from the median of the class.
"""

from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.methods.base import Job, Shard
from apm_core.methods.selection.coreset import Coreset
from apm_core.methods.shared.recognised import BATCH
from apm_core.nets import require_embedding
from apm_core.settings.methods.coreset import CADSettings
from apm_core.training.inference import embeddings, logits
from apm_core.training.recipe import Recipe


class Scored(Coreset):
    """Takes images by their scores."""

    def order(self, job: Job, images: Tensor, c: int, count: int) -> np.ndarray:
        """All images of the class, those of the wanted scores first."""
        del count
        keys = [key.cpu().numpy() for key in self.keys(job, images, c)]
        return arranged(keys, self.settings.take)

    @abstractmethod
    def keys(self, job: Job, images: Tensor, c: int) -> list[Tensor]:
        """The scores (n,) of the images (n, C, H, W) of class `c`, then what decides ties."""

    def logits(self, job: Job, images: Tensor, epoch: int) -> Tensor:
        """Logits (networks, n, classes) float64 of the networks as after `epoch` epochs."""
        exact, networks = job.compute.exact(), self.networks(job, epoch)
        return torch.stack([logits(n, images, exact, batch=BATCH).double() for n in networks])


def arranged(keys: list[np.ndarray], take: str) -> np.ndarray:
    """Positions in the order of `take` by the first of `keys` (n,), ties by the next ones."""
    rising = np.lexsort(keys[::-1])
    if take == "middle":
        from_median = np.abs(2 * np.arange(len(rising)) - len(rising) + 1)
        return rising[np.argsort(from_median, kind="stable")]
    return rising if take == "lowest" else rising[::-1]


class EL2N(Scored):
    """The length of the error of an early prediction, |softmax(z) - y|_2.

    Paul, Ganguli & Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021, Definition 2.3.
    """

    def keys(self, job: Job, images: Tensor, c: int) -> list[Tensor]:
        """The mean over the networks."""
        return [self.lengths(job, images, c).mean(dim=0)]

    def lengths(self, job: Job, images: Tensor, c: int) -> Tensor:
        """The scores (networks, n) that each network gives."""
        errors = self.logits(job, images, self.settings.epoch).softmax(dim=-1)
        errors[..., c] -= 1
        return errors.norm(dim=-1)


class GraNd(EL2N):
    """The length of the gradient of the cross-entropy early in training.

    Definition 2.1 of the paper of `EL2N` takes the gradient in all parameters. This is the part in
    weights and biases of the last, linear layer, (|softmax(z) - y|^2 (|h|^2 + 1))^(1/2) for its
    input h, as in DeepCore (Guo, Zhao & Bai, DEXA 2022).
    """

    @property
    def looks(self) -> int:
        """Logits and embeddings."""
        return 2

    def make(self, job: Job) -> Shard:
        """Raises ConfigError for networks without an embedding, which the last layer reads."""
        require_embedding(f"methods.{self.name}", job.spec.name, job.teachers.net.module)
        return super().make(job)

    def lengths(self, job: Job, images: Tensor, c: int) -> Tensor:
        """The scores (networks, n) that each network gives."""
        exact = job.compute.exact()
        squares = [
            embeddings(net, images, exact, batch=BATCH).double().square().sum(dim=1)
            for net in self.networks(job, self.settings.epoch)
        ]
        return super().lengths(job, images, c) * (torch.stack(squares) + 1).sqrt()


class Forgetting(Scored):
    """The number of epochs that turn a correct classification of an image into a wrong one.

    Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning",
    ICLR 2019; there it is the predictions made while training that count, here those of the network
    after each epoch from the first on. What a network never classifies correctly it forgets
    infinitely often. Ties, of which there are many, are in the order of the cross-entropy after the
    last of the epochs.
    """

    @property
    def looks(self) -> int:
        """The epochs that are watched."""
        return self.settings.epochs

    def keys(self, job: Job, images: Tensor, c: int) -> list[Tensor]:
        """The mean number of events over the networks, and their mean cross-entropy."""
        epochs = range(1, self.settings.epochs + 1)
        logits = torch.stack([self.logits(job, images, epoch) for epoch in epochs])
        right = logits.argmax(dim=-1) == c  # (epochs, networks, n)
        events = (right[:-1] & ~right[1:]).sum(dim=0).double()
        events[~right.any(dim=0)] = torch.inf
        return [events.mean(dim=0), -F.log_softmax(logits[-1], dim=-1)[..., c].mean(dim=0)]


class CAD(Scored):
    """How much the probability of an image's class varies around the epochs that the training on
    the coreset amounts to: the mean, over a window of epochs, of its standard deviation over J
    successive ones.

    CAD-Prune (arXiv:2604.18811, CVPR 2026) chooses the window by the budget of the training on the
    coreset; Dynamic Uncertainty (He et al., CVPR Workshops 2024, Eqs. 1 and 2) is the same over all
    epochs. As there, the images of the largest values are taken: those that are being learned at
    that time, neither known long before nor still out of reach.
    """

    def __init__(self, settings: CADSettings, *, name: str, recipe: Recipe | None) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        first, last = settings.window
        self.epochs = range(first, last + settings.successive)

    @property
    def looks(self) -> int:
        """The epochs of the window and of its deviations."""
        return len(self.epochs)

    def keys(self, job: Job, images: Tensor, c: int) -> list[Tensor]:
        """The mean over the networks."""
        found = [self.logits(job, images, e).softmax(dim=-1)[..., c] for e in self.epochs]
        stretches = torch.stack(found).unfold(0, self.settings.successive, 1)
        return [stretches.std(dim=-1).mean(dim=(0, 1))]  # of (window, networks, n, J)
