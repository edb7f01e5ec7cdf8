"""Gradient matching: dataset condensation (DC), and with siamese augmentation (DSA).

Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021; Zhao & Bilen,
"Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021. The images move so that
they give a network the gradients that real images give it (Eq. 9 and 10 of DC), class by class,
while the network is trained on them from a random start (Algorithm 1). A round is one outer loop: a
matching step of all classes, then `inner_epochs` passes of training; after `outer_loops` rounds a
fresh network begins. DC is this from noise and without augmentation, DSA from real images with it.

Deviations from the published code: named random streams take the place of its clock; and a set is
trained on for the epochs of its recipe, with or without augmentation, where the published code has
300 without and 1000 with it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from apm_core.data.examples import Examples
from apm_core.methods.base import Job, Method, Update
from apm_core.methods.movers import Momentum, State
from apm_core.methods.passes import TRAINED, TWICE, Extent, Passes
from apm_core.methods.shared.real_classes import RealClasses
from apm_core.nets.base import stop_dropout
from apm_core.runtime import streams
from apm_core.settings.methods.dc import DCSettings
from apm_core.training import augment
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer

SMALLEST_NORM = 1e-6


class DC(Method):
    """Moves the images of a class to where they give a network the gradients of real ones.

    The recipe's augmentation is that of the matching and of the network's training.
    """

    def __init__(self, settings: DCSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.movers = {"images": Momentum(settings.lr_images, momentum=settings.momentum_images)}
        self.inner = Recipe(
            passes=settings.inner_epochs,
            lr=settings.lr_network,
            momentum=0.0,
            weight_decay=0.0,
            loss="ce",
            augment=recipe.augment,
        )

    def passes(self, extent: Extent) -> Passes:
        """The gradients of real and synthetic images of each class; then the network's training, in
        all rounds of its life but the last.
        """
        real, loops = self.settings.batch_real * extent.classes, self.settings.outer_loops
        match = Passes(TRAINED * real + TWICE * extent.images, 2 * extent.classes)
        steps = math.ceil(extent.images / self.inner.batch)
        training = self.inner.passes * Passes(TRAINED * extent.images, steps)
        return match + ((loops - 1) / loops) * training

    def init(self, job: Job) -> State:
        """Start from real images, or from Gaussian noise."""
        images, classes = job.real_images()
        if self.settings.start == "noise":
            random = streams.generator(*job.stream, "noise")
            images = torch.randn(images.shape, generator=random).to(images)
        self.attach(job)
        return {"images": images, "classes": classes}

    def attach(self, job: Job) -> None:
        """Load the real images, and build the network and its trainer."""
        self.job, self.real, device = job, RealClasses(job), job.compute.device
        self.net = job.spec.network(device)
        stop_dropout(self.net.module)
        count = job.ipc * job.spec.shape.classes
        dtype = self.net.vector.dtype
        self.examples = Examples(
            torch.zeros(count, *job.spec.shape.image, device=device, dtype=dtype),
            torch.zeros(count, device=device, dtype=torch.int64),
        )
        self.trainer = Trainer(
            job.spec.network(device), self.inner, job.compute, self.examples, networks=job.rounds
        )

    def step(self, state: State, index: int) -> Update:
        """Match the gradients of real images, class by class; afterwards train the network."""
        stream = (*self.job.stream, index)
        if index % self.settings.outer_loops == 0:
            state["network"] = self.job.spec.fresh(*stream, "network").to(state["images"].device)
        self.net.load(state["network"])
        gradient = torch.zeros_like(state["images"])
        distance = torch.zeros((), device=gradient.device)
        count, strategy = self.settings.batch_real, self.recipe.augment
        pairs = self.real.beside(state["classes"], count, strategy, *stream)
        for c, rows, real, drawn in pairs:
            target = self._gradients(real, c, graph=False)
            leaf = state["images"][rows].requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                gradients = self._gradients(augment.augment(leaf, drawn), c, graph=True)
                term = matching_distance(gradients, target)
                gradient[rows] = torch.autograd.grad(term, leaf)[0]
            distance += term.detach()
        lives_on = (index + 1) % self.settings.outer_loops != 0

        def train(moved: State) -> None:
            self.examples.images.copy_(moved["images"])
            self.examples.targets.copy_(moved["classes"])
            self.trainer.fit(moved["network"], *stream)
            moved["network"] = self.trainer.net.snapshot()

        figures = {"distance": float(distance)}
        return Update(figures, {"images": gradient}, then=train if lives_on else None)

    def _gradients(self, images: Tensor, c: int, *, graph: bool) -> list[Tensor]:
        """Gradients of the mean cross-entropy in the parameters of two and more dimensions."""
        targets = torch.full((len(images),), c, device=images.device)
        with self.job.compute.autocast():
            logits = self.net.module(images)
        loss = F.cross_entropy(logits.to(self.net.vector.dtype), targets)
        weights = [p for p in self.net.module.parameters() if p.ndim >= 2]
        return list(torch.autograd.grad(loss, weights, create_graph=graph))


def matching_distance(gradients: list[Tensor], target: list[Tensor]) -> Tensor:
    """Sum over tensors and their output rows of 1 - cosine (DC, Eq. 10); 0-d, differentiable.

    Raises ValueError when the lists differ in length.
    """
    total = torch.zeros((), device=gradients[0].device, dtype=gradients[0].dtype)
    for a, b in zip(gradients, target, strict=True):
        a, b = a.flatten(1), b.flatten(1)
        norms = a.norm(dim=1) * b.norm(dim=1)
        total = total + (1 - (a * b).sum(dim=1) / (norms + SMALLEST_NORM)).sum()
    return total
