"""Real images by class, for the methods that compare synthetic images with them every round."""

from collections.abc import Iterator

import torch
from torch import Tensor

from apm_core.methods.base import Job
from apm_core.runtime import streams
from apm_core.training import augment


class RealClasses:
    """Holds the training split on the device and draws batches of one class."""

    def __init__(self, job: Job) -> None:
        examples = job.data.examples("train", job.compute)
        labels = examples.targets.cpu()
        self.images, self.device = examples.images, job.compute.device
        self.members = [torch.nonzero(labels == c).flatten() for c in range(job.spec.shape.classes)]

    def draw(self, c: int, count: int, *stream: streams.Key) -> Tensor:
        """Up to `count` different images (n, C, H, W) of class `c`."""
        members = self.members[c]
        order = torch.randperm(len(members), generator=streams.generator(*stream, "real", c))
        return self.images[members[order[:count]].to(self.device)]

    def beside(
        self, classes: Tensor, count: int, strategy: str, *stream: streams.Key
    ) -> Iterator[tuple[int, Tensor, Tensor, augment.Draw | None]]:
        """Pair the synthetic images of `classes` (N,) with real ones, class by class.

        Yields: the class; its rows among the N; real images of it, augmented; that augmentation.
        """
        for c in range(len(self.members)):
            drawn = siamese(strategy, self.device, *stream, c)
            real = augment.augment(self.draw(c, count, *stream), drawn)
            yield c, torch.nonzero(classes == c).flatten(), real, drawn


def siamese(strategy: str, device: torch.device, *stream: streams.Key) -> augment.Draw | None:
    """Draw one augmentation, shared by the real and the synthetic images of a comparison."""
    drawn = augment.draw(strategy, 1, streams.generator(*stream, "siamese"))
    return drawn and drawn.to(device)
