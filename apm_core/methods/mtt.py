"""Matching training trajectories (MTT), and its constant-memory form (TESLA).

Cazenavette et al., CVPR 2022; Cui et al., ICML 2023. A network that starts where an expert was
after t epochs, trained for N steps on the distilled images, is to end where the expert was after
t + M epochs; images and learning rate move along the gradient of the normalised distance
(`apm_core.trajectory`).

Deviations from the published code: the gradient is that of full unrolling wherever `exact` says so,
in constant memory; TESLA's image gradient has the factor 2 of its formula, which the published code
lacks, so half of its published image rate does the same; the learned rate cannot become negative
(it stops at a hundredth of its start); named random streams take the place of the clock.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core import augment, rng
from apm_core.errors import ConfigError
from apm_core.methods.base import Job, Method, Shard, State, move_images, require_batch
from apm_core.train import Recipe
from apm_core.trajectory import Step, match

LEAST_RATE = 0.01  # of the rate at the start


class MTT(Method):
    """The method of one shard.

    Args:
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
        loss = "soft_ce" if soft_labels else "ce"
        if recipe.loss != loss:
            raise ConfigError(
                f"methods.mtt.recipe.loss: {recipe.loss} does not go with soft_labels:"
                f" {str(soft_labels).lower()}: set it to {loss}"
            )
        self.strategy, self.exact, self.soft_labels = recipe.augment, exact, soft_labels
        self.lr_images, self.momentum = lr_images, momentum_images
        self.rate, self.lr_rate = rate, lr_rate
        self.steps, self.expert_epochs, self.start_below = steps, expert_epochs, start_below
        self.batch = batch

    def init(self, job: Job) -> State:
        """Real images at rest, and the rate."""
        images, classes = job.real_images()
        require_batch("methods.mtt.batch", self.batch, images)
        self.attach(job)
        return {
            "images": images,
            "classes": classes,
            "velocity": torch.zeros_like(images),
            "rate": torch.tensor(self.rate, device=images.device, dtype=images.dtype),
            "rate_velocity": torch.zeros((), device=images.device, dtype=images.dtype),
            "targets": classes,
        }

    def attach(self, job: Job) -> None:
        """Hold the experts in host memory."""
        self.job, self.net = job, job.spec.memory(job.compute.device)
        self.experts = [member for group in job.teachers.trajectories for member in group]
        last = len(self.experts[0]) - 1
        if self.start_below - 1 + self.expert_epochs > last:
            raise ConfigError(
                f"methods.mtt.start_below: from epoch {self.start_below - 1},"
                f" {self.expert_epochs} epochs on, is beyond the {last} epochs of the experts:"
                " lower start_below, or raise experts.epochs"
            )

    def step(self, state: State, index: int) -> dict[str, float]:
        """Match a piece of one expert's trajectory."""
        stream, images = (*self.job.stream, index), state["images"]
        start, target = self._piece(*stream)
        if self.soft_labels:
            state["targets"] = self._labels(target, images)
        loss = soft_cross_entropy if self.soft_labels else F.cross_entropy
        plan = self._plan(len(images), *stream)
        targets, rate = state["targets"], state["rate"]
        found = match(self.net, start, target, plan, images, targets, rate, loss, exact=self.exact)
        move_images(state, found.images, rate=self.lr_images, momentum=self.momentum)
        state["rate_velocity"] = self.momentum * state["rate_velocity"] + found.rate
        moved = rate - self.lr_rate * state["rate_velocity"]
        state["rate"] = moved.clamp_min(LEAST_RATE * self.rate)
        return {
            "match": float(found.loss),
            "lr_images": self.lr_images,
            "rate": float(state["rate"]),
        }

    def finish(self, state: State) -> Shard:
        """The images with their labels and the learned rate."""
        shard = super().finish(state)
        targets = state["targets"].cpu()
        if self.soft_labels:
            targets = targets.clamp_min(1e-12).log()  # logits of these probabilities
        return Shard(shard.images, shard.classes, targets, float(state["rate"]))

    def _piece(self, *stream: rng.Path) -> tuple[Tensor, Tensor]:
        """Parameters (P,) of an expert at the start and at the end of a piece of its training."""
        random = rng.generator(*stream, "expert")
        expert = self.experts[int(torch.randint(len(self.experts), (), generator=random))]
        epoch = int(torch.randint(self.start_below, (), generator=random))
        device = self.job.compute.device
        return expert[epoch].to(device), expert[epoch + self.expert_epochs].to(device)

    def _plan(self, count: int, *stream: rng.Path) -> list[Step]:
        """Batches of the inner steps: permutations of the images, one after another."""
        random, device = rng.generator(*stream, "inner"), self.job.compute.device
        size = self.batch or count
        waiting: list[Tensor] = []
        plan = []
        for _ in range(self.steps):
            if not waiting:
                waiting = list(torch.randperm(count, generator=random).split(size))
            batch = waiting.pop(0).to(device)
            drawn = augment.draw(self.strategy, len(batch), random)
            plan.append(Step(batch, drawn and drawn.to(device)))
        return plan

    @torch.no_grad()
    def _labels(self, target: Tensor, images: Tensor) -> Tensor:
        """Probabilities (N, C) by the network with parameters `target`."""
        return self.net.at(target, images).softmax(dim=1)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy against probabilities (N, C), mean over images."""
    return F.cross_entropy(logits, probabilities)
