"""RDED: the parts of real images that a trained network recognises best."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as crops

from apm_core.data.tiles import Tiles
from apm_core.methods.base import Job, OneShot, Shard
from apm_core.methods.passes import FORWARD, Extent, Passes
from apm_core.methods.selection.coreset import BATCH
from apm_core.runtime import streams
from apm_core.settings.methods.rded import RDEDSettings

SMALLEST = 0.08  # of the area of an image, in a view


class RDED(OneShot):
    """Sun et al., "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset
    Distillation Paradigm", CVPR 2024 (arXiv:2312.03526), the images.

    Of each of a class's candidates some random views are cut, squares of 8 to 100 % of its area.
    The view with the lowest cross-entropy of a teacher is kept, and of the candidates those of the
    lowest cross-entropy, t * t to a stored image of t x t tiles. The candidates, the first ones in
    the order from which all methods draw, and their views do not depend on the shard: shards share
    no image, and a larger set contains the smaller ones.

    Deviations: the published code judges a view of side S / t in the middle of a black image, here
    it is judged as the tile will be decoded, grown to the whole side; its whitening is ImageNet's
    for every data set, here the run's, and its images are kept as JPEG files. How networks are
    trained on the set there is protocol "kd" of the evaluation.
    """

    settings: RDEDSettings

    def passes(self, extent: Extent) -> Passes:
        """Every view of every candidate through each of the networks."""
        own = self.settings
        asked = own.crops * own.networks * extent.classes
        candidates = min(own.candidates, extent.train // extent.classes)
        return Passes(FORWARD * asked * candidates, asked * math.ceil(candidates / BATCH))

    def make(self, job: Job) -> Shard:
        """The views of the shard, class by class; raises DataError when a class has too few
        images.
        """
        tiles, classes, kept = Tiles(job.tiles, job.data.whitening), job.spec.shape.classes, []
        for c in range(classes):
            views, losses = self.best(job, tiles, c)
            order = torch.argsort(losses, stable=True).numpy()
            kept.append(tiles.grow(views[job.data.cut(order, c, job.ipc, job.shard)]))
            job.progress(c + 1, classes, {})
        return Shard(torch.cat(kept), torch.arange(classes).repeat_interleave(job.ipc))

    def best(self, job: Job, tiles: Tiles, c: int) -> tuple[Tensor, Tensor]:
        """Of each candidate of class `c` the best view (n, C, S / t, S / t), in [0, 1], and its
        loss (n,) float64; both on the CPU.
        """
        pixels = job.data.pixels(job.data.order(c)[: self.settings.candidates]).float() / 255
        side, count = pixels.shape[-1], len(pixels)
        best = torch.zeros(count, pixels.shape[1], *[side // tiles.factor] * 2)
        lowest = torch.full((count,), torch.inf, dtype=torch.float64)
        for number in range(self.settings.crops):
            random = streams.generator(job.seed, "views", c, number)
            squares = boxes(torch.rand(count, 3, generator=random), side)
            views = view(pixels, squares, best.shape[-1])
            losses = self.losses(job, tiles.grow(views.to(job.compute.device)), c)
            better = losses < lowest
            best[better], lowest[better] = views[better], losses[better]
        return best, lowest

    def losses(self, job: Job, images: Tensor, c: int) -> Tensor:
        """The cross-entropy (n,) float64 of class `c` for whitened images (n, C, S, S): the mean
        over teachers, in float32 whatever the precision of the run.
        """
        members = range(min(self.settings.networks, len(job.teachers)))
        found = [job.teachers.logits(m, images, job.compute.exact(), batch=BATCH) for m in members]
        return -F.log_softmax(torch.stack(found).double(), dim=-1)[..., c].mean(dim=0).cpu()


def boxes(uniform: Tensor, side: int) -> list[tuple[int, int, int]]:
    """Top, left and size in pixels of squares in an image of `side`, from numbers (n, 3) in [0, 1):
    the area is uniform in [0.08, 1] of the image's, then the place (RandomResizedCrop, ratio 1).
    """
    found = []
    for area, down, right in uniform.double().tolist():
        size = max(1, round(side * math.sqrt(SMALLEST + (1 - SMALLEST) * area)))
        found.append((int(down * (side - size + 1)), int(right * (side - size + 1)), size))
    return found


def view(pixels: Tensor, boxes: Sequence[tuple[int, int, int]], side: int) -> Tensor:
    """The squares `boxes` of images (n, C, H, W), one of each, resized to (n, C, side, side)."""
    cut = [
        crops.resized_crop(image[None], top, left, size, size, [side, side], antialias=True)
        for image, (top, left, size) in zip(pixels, boxes, strict=True)
    ]
    return torch.cat(cut)
