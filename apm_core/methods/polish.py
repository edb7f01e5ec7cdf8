"""What can still be learned when the images are there: their labels, and the rate to train with.

Neither looks at anything but the training split.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from apm_core import ridge, rng
from apm_core.device import Compute
from apm_core.errors import DivergenceError
from apm_core.nets.flat import FlatNet
from apm_core.train import Examples, Images, Trainer, accuracy

BATCH = 1000


def learned_labels(
    net: FlatNet,
    students: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    real: Images,
    logits: Tensor,
    *,
    strength: float,
    pull: float,
    key: str,
) -> Tensor:
    """The labels (N, C) of `images` (N, ...) with which linear heads on the students' features come
    closest to `logits` (n, C) on `real` images (n, ...).

    For each student, with parameters (P,), ridge regression of `strength` (relative to the kernel)
    on its features H gives predictions A Y, linear in the labels Y. The result minimises
    |A Y - logits|^2 / n, mean over students, + pull |Y - labels|^2, with `pull` relative to the
    mean curvature of the first term. One linear system; cost and memory grow with N^2.
    Raises ConfigError, naming the setting `key`, when the kernel is singular.
    """
    eye = torch.eye(len(images), dtype=torch.float64, device=images.device)
    curvature, slope = torch.zeros_like(eye), torch.zeros_like(labels, dtype=torch.float64)
    for student in students:
        net.load(student)
        by_labels = ridge.head(_features(net, images), eye, strength, key)  # (D, N)
        predictions = _features(net, real) @ by_labels  # A, (n, N)
        curvature += predictions.T @ predictions / len(real)
        slope += predictions.T @ logits.double() / len(real)
    hold = pull * curvature.trace() / len(images)
    found = torch.linalg.solve(curvature + hold * eye, slope + hold * labels.double())
    return found.to(labels.dtype)


@torch.no_grad()
def _features(net: FlatNet, images: Images) -> Tensor:
    """Features (n, D + 1) float64 before the head, and a one for its bias."""
    parts = torch.arange(len(images)).split(BATCH)
    found = torch.cat([net.module.embed(images[part]).double() for part in parts])
    return torch.cat([found, found.new_ones(len(found), 1)], dim=1)


def learned_rate(
    trainer: Trainer,
    start: Tensor,
    rates: Sequence[float],
    real: Examples,
    compute: Compute,
    *stream: rng.Path,
) -> float:
    """The rate, of `rates`, with which a network trained from `start` (P,) does best on the real
    images of the training split; one with which training diverges is left out.

    Raises DivergenceError when training diverges with all of them.
    """
    scores = {}
    for rate in rates:
        try:
            trainer.fit(start, *stream, lr=rate)
        except DivergenceError as error:
            last = error
            continue
        scores[rate] = accuracy(trainer.net, real, compute)
    if not scores:
        raise last
    shown = ", ".join(f"{rate:g}: {score:.1f} %" for rate, score in scores.items())
    compute.report(f"learning rates by accuracy on real images: {shown}")
    return max(scores, key=scores.__getitem__)
