"""The base of coresets: real images of a class in the order in which trained networks rate them."""

import math
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from apm_core.methods.base import Job, OneShot, Shard
from apm_core.methods.passes import FORWARD, Extent, Passes
from apm_core.methods.shared.recognised import BATCH
from apm_core.nets.flat import FlatNet
from apm_core.settings.methods.coreset import CoresetSettings


class Coreset(OneShot):
    """Puts the training images of each class in an order and cuts the shards from it.

    A larger set contains the smaller ones, and shards share no image. The test split has no part in
    it, nor has the precision of the run: networks look at the clean images in plain float32. The
    images of one class are in memory at a time.
    """

    settings: CoresetSettings

    def passes(self, extent: Extent) -> Passes:
        """The training images through each of the networks, at each epoch that is looked at."""
        looks = self.settings.networks * self.looks
        return Passes(FORWARD * looks * extent.train, looks * math.ceil(extent.train / BATCH))

    @property
    def looks(self) -> int:
        """Epochs after which each network is asked."""
        return 1

    def make(self, job: Job) -> Shard:
        """The images of the shard, class by class."""
        for key, last in self.settings.epochs_needed.items():
            job.teachers.require_epochs([last], self.key(key))
        classes, rows = job.spec.shape.classes, []
        for c in range(classes):
            members = job.data.order(c)
            images = job.data.at(members)[0].to(job.compute.device)
            order = self.order(job, images, c, min((job.shard + 1) * job.ipc, len(members)))
            rows.append(job.data.cut(members[order], c, job.ipc, job.shard))
            job.progress(c + 1, classes, {})
        return Shard(*job.data.at(np.concatenate(rows)))

    @abstractmethod
    def order(self, job: Job, images: Tensor, c: int, count: int) -> np.ndarray:
        """Positions of (at least) the first `count` of the images (n, C, H, W) of class `c`."""

    def networks(self, job: Job, epoch: int | None = None) -> Iterator[FlatNet]:
        """The pool's networks that rate images, as after `epoch` epochs (None: at the end of their
        training); each is valid until the next.
        """
        for vector in job.teachers.after(epoch, self.settings.networks):
            job.teachers.net.load(vector)
            yield job.teachers.net
