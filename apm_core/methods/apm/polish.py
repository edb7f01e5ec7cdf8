"""What can still be learned when the images are there: their labels, and the rate to train with.

Both look at real images of the training split through a few networks trained on the distilled ones.
Labels are learned as in kernel methods (Nguyen et al., "Dataset Meta-Learning from Kernel
Ridge-Regression", ICLR 2021): a network's features with a ridge-regression head predict real images
as a linear function of the labels, so the best labels are the solution of one linear system.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from apm_core.data.examples import Examples, Images
from apm_core.methods.base import Job, Shard
from apm_core.methods.kernel import ridge
from apm_core.nets.flat import FlatNet
from apm_core.training.rate_search import REAL, best, tried
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer

STUDENTS = 4  # networks whose features count
RIDGE = 1e-3  # of their heads, relative to the kernel
PULL = 0.3  # towards the teachers' labels, relative to the curvature of the fit
RATES = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the recipe's
BATCH = 1000


def polished(
    shard: Shard, job: Job, recipe: Recipe, epoch: int | None, *, labels: bool, rate: bool
) -> Shard:
    """The shard with learned labels, a learned rate, or both.

    The labels start from the mean logits of the teachers as after `epoch`. Time: `STUDENTS`
    trainings for the labels and one for each of `RATES`; the square of the shard's images is held.
    """
    pool, compute, stream = job.teachers, job.compute, (*job.stream, "polish")
    real = job.data.examples("train", compute).some(REAL, *stream, "real")
    images = shard.images.to(compute.device)
    examples = Examples(images, pool.logits(None, images, compute, epoch=epoch))
    net = pool.spec.network(compute.device)
    trainer = Trainer(
        net, recipe, compute, examples, networks=STUDENTS * labels + len(RATES) * rate
    )
    if labels:
        students = []
        for number in range(STUDENTS):
            trainer.fit(pool.spec.fresh(*stream, number), *stream, number)
            students.append(net.snapshot())
        logits = pool.logits(None, real.images, compute, epoch=epoch)
        examples.targets.copy_(learned_labels(net, students, examples, real.images, logits))
        shard = replace(shard, targets=examples.targets.cpu())
    if rate:
        rates = [factor * recipe.lr for factor in RATES]
        scores = [tried(trainer, pool.spec, lr, real, *job.stream, "rate") for lr in rates]
        shard = replace(shard, rate=best(rates, scores))
    return shard


def learned_labels(
    net: FlatNet, students: Sequence[Tensor], examples: Examples, real: Images, logits: Tensor
) -> Tensor:
    """The labels (N, C) of the N examples with which heads on the students' features come closest
    to `logits` (n, C) on the `real` images.

    For each student, with parameters (P,), ridge regression on its features gives predictions A Y,
    linear in the labels Y. The result minimises |A Y - logits|^2 / n, mean over students, plus PULL
    times |Y - labels|^2 in units of the mean curvature of the first term.
    """
    labels, count = examples.targets.double(), len(examples.targets)
    eye = torch.eye(count, dtype=torch.float64, device=labels.device)
    curvature, slope = torch.zeros_like(eye), torch.zeros_like(labels)
    for student in students:
        net.load(student)
        heads = ridge.head(_features(net, examples.images), eye, RIDGE, "recipe.epochs")
        predictions = _features(net, real) @ heads  # A, (n, N)
        curvature += predictions.T @ predictions
        slope += predictions.T @ logits.double()
    hold = PULL * curvature.trace() / count
    return torch.linalg.solve(curvature + hold * eye, slope + hold * labels).to(examples.targets)


@torch.no_grad()
def _features(net: FlatNet, images: Images) -> Tensor:
    """Features (n, D + 1) float64 before the head, and a one for its bias."""
    parts = torch.arange(len(images)).split(BATCH)
    found = torch.cat([net.module.embed(images[part]).double() for part in parts])
    return torch.cat([found, found.new_ones(len(found), 1)], dim=1)
