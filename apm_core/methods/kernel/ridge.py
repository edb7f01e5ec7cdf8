"""Kernel ridge regression, differentiable in everything."""

import torch
from torch import Tensor

from apm_core.errors import ConfigError


def factor(features: Tensor, ridge: Tensor | float, key: str) -> Tensor:
    """The Cholesky factor (n, n) float64 of K + ridge I, with K the inner products of `features`.

    In float64 whatever the features (n, D) are: K is dominated by the features' mean, so a ridge
    that is small beside its trace is below the rounding of float32.

    Where the features are not finite, neither is the factor. Raises ConfigError, naming the setting
    `key`, when the system is singular.
    """
    features = features.double()
    gram = features @ features.T
    system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    triangle, failure = torch.linalg.cholesky_ex(system)
    if not failure:
        return triangle
    if torch.isfinite(system).all():
        raise ConfigError(
            f"{key}: the kernel matrix of {len(gram)} distilled images is singular with a ridge of"
            f" {float(ridge):.3g}: raise {key}, ten times at a time"
        )
    return torch.full_like(system, torch.nan)


def head(features: Tensor, targets: Tensor, relative: float, key: str) -> Tensor:
    """The linear head (D, C) that ridge regression puts on `features` (n, D) to predict `targets`
    (n, C), in the type of the features.

    H^T (H H^T + lambda I)^-1 Y with lambda = `relative` times the mean of the kernel's diagonal.
    """
    mean_square = features.double().square().sum() / len(features)  # trace(K) / n
    triangle = factor(features, relative * mean_square, key)
    solution = torch.cholesky_solve(targets.double(), triangle)
    return (features.double().T @ solution).to(features.dtype)


def margin(targets: Tensor, most: float) -> Tensor:
    """Minus the mean over images of the distance between the two largest entries of `targets`
    (N, C), which counts up to `most`.
    """
    best = targets.topk(2, dim=1).values
    return -(best[:, 0] - best[:, 1]).clamp_max(most).mean()
