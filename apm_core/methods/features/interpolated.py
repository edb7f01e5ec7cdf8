"""Matching of features of interpolated teachers, class by class: the frame of DANCE and NCFM.

Every round draws one teacher of the pool. Matching embeds real and synthetic images by a network
between the teacher's beginning and its end, theta = l before + (1 - l) after with l uniform in
[0, 1]; calibration asks the trained teacher itself, by the cross-entropy of its predictions on the
synthetic images, that these stay in their class.

Deviations from the published codes of both, which share their frame:

- A round moves the images once, along the sum of both gradients; the codes step after every class,
  and a second time for the calibration. Rows of other classes have no gradient but move on by their
  momentum there, so with SGD both travel the same way up to the order of the steps.
- Images live in the working space: where the codes keep pixels in [0, 1] and clamp them before
  each round, nothing is clamped here. What is a step of r on such pixels is one of r / std^2 by
  SGD, of r / std by Adam, on images that are divided by the standard deviation std.
- Teachers are those of the house (`teachers`, trained with siamese augmentation), where the codes
  train 20 for 60 epochs, with CutMix.
- Sets are trained on by the house's schedule and augmentation: no CutMix.

Tiles (`tiles: 2`, both published with them) are no matter of the method: it sees decoded images.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.methods.base import Job, Method
from apm_core.methods.movers import State
from apm_core.methods.passes import FORWARD, TO_IMAGES, Extent, Passes
from apm_core.methods.shared.real_classes import RealClasses, siamese
from apm_core.nets import require_embedding
from apm_core.runtime import streams
from apm_core.settings.methods.dance import FeatureSettings
from apm_core.training import augment

Distance = Callable[[Tensor, Tensor], Tensor]  # real (n, D) and synthetic (m, D) features to 0-d


class InterpolatedFeatures(Method):
    """Moves the images of a class to where a distance of features says.

    A subclass states the movers and calls `follow` with its distance.
    """

    settings: FeatureSettings

    def passes(self, extent: Extent) -> Passes:
        """The real images of each class, and its synthetic ones, these also for the calibration.

        What the distance costs beside the networks is left out.
        """
        real = self.settings.batch_real * extent.classes
        views = 2 if self.settings.calibration else 1
        own = views * Passes(TO_IMAGES * extent.images, extent.classes)
        return Passes(FORWARD * real, extent.classes) + own

    def init(self, job: Job) -> State:
        """Start from real images."""
        self.attach(job)
        images, classes = job.real_images()
        return {"images": images, "classes": classes}

    def attach(self, job: Job) -> None:
        """Load the real images; raises ConfigError when the teachers have no embedding."""
        self.job, self.net = job, job.teachers.net
        require_embedding(f"methods.{self.name}", job.spec.name)
        self.real = RealClasses(job)

    def follow(
        self, state: State, index: int, distance: Distance, *others: Tensor
    ) -> tuple[dict[str, float], Tensor, list[Tensor]]:
        """Compare real and synthetic images of every class in round `index`.

        Returns: the figures, sums over classes; the gradient of the images, of distance and
        weighted calibration; the gradients of the distance alone in `others`, sums over classes.
        """
        stream, pool = (*self.job.stream, index), self.job.teachers
        random = streams.generator(*stream, "teacher")
        member = int(torch.randint(len(pool), (), generator=random))
        share = float(torch.rand((), generator=random))
        self.net.load(torch.lerp(pool.vectors[member], pool.before(member), share))
        gradient = torch.zeros_like(state["images"])
        total = torch.zeros((), device=gradient.device)
        of_others = [torch.zeros_like(other) for other in others]
        for c, rows in enumerate(self._rows(state)):
            draws = self._draws(*stream, c)
            with torch.no_grad():
                real = self.real.draw(c, self.settings.batch_real, *stream)
                real = self._embedded(augmented(real, draws))
            leaf = state["images"][rows].requires_grad_()
            term = distance(real, self._embedded(augmented(leaf, draws)))
            gradient[rows], *found = torch.autograd.grad(term, (leaf, *others))
            for summed, part in zip(of_others, found, strict=True):
                summed += part
            total += term.detach()
        figures = {"distance": float(total)}
        if self.settings.calibration:
            pool.load(member)
            calibration, own = self._calibrated(state, *stream, "calibration")
            figures["calibration"] = float(calibration)
            gradient += self.settings.calibration * own
        return figures, gradient, of_others

    def _calibrated(self, state: State, *stream: streams.Key) -> tuple[Tensor, Tensor]:
        """The loaded network's cross-entropy on the images, summed over classes, and its gradient
        in the images.
        """
        gradient = torch.zeros_like(state["images"])
        total = torch.zeros((), device=gradient.device)
        for c, rows in enumerate(self._rows(state)):
            leaf = state["images"][rows].requires_grad_()
            with self.job.compute.autocast():
                logits = self.net(augmented(leaf, self._draws(*stream, c)))
            term = F.cross_entropy(logits.to(leaf.dtype), state["classes"][rows])
            gradient[rows] = torch.autograd.grad(term, leaf)[0]
            total += term.detach()
        return total, gradient

    def _rows(self, state: State) -> list[Tensor]:
        """The rows of the images of each class."""
        classes = range(self.job.spec.shape.classes)
        return [torch.nonzero(state["classes"] == c).flatten() for c in classes]

    def _draws(self, *stream: streams.Key) -> list[augment.Draw | None]:
        """One draw of every group of `augment`, each the same for all images that get it."""
        device = self.job.compute.device
        names = augment.groups(self.settings.augment)
        return [siamese(name, device, *stream, name) for name in names]

    def _embedded(self, images: Tensor) -> Tensor:
        with self.job.compute.autocast():
            features = self.net.module.embed(images)
        return features.to(self.net.vector.dtype)


def augmented(images: Tensor, draws: Sequence[augment.Draw | None]) -> Tensor:
    """Images (N, C, S, S) after all `draws`, one after another."""
    for drawn in draws:
        images = augment.augment(images, drawn)
    return images
