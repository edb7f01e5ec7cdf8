"""Distribution matching (DM).

Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV 2023. In every round a fresh
random network, never trained, embeds real and synthetic images of a class, and the images move so
that the mean embeddings meet (Eq. 6, with siamese augmentation). Published: 20,000 rounds.
"""

import torch
from torch import Tensor

from apm_core.methods.base import Job, Method, State, move_images, require_embedding
from apm_core.methods.shared.real_classes import RealClasses
from apm_core.training import augment
from apm_core.training.recipe import Recipe


class DM(Method):
    """The method of one shard.

    Args:
        recipe: its augmentation is that of the comparison.
        lr_images, momentum_images: of the image steps, without a factor for batch or classes.
        batch_real: real images of a class in a round.
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        lr_images: float,
        momentum_images: float,
        batch_real: int,
    ) -> None:
        super().__init__(name=name)
        self.strategy, self.batch_real = recipe.augment, batch_real
        self.lr_images, self.momentum_images = lr_images, momentum_images

    def init(self, job: Job) -> State:
        """Real images at rest."""
        self.attach(job)
        images, classes = job.real_images()
        return {"images": images, "classes": classes, "velocity": torch.zeros_like(images)}

    def attach(self, job: Job) -> None:
        """Hold the real images, and memory for the random network."""
        self.job, self.real = job, RealClasses(job)
        self.net = job.spec.network(job.compute.device)
        self.net.module.requires_grad_(False)
        require_embedding(f"methods.{self.name}", job.spec, self.net.module)

    def step(self, state: State, index: int) -> dict[str, float]:
        """Move the images of every class towards the mean embedding of the real ones."""
        stream = (*self.job.stream, index)
        self.net.load(self.job.spec.fresh(*stream, "network"))
        gradient = torch.zeros_like(state["images"])
        distance = torch.zeros((), device=gradient.device)
        pairs = self.real.beside(state["classes"], self.batch_real, self.strategy, *stream)
        for _, rows, real, drawn in pairs:
            with torch.no_grad():
                target = self._mean_embedding(real)
            leaf = state["images"][rows].requires_grad_()
            apart = self._mean_embedding(augment.augment(leaf, drawn)) - target
            term = apart.square().sum()  # classes do not interact: one graph at a time
            gradient[rows] = torch.autograd.grad(term, leaf)[0]
            distance += term.detach()
        move_images(state, gradient, rate=self.lr_images, momentum=self.momentum_images)
        return {"distance": float(distance), "lr_images": self.lr_images}

    def _mean_embedding(self, images: Tensor) -> Tensor:
        with self.job.compute.autocast():
            embedded = self.net.module.embed(images)
        return embedded.to(self.net.vector.dtype).mean(dim=0)
