"""Matching training trajectories (MTT), and its constant-memory form (TESLA).

Cazenavette et al., CVPR 2022; Cui et al., ICML 2023. A network that starts where an expert was
after t epochs, trained for N steps on the distilled images, is to end where the expert was after
t + M epochs; images and learning rate move along the gradient of the normalised distance
(`trajectory.py`).

Deviations from the published code: the gradient is that of full unrolling wherever `exact` says so,
in constant memory; TESLA's image gradient has the factor 2 of its formula, which the published code
lacks, so half of its published image rate does the same; the learned rate cannot become negative
(it stops at a hundredth of its start); named random streams take the place of the clock.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.methods.base import Job, Method, Shard, Update, require_batch
from apm_core.methods.matching.experts import (
    Experts,
    figures_of,
    inner_training,
    movers_of,
    start_of,
)
from apm_core.methods.matching.trajectory import InnerTraining
from apm_core.methods.movers import State
from apm_core.methods.passes import FORWARD, Extent, Passes
from apm_core.settings.methods.mtt import MTTSettings
from apm_core.training.recipe import Recipe

LABELLED = 1000  # images that an expert labels at a time


class MTT(Method):
    """Moves images and learning rate to where training on the images ends where an expert's does.

    The recipe's augmentation is that of the inner steps. With `soft_labels` the labels are the
    softmax of the target expert on the images, anew in each round; the recipe's loss is then
    soft_ce, else ce.
    """

    def __init__(self, settings: MTTSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.soft = getattr(settings, "soft_labels", False)
        self.inner = InnerTraining(settings.steps, settings.batch, recipe.augment)
        self.movers = movers_of(settings)

    def passes(self, extent: Extent) -> Passes:
        """The inner steps, and soft labels of the images."""
        labels = Passes(FORWARD * extent.images, 1) if self.soft else Passes()
        return self.inner.passes(extent.images, 0, self.inner.steps) + labels

    def init(self, job: Job) -> State:
        """Real images, their classes as labels, and the rate."""
        images, classes = job.real_images()
        require_batch(self.key("batch"), self.settings.batch, images)
        self.attach(job)
        state = start_of(self.settings, images, classes, job)
        return {**state, "targets": self._first_labels(state["images"]) if self.soft else classes}

    def attach(self, job: Job) -> None:
        """Hold the experts."""
        self.job, self.net = job, job.spec.network(job.compute.device)
        self.net.module.eval()
        loss = soft_cross_entropy if self.soft else F.cross_entropy
        self.training = inner_training(job, self.inner, loss, exact=self.settings.exact)
        self.experts = Experts(job, self)

    def step(self, state: State, index: int) -> Update:
        """The gradient of the distance from the end of a piece of one expert's trajectory."""
        stream, images = (*self.job.stream, index), state["images"]
        start, target = self.experts.piece(range(self.settings.start_below), *stream)
        steps = self.inner.draw(len(images), images.device, *stream)
        targets = self._labels(target, images) if self.soft else state["targets"]
        match = self.training.match(start, target, steps, images, targets, state["rate"])
        figures = {**figures_of(match), "rate": float(state["rate"])}
        gradients = {"images": match.images, "rate": match.rate}
        return Update(figures, gradients, then=lambda moved: moved.update(targets=targets))

    def finish(self, state: State) -> Shard:
        """The images with their labels and the learned rate."""
        shard = super().finish(state)
        targets = state["targets"].cpu()
        if self.soft:
            targets = targets.clamp_min(1e-12).log()  # logits of these probabilities
        return Shard(shard.images, shard.classes, targets, float(state["rate"]))

    def _first_labels(self, images: Tensor) -> Tensor:
        """Soft labels before the first round, which gives others."""
        stream = (*self.job.stream, "start")
        _, expert = self.experts.piece(range(self.settings.start_below), *stream)
        return self._labels(expert, images)

    @torch.no_grad()
    def _labels(self, target: Tensor, images: Tensor) -> Tensor:
        """Probabilities (N, C) by the network with parameters `target`."""
        logits = [self.net.at(target, part) for part in images.split(LABELLED)]
        return torch.cat(logits).softmax(dim=1)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy against probabilities (N, C), mean over images."""
    return F.cross_entropy(logits, probabilities)
