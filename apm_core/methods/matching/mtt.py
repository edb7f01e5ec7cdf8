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

from apm_core.methods.base import Job, Method, Shard, State, are_finite, require_batch, require_loss
from apm_core.methods.matching.experts import Experts, Outer, figures_of, inner_training
from apm_core.methods.matching.trajectory import Inner
from apm_core.training.recipe import Recipe


class MTT(Method):
    """The method of one shard.

    Args:
        name: of the method in the config.
        recipe: its augmentation is that of the inner steps.
        lr_images, momentum_images: of the image steps; the momentum also of the rate's.
        rate: of the inner training at the start.
        lr_rate: step of the rate.
        steps: N, inner steps.
        expert_epochs: M.
        start_below: T+; t is drawn from 0..T+-1.
        batch: images of an inner step; None: all of the shard.
        exact: the gradient of full unrolling, or TESLA's approximation.
        soft_labels: labels are the softmax of the target expert on the images, anew in each
            round; the recipe's loss is then soft_ce, else ce.
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        lr_images: float,
        momentum_images: float,
        rate: float,
        lr_rate: float,
        steps: int,
        expert_epochs: int,
        start_below: int,
        batch: int | None,
        exact: bool,
        soft_labels: bool,
    ) -> None:
        super().__init__(name=name)
        loss, chosen = "soft_ce" if soft_labels else "ce", str(soft_labels).lower()
        require_loss(self.key("recipe.loss"), recipe, loss, f"soft_labels: {chosen}")
        self.inner = Inner(steps, batch, recipe.augment)
        self.outer = Outer(lr_images, momentum_images, rate, lr_rate)
        self.expert_epochs, self.start_below = expert_epochs, start_below
        self.exact, self.soft_labels = exact, soft_labels

    def init(self, job: Job) -> State:
        """Real images at rest, and the rate."""
        images, classes = job.real_images()
        require_batch(self.key("batch"), self.inner.batch, images)
        self.attach(job)
        state = self.outer.start(images.to(job.compute.device), classes)
        return {**state, "targets": classes}

    def attach(self, job: Job) -> None:
        """Hold the experts."""
        self.job, self.net = job, job.spec.network(job.compute.device)
        loss = soft_cross_entropy if self.soft_labels else F.cross_entropy
        self.training = inner_training(job, self.inner, loss, exact=self.exact)
        self.experts = Experts(job, self, below=self.start_below, length=self.expert_epochs)

    def step(self, state: State, index: int) -> dict[str, float]:
        """Match a piece of one expert's trajectory."""
        stream, images = (*self.job.stream, index), state["images"]
        start, target = self.experts.piece(range(self.start_below), *stream)
        steps = self.inner.draw(len(images), images.device, *stream)
        targets = self._labels(target, images) if self.soft_labels else state["targets"]
        found = self.training.match(start, target, steps, images, targets, state["rate"])
        figures = figures_of(found)
        if are_finite(figures):
            self.outer.move(state, found)
            state["targets"] = targets
        return {**figures, "lr_images": self.outer.lr_images, "rate": float(state["rate"])}

    def finish(self, state: State) -> Shard:
        """The images with their labels and the learned rate."""
        shard = super().finish(state)
        targets = state["targets"].cpu()
        if self.soft_labels:
            targets = targets.clamp_min(1e-12).log()  # logits of these probabilities
        return Shard(shard.images, shard.classes, targets, float(state["rate"]))

    @torch.no_grad()
    def _labels(self, target: Tensor, images: Tensor) -> Tensor:
        """Probabilities (N, C) by the network with parameters `target`."""
        return self.net.at(target, images).softmax(dim=1)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy against probabilities (N, C), mean over images."""
    return F.cross_entropy(logits, probabilities)
