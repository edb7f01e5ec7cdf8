"""The step-by-step gradient of a trajectory against full unrolling and finite differences."""

from dataclasses import astuple, replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from apm_core.methods.matching.trajectory import Match, Step, Trajectory
from apm_core.nets.architectures.convnet import ConvNet
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.training import augment
from apm_core.training.losses import loss_of

SHAPE = Shape(channels=2, resolution=8, classes=3)
COUNT, BATCH, STEPS = 6, 4, 5
CPU = Compute(torch.device("cpu"))
STRATEGY = "color_crop_cutout_flip_scale_rotate"


@pytest.fixture
def setting():
    """Network, start, target, steps, images, labels and rate, all in float64."""
    with streams.seeded("trajectory"):
        net = FlatNet(ConvNet(SHAPE, width=3, depth=1).double())
        start, target = torch.randn(2, net.size, dtype=torch.float64) * 0.3
        images = torch.randn(COUNT, 2, 8, 8, dtype=torch.float64)
        logits = torch.randn(COUNT, 3, dtype=torch.float64)
    random, steps = streams.generator("steps"), []
    for _ in range(STEPS):
        index = torch.randperm(COUNT, generator=random)[:BATCH]
        drawn = augment.draw(STRATEGY, BATCH, random)
        steps.append(Step(index, augment.Draw(drawn.group, drawn.uniform.double())))
    return net, start, target, steps, images, logits, torch.tensor(0.3, dtype=torch.float64)


def unrolled(net, start, target, steps, images, targets, rate, loss, skip=0) -> tuple:
    """The loss with the graph of all steps, and its gradients in images, labels and rate."""
    leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in (images, targets, rate)]
    theta = start.clone().requires_grad_()
    for step in steps:
        seen = augment.augment(leaves[0][step.index], step.drawn)
        value = loss(net.at(theta, seen), leaves[1][step.index])
        theta = theta - leaves[2] * torch.autograd.grad(value, theta, create_graph=True)[0]
    result = ((theta - target)[skip:] ** 2).sum() / ((start - target)[skip:] ** 2).sum()
    return result.detach(), torch.autograd.grad(
        result, [leaf for leaf in leaves if leaf.requires_grad]
    )


def soft(setting, compute=CPU, **options) -> Match:
    net, *given = setting
    loss = loss_of("soft_ce")
    return Trajectory(net, loss, compute, learn_targets=True, **options).match(*given)


def test_it_equals_full_unrolling(setting):
    value, (images, targets, rate) = unrolled(*setting, loss_of("soft_ce"))
    found = soft(setting)
    for mine, theirs in (
        (found.loss, value),
        (found.images, images),
        (found.targets, targets),
        (found.rate, rate),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    assert float(images.abs().max()) > 1e-4


def test_the_distance_leaves_out_the_first_parameters(setting):
    net, *given = setting
    value, gradients = unrolled(*setting, loss_of("soft_ce"), skip=50)
    one = Trajectory(net, loss_of("soft_ce"), CPU, learn_targets=True)
    found = one.match(*given, 50)
    expected = (value, *gradients)
    for mine, theirs in zip(astuple(found)[:4], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    assert net.size > 50 and float(found.loss) != float(one.match(*given).loss)


def test_class_labels_are_not_differentiated(setting):
    net, start, target, steps, images, logits, rate = setting
    given, loss = (start, target, steps, images, logits.argmax(1), rate), loss_of("ce")
    value, (by_images, by_rate) = unrolled(net, *given, loss)
    found = Trajectory(net, loss, CPU).match(*given)
    assert found.targets is None
    torch.testing.assert_close(found.loss, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.images, by_images, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.rate, by_rate, rtol=1e-12, atol=0)


def test_it_equals_finite_differences(setting):
    net, start, target, steps, images, logits, rate = setting
    found, training = soft(setting), Trajectory(net, loss_of("soft_ce"), CPU)

    def value(images: Tensor, logits: Tensor, rate: Tensor) -> float:
        return float(training.match(start, target, steps, images, logits, rate).loss)

    small, at = 1e-6, (2, 1, 3, 4)
    bump = torch.zeros_like(images)
    bump[at] = small
    slope = (value(images + bump, logits, rate) - value(images - bump, logits, rate)) / (2 * small)
    assert slope == pytest.approx(float(found.images[at]), rel=1e-5, abs=1e-9)
    bump = torch.zeros_like(logits)
    bump[1, 2] = small
    slope = (value(images, logits + bump, rate) - value(images, logits - bump, rate)) / (2 * small)
    assert slope == pytest.approx(float(found.targets[1, 2]), rel=1e-5, abs=1e-9)
    slope = (value(images, logits, rate + small) - value(images, logits, rate - small)) / (
        2 * small
    )
    assert slope == pytest.approx(float(found.rate), rel=1e-5)


def test_the_approximation_is_that_of_tesla(setting):
    """The published form: w = rate (target - start) + rate^2 G, images get 2/Delta d(w.g_i)/dx."""
    net, start, target, steps, images, logits, rate = setting
    loss, theta, gradients, parts = loss_of("soft_ce"), start, [], []
    for step in steps:
        leaf = theta.clone().requires_grad_()
        seen = images[step.index].clone().requires_grad_()
        value = loss(net.at(leaf, augment.augment(seen, step.drawn)), logits[step.index])
        gradient = torch.autograd.grad(value, leaf, create_graph=True)[0]
        gradients.append(gradient)
        parts.append(seen)
        theta = theta - rate * gradient.detach()
    total = sum(g.detach() for g in gradients)
    delta = (start - target).square().sum()
    w = rate * (target - start) + rate**2 * total
    by_images = torch.zeros_like(images)
    for step, gradient, seen in zip(steps, gradients, parts, strict=True):
        by_images.index_add_(0, step.index, 2 / delta * torch.autograd.grad(w @ gradient, seen)[0])
    by_rate = -2 / delta * total @ (start - rate * total - target)
    found = soft(setting, exact=False)
    torch.testing.assert_close(found.images, by_images, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.rate, by_rate, rtol=1e-10, atol=0)
    assert not torch.allclose(found.images, soft(setting).images, rtol=1e-2)


def test_the_network_in_memory_is_left_alone(setting):
    net = setting[0]
    before = net.snapshot()
    soft(setting)
    assert torch.equal(net.vector, before)


def test_compiled_it_is_the_same(setting, ran):
    compiled = soft(setting, replace(CPU, compile="on", report=pytest.fail))
    assert ran == ["forward"] * 2 * STEPS  # a gradient and a product each
    plain = soft(setting)
    for mine, theirs in zip(astuple(compiled), astuple(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18", "vit", "frepo_conv"])
def test_other_networks_equal_full_unrolling(name):
    """Attention, dropout, batch norm."""
    spec = Spec(name, Shape(channels=1, resolution=32, classes=2))
    net, start = FlatNet(spec.build().double()), spec.fresh("start").double()
    random = streams.generator("images", name)
    images = torch.randn(4, 1, 32, 32, generator=random, dtype=torch.float64)
    logits = torch.randn(4, 2, generator=random, dtype=torch.float64)
    target = start + 1e-3 * torch.randn(net.size, generator=random, dtype=torch.float64)
    steps, rate = [Step(torch.arange(4))] * 2, torch.tensor(0.01, dtype=torch.float64)
    found = soft((net, start, target, steps, images, logits, rate))
    with sdpa_kernel(SDPBackend.MATH):
        value, gradients = unrolled(
            net, start, target, steps, images, logits, rate, loss_of("soft_ce")
        )
    expected = (value, *gradients)
    for mine, theirs in zip(astuple(found)[:4], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8 * float(theirs.norm()))
