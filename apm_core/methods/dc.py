"""Gradient matching: dataset condensation (DC), and with siamese augmentation (DSA).

Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021; Zhao & Bilen,
"Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021. The images move so that
they give a network the gradients that real images give it (Eq. 9 and 10 of DC), class by class,
while the network is trained on them from a random start (Algorithm 1). A round is one outer loop: a
matching step of all classes, then `inner_epochs` passes of training; after `outer_loops` rounds a
fresh network begins. DC is this from noise and without augmentation, DSA from real images with it.

Deviation: named random streams take the place of the published code's clock.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.data.examples import Examples
from apm_core.errors import ConfigError
from apm_core.methods.base import Job, Method, State, move_images
from apm_core.methods.shared.real_classes import RealClasses
from apm_core.runtime import streams
from apm_core.training import augment
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer

STARTS = ("real", "noise")
SMALLEST_NORM = 1e-6


class DC(Method):
    """The method of one shard.

    Args:
        recipe: its augmentation is that of the matching and of the network's training.
        lr_images, momentum_images: of the image steps.
        batch_real: real images of a class in a round.
        outer_loops: rounds that one network lives.
        inner_epochs: passes over the synthetic images between two rounds of one network.
        lr_network: plain SGD of the network.
        start: "real" images or Gaussian "noise".
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        lr_images: float,
        momentum_images: float,
        batch_real: int,
        outer_loops: int,
        inner_epochs: int,
        lr_network: float,
        start: str,
    ) -> None:
        super().__init__(name=name)
        if start not in STARTS:
            raise ConfigError(f"{self.key('start')}: {start!r} is neither real nor noise")
        self.strategy, self.batch_real, self.start = recipe.augment, batch_real, start
        self.lr_images, self.momentum_images = lr_images, momentum_images
        self.outer_loops = outer_loops
        self.inner = Recipe(
            passes=inner_epochs,
            lr=lr_network,
            momentum=0.0,
            weight_decay=0.0,
            loss="ce",
            augment=recipe.augment,
        )

    def init(self, job: Job) -> State:
        """Real images, or noise, at rest."""
        images, classes = job.real_images()
        if self.start == "noise":
            random = streams.generator(*job.stream, "noise")
            images = torch.randn(images.shape, generator=random).to(images)
        state: dict[str, Any] = {"images": images, "classes": classes}
        self.attach(job)
        return state | {"velocity": torch.zeros_like(images)}

    def attach(self, job: Job) -> None:
        """Hold the real images, and the network with its trainer."""
        self.job, self.real, device = job, RealClasses(job), job.compute.device
        self.net = job.spec.network(device)
        count = job.ipc * job.spec.shape.classes
        dtype = self.net.vector.dtype
        self.examples = Examples(
            torch.zeros(count, *job.spec.shape.image, device=device, dtype=dtype),
            torch.zeros(count, device=device, dtype=torch.int64),
        )
        self.trainer = Trainer(
            job.spec.network(device), self.inner, job.compute, self.examples, networks=job.rounds
        )

    def step(self, state: State, index: int) -> dict[str, float]:
        """Match the gradients of every class, then train the network on the images."""
        stream = (*self.job.stream, index)
        if index % self.outer_loops == 0:
            state["network"] = self.job.spec.fresh(*stream, "network").to(state["images"].device)
        self.net.load(state["network"])
        gradient = torch.zeros_like(state["images"])
        distance = torch.zeros((), device=gradient.device)
        pairs = self.real.beside(state["classes"], self.batch_real, self.strategy, *stream)
        for c, rows, real, drawn in pairs:
            target = self._gradients(real, c, graph=False)
            leaf = state["images"][rows].requires_grad_()
            found = self._gradients(augment.augment(leaf, drawn), c, graph=True)
            term = matching_distance(found, target)
            gradient[rows] = torch.autograd.grad(term, leaf)[0]
            distance += term.detach()
        move_images(state, gradient, rate=self.lr_images, momentum=self.momentum_images)
        if (index + 1) % self.outer_loops:
            self.examples.images.copy_(state["images"])
            self.examples.targets.copy_(state["classes"])
            self.trainer.fit(state["network"], *stream)
            state["network"] = self.trainer.net.snapshot()
        return {"distance": float(distance), "lr_images": self.lr_images}

    def _gradients(self, images: Tensor, c: int, *, graph: bool) -> list[Tensor]:
        """Gradients of the mean cross-entropy in the parameters of two and more dimensions."""
        targets = torch.full((len(images),), c, device=images.device)
        with self.job.compute.autocast():
            logits = self.net.module(images)
        loss = F.cross_entropy(logits.to(self.net.vector.dtype), targets)
        weights = [p for p in self.net.module.parameters() if p.ndim >= 2]
        return list(torch.autograd.grad(loss, weights, create_graph=graph))


def matching_distance(found: list[Tensor], target: list[Tensor]) -> Tensor:
    """Sum over tensors and their output rows of 1 - cosine (DC, Eq. 10)."""
    total = torch.zeros((), device=found[0].device, dtype=found[0].dtype)
    for a, b in zip(found, target, strict=True):
        a, b = a.flatten(1), b.flatten(1)
        norms = a.norm(dim=1) * b.norm(dim=1)
        total = total + (1 - (a * b).sum(dim=1) / (norms + SMALLEST_NORM)).sum()
    return total
