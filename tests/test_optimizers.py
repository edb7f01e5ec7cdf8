"""The optimizers against torch, and against their formulas in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from apm_core.training.optimizers import Moments, adabelief_, adam_, lamb_

STEPS = 5


def gradients() -> Tensor:
    """(STEPS, 3, 4) float64, with an entry that is never moved."""
    random = torch.Generator().manual_seed(5)
    found = torch.randn(STEPS, 3, 4, generator=random, dtype=torch.float64)
    found[:, 0, 0] = 0.0
    return found


def start() -> Tensor:
    return torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4)


def followed(step, rate: float) -> np.ndarray:
    tensor = start()
    moments = Moments.at_rest(tensor)
    for gradient in gradients():
        step(tensor, gradient, moments, rate)
    assert float(moments.count) == STEPS
    return tensor.numpy()


def test_adam_equals_that_of_torch():
    expected = start().requires_grad_()
    optimizer = torch.optim.Adam([expected], lr=0.1)
    for gradient in gradients():
        expected.grad = gradient.clone()
        optimizer.step()
    np.testing.assert_allclose(followed(adam_, 0.1), expected.detach().numpy(), rtol=1e-12)


def test_lamb_equals_its_formula():
    w = start().numpy()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients().numpy(), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        r = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        w = w - 0.01 * np.sqrt((w**2).sum() / (r**2).sum()) * r
    np.testing.assert_allclose(followed(lamb_, 0.01), w, rtol=1e-12)


def test_a_step_of_lamb_is_a_share_of_the_norm():
    tensor = start()
    lamb_(tensor, gradients()[0], Moments.at_rest(tensor), 0.02)
    assert float((tensor - start()).norm()) == pytest.approx(0.02 * float(start().norm()))


@pytest.mark.parametrize(("tensor", "gradient"), [(0.0, 1.0), (1.0, 0.0)])
def test_lamb_stands_in_for_norms_of_zero(tensor, gradient):
    moved = torch.full((3,), tensor, dtype=torch.float64)
    lamb_(moved, torch.full_like(moved, gradient), Moments.at_rest(moved), 0.5)
    expected = tensor - 0.5 * gradient / (gradient + 1e-6)
    torch.testing.assert_close(moved, torch.full_like(moved, expected))


def test_adabelief_equals_its_formula():
    w = start().numpy()
    m, s = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients().numpy(), start=1):
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-16
        w = w - 0.1 * m / (1 - 0.9**t) / (np.sqrt(s / (1 - 0.999**t)) + 1e-16)
    found = followed(adabelief_, 0.1)
    np.testing.assert_allclose(found, w, rtol=1e-12)
    assert found[0, 0] == -1.0  # what has no gradient stays


def test_moments_are_forgotten_in_place():
    tensor = start()
    moments = Moments.at_rest(tensor)
    adam_(tensor, gradients()[0], moments, 0.1)
    first = moments.first
    moments.reset()
    assert moments.first is first
    assert not any(t.any() for t in (moments.first, moments.second, moments.count))
