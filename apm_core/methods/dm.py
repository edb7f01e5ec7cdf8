"""Distribution matching (DM).

Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV 2023. In every round a fresh
random network, never trained, embeds real and synthetic images of a class, and the images move so
that the mean embeddings meet (Eq. 6, with siamese augmentation). Published: 20,000 rounds.
"""

import torch
from torch import Tensor

from apm_core.methods.base import Job, Method, Update
from apm_core.methods.movers import Momentum, State
from apm_core.methods.passes import FORWARD, TO_IMAGES, Extent, Passes
from apm_core.methods.shared.real_classes import RealClasses
from apm_core.nets import require_embedding
from apm_core.settings.methods.dm import DMSettings
from apm_core.training import augment
from apm_core.training.recipe import Recipe


class DM(Method):
    """Moves the images of a class to where their mean embedding is that of real ones.

    The recipe's augmentation is that of the comparison.
    """

    def __init__(self, settings: DMSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.movers = {"images": Momentum(settings.lr_images, momentum=settings.momentum_images)}

    def passes(self, extent: Extent) -> Passes:
        """The real images of each class, and its synthetic ones."""
        real = self.settings.batch_real * extent.classes
        return Passes(FORWARD * real + TO_IMAGES * extent.images, 2 * extent.classes)

    def init(self, job: Job) -> State:
        """Start from real images."""
        self.attach(job)
        images, classes = job.real_images()
        return {"images": images, "classes": classes}

    def attach(self, job: Job) -> None:
        """Load the real images, and allocate the random network.

        Raises ConfigError when the network has no embedding.
        """
        self.job, self.real = job, RealClasses(job)
        self.net = job.spec.network(job.compute.device)
        self.net.module.requires_grad_(False)
        require_embedding(f"methods.{self.name}", job.spec.name)

    def step(self, state: State, index: int) -> Update:
        """Match the mean embedding of the real images of each class."""
        stream = (*self.job.stream, index)
        self.net.load(self.job.spec.fresh(*stream, "network"))
        gradient = torch.zeros_like(state["images"])
        distance = torch.zeros((), device=gradient.device)
        count, strategy = self.settings.batch_real, self.recipe.augment
        pairs = self.real.beside(state["classes"], count, strategy, *stream)
        for _, rows, real, drawn in pairs:
            with torch.no_grad():
                target = self._mean_embedding(real)
            leaf = state["images"][rows].requires_grad_()
            difference = self._mean_embedding(augment.augment(leaf, drawn)) - target
            term = difference.square().sum()  # classes do not interact: one graph at a time
            gradient[rows] = torch.autograd.grad(term, leaf)[0]
            distance += term.detach()
        return Update({"distance": float(distance)}, {"images": gradient})

    def _mean_embedding(self, images: Tensor) -> Tensor:
        with self.job.compute.autocast():
            embedded = self.net.module.embed(images)
        return embedded.to(self.net.vector.dtype).mean(dim=0)
