"""NCFM against complex exponentials, and its sampler."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm_core.errors import ConfigError
from apm_core.methods.base import Job
from apm_core.methods.features.ncfm import NCFM, characteristic_distance, sampler
from apm_core.methods.shared.real_classes import RealClasses
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.settings.method import methods
from apm_core.training.recipe import Recipe

K = 32


@pytest.fixture
def job(digits, teachers, cpu) -> Job:
    return Job(digits, teachers, cpu, ipc=2, shard=1, rounds=5, seed=7)


def ncfm(**changed: object) -> NCFM:
    small = {"batch_real": 9, "frequencies": K, "augment": "none", "calibration": 0.0}
    settings = methods()["ncfm"].changed({**small, **changed})
    return NCFM(settings, name="ncfm", recipe=Recipe(passes=1, lr=0.01))


def samples(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two sets of unit vectors, and frequencies."""
    random = np.random.default_rng(seed)
    sets = [random.normal(size=(count, 6)) for count in (9, 4)]
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in sets]
    return *unit, random.normal(size=(K, 6))


def functions(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, synthetic, frequencies = arrays
    return tuple(np.exp(1j * one @ frequencies.T).mean(axis=0) for one in (real, synthetic))


def distance(*arrays: np.ndarray, amplitude: float = 0.5, phase: float = 0.5) -> float:
    tensors = [torch.from_numpy(one) for one in arrays]
    return float(characteristic_distance(*tensors, amplitude, phase))


def test_with_equal_weights_it_is_the_distance_of_complex_numbers():
    arrays = samples()
    real, synthetic = functions(*arrays)
    expected = np.abs(real - synthetic).mean() / np.sqrt(2)
    assert distance(*arrays) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("amplitude", "phase"), [(0.9, 0.1), (1.0, 0.0), (0.0, 2.0)])
def test_amplitude_and_phase_have_weights_of_their_own(amplitude, phase):
    arrays = samples()
    real, synthetic = functions(*arrays)
    apart = (np.abs(real) - np.abs(synthetic)) ** 2
    angle = np.angle(real) - np.angle(synthetic)
    turned = 2 * np.abs(real) * np.abs(synthetic) * (1 - np.cos(angle))
    expected = np.sqrt(amplitude * apart + phase * turned).mean()
    assert distance(*arrays, amplitude=amplitude, phase=phase) == pytest.approx(expected, rel=1e-10)


def test_its_gradient_is_that_of_finite_differences():
    real, synthetic, frequencies = (torch.from_numpy(one).requires_grad_() for one in samples())
    for phase in (0.5, 0.0):
        torch.autograd.gradcheck(
            lambda s, t, phase=phase: characteristic_distance(real.detach(), s, t, 0.5, phase),
            (synthetic, frequencies),
        )


def test_equal_sets_have_no_distance_and_a_finite_gradient():
    real, _, frequencies = (torch.from_numpy(one) for one in samples())
    leaf = real.clone().requires_grad_()
    found = characteristic_distance(real, leaf, frequencies, 0.5, 0.5)
    found.backward()
    assert float(found.detach()) < 1e-5 and bool(leaf.grad.isfinite().all())


def between(job: Job, index: int) -> nn.Module:
    random = streams.generator(*job.stream, index, "teacher")
    member = int(torch.randint(4, (), generator=random))
    share = float(torch.rand((), generator=random))
    start, end = job.teachers.trajectories[member // 2][member % 2][[0, -1]]
    net = job.teachers.spec.build()
    nn.utils.vector_to_parameters(share * start + (1 - share) * end, net.parameters())
    return net


def loss(job: Job, images: Tensor, frequencies: Tensor) -> Tensor:
    """300 times the distance, summed over classes, by complex numbers."""
    net, real, total = between(job, 0), RealClasses(job), torch.zeros(())
    for c in range(10):
        theirs, mine = real.draw(c, 9, *job.stream, 0), images[2 * c : 2 * c + 2]
        sets = [F.normalize(net.embed(one), dim=1) for one in (theirs, mine)]
        angles = [one @ frequencies.T for one in sets]
        a, b = (torch.polar(torch.ones_like(one), one).mean(0) for one in angles)
        total = total + 300 * ((a - b).abs() / 2**0.5).mean()
    return total


def noise(job: Job, size: int) -> Tensor:
    return torch.randn(K, size, generator=streams.generator(*job.stream, 0, "frequencies"))


def test_images_descend_the_distance_at_random_frequencies(job):
    method = ncfm(optimizer="sgd", lr_images=0.1)
    state = method.start(job)
    before = state["images"].clone()
    figures = method.round(state, 0)
    leaf = before.clone().requires_grad_()
    total = loss(job, leaf, noise(job, method.size))
    gradient = torch.autograd.grad(total, leaf)[0]
    scale = float(gradient.abs().max())
    moved = (before - state["images"]) / 0.1
    torch.testing.assert_close(moved, gradient, rtol=1e-2, atol=1e-3 * scale)
    assert figures["distance"] == pytest.approx(float(total.detach()), rel=1e-3)
    assert "lr_sampler" not in figures


def test_adam_moves_each_pixel_by_its_rate(job):
    method = ncfm(lr_images=0.03)
    state = method.start(job)
    before = state["images"].clone()
    method.round(state, 0)
    moved = (before - state["images"]).abs()
    assert float(moved.max()) == pytest.approx(0.03, rel=1e-3)
    assert float((moved > 0.029).float().mean()) > 0.9


def test_images_descend_what_the_sampler_ascends(job):
    method = ncfm(sampler=True, optimizer="sgd", lr_images=0.1, lr_sampler=0.2)
    state = method.start(job)
    images, vector = state["images"].clone(), state["sampler"].clone()
    figures = method.round(state, 0)
    assert figures["lr_sampler"] == 0.2
    net = FlatNet(sampler(method.size))
    net.load(vector)
    leaf = images.clone().requires_grad_()
    total = loss(job, leaf, net(noise(job, method.size)))
    of_images, of_sampler = (
        torch.autograd.grad(total, leaf, retain_graph=True)[0],
        net.gradient(total),
    )
    descended, ascended = (images - state["images"]) / 0.1, (state["sampler"] - vector) / 0.2
    for found, gradient in ((descended, of_images), (ascended, of_sampler)):
        scale = float(gradient.abs().max())
        assert scale > 0
        torch.testing.assert_close(found, gradient, rtol=2e-2, atol=2e-3 * scale)


def test_each_side_moves_the_distance_its_way(job):
    method = ncfm(sampler=True, optimizer="sgd", lr_images=1e-2, lr_sampler=1e-4)
    state = method.start(job)
    before = dict(state)
    method.round(state, 0)

    def value(images: Tensor, vector: Tensor) -> float:
        net = FlatNet(sampler(method.size))
        net.load(vector)
        with torch.no_grad():
            return float(loss(job, images, net(noise(job, method.size))))

    start = value(before["images"], before["sampler"])
    assert value(state["images"], before["sampler"]) < start
    assert value(before["images"], state["sampler"]) > start


def test_the_sampler_gives_as_many_different_frequencies_as_asked_for(job):
    method = ncfm(sampler=True)
    state = method.start(job)
    method.sampler.load(state["sampler"])
    found = method.sampler(noise(job, method.size)).detach()
    assert found.shape == (K, method.size) and len(found.unique(dim=0)) == K
    assert float(found.abs().max()) <= 1
    assert not list(method.sampler.module.buffers())


def test_the_distance_falls(job):
    method = ncfm(batch_real=1000, lr_images=0.05)
    state, found = method.start(job), []
    for index in range(30):
        found.append(method.round(state, index)["distance"])
    assert np.mean(found[-5:]) < 0.85 * np.mean(found[:5]), found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"amplitude": 0, "phase": 0}, "phase: 0 with amplitude: 0 leaves nothing to match"),
        ({"sampler": True, "frequencies": 1}, "frequencies: the sampler needs at least 2"),
    ],
)
def test_settings_at_odds_are_refused_in_one_line(changed, message):
    with pytest.raises(ConfigError, match=rf"^methods\.ncfm\.{message}$"):
        ncfm(**changed)
