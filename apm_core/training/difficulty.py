"""How difficult images are to learn, and which of them are trained on when.

Paul et al., "Deep Learning on a Data Diet: Finding Important Examples Early in Training", NeurIPS
2021, score an image by the norm of its loss's gradient in all parameters, in expectation over
networks early in training (GraNd, Definition 2.1). Li et al., "Prioritize Alignment in Dataset
Distillation", arXiv:2408.03360, 2024 (PAD), train experts on the easiest images first, and without
them in the end.

Deviations from the published code of PAD: it reads the order by GraNd from a file that was made
with DeepCore, which takes the gradient of the last layer, by networks that are not described; here
each job trains networks to score by, on the same random streams, so that all jobs have the same
scores. A pass over a part of the images leaves out, at random, those that fill no batch of the
usual sizes (published: a shorter last batch).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from apm_core.data.examples import Examples
from apm_core.errors import ConfigError
from apm_core.nets.flat import FlatNet
from apm_core.settings.training import Curriculum

TOGETHER = 32  # images whose gradients are in memory at once


def gradient_norms(net: FlatNet, examples: Examples) -> Tensor:
    """The norm (N,) of the gradient of each example's cross-entropy in the network's parameters,
    in evaluation mode, on the CPU; targets are class indices.
    """
    net.module.eval()
    theta = net.vector.clone()

    def value(theta: Tensor, image: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(net.at(theta, image[None]), target[None])

    def norm(image: Tensor, target: Tensor) -> Tensor:
        return grad(value)(theta, image, target).norm()

    count, device = len(examples.targets), examples.targets.device
    rows = torch.arange(count, device=device).split(TOGETHER)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no vmap
        found = [vmap(norm)(examples.images[r], examples.targets[r]) for r in rows]
    return torch.cat(found).cpu()


def taught(plan: Curriculum, epoch: int, count: int) -> slice:
    """Which of the `count` images of a class, the easiest first, epoch `epoch` trains on."""
    if epoch > plan.drop_more_after:
        return slice(int(plan.drop_more * count), None)
    if epoch > plan.drop_after:
        return slice(int(plan.drop * count), None)
    share = plan.easiest + (1 - plan.easiest) * epoch / plan.all_from
    return slice(int(min(1.0, share) * count))


def require_batches(plan: Curriculum, classes: Tensor, batch: int) -> None:
    """Raise ConfigError when an epoch has fewer images, of `classes` (N,), than a batch."""
    counts = classes.bincount().tolist()
    for epoch in (0, plan.drop_after + 1, plan.drop_more_after + 1):
        found = sum(len(range(count)[taught(plan, epoch, count)]) for count in counts)
        if found < batch:
            raise ConfigError(
                f"curriculum: epoch {epoch} has {found} images, fewer than a batch of {batch}:"
                " lower the pool's batch, or raise the share of the images"
            )


class Lessons:
    """The images of each epoch of a training, by difficulty.

    Args:
        scores: (N,), higher for more difficult images.
        classes: (N,) class indices.
    """

    def __init__(self, plan: Curriculum, scores: Tensor, classes: Tensor) -> None:
        order = torch.argsort(scores, stable=True)
        self.plan, self.ranked = plan, [order[classes[order] == c] for c in classes.unique()]

    def __call__(self, epoch: int) -> Tensor:
        """The examples (n,) int64 of epoch `epoch`, class by class, the easiest first."""
        return torch.cat([own[taught(self.plan, epoch, len(own))] for own in self.ranked])
