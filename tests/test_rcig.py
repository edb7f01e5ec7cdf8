"""RCIG: the linearised network, its implicit gradient, its pool, and what it refuses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm_core import distilled, methods
from apm_core.data.examples import Examples
from apm_core.errors import ConfigError
from apm_core.methods.base import Job
from apm_core.methods.kernel import network_pool
from apm_core.methods.kernel import rcig as module
from apm_core.methods.kernel.frepo import FRePo
from apm_core.methods.kernel.implicit import (
    Descent,
    InnerProblem,
    Outcome,
    Tangent,
    WithFeatures,
    regress,
)
from apm_core.methods.kernel.rcig import RCIG, capped, largest_rate, smoothed
from apm_core.methods.movers import State
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime.run import Run
from apm_core.settings.method import methods as settings_by_name
from apm_core.settings.stages import DistillSettings, MergeSettings
from apm_core.settings.training import Network
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge
from apm_core.training import optimizers
from apm_core.training.recipe import Recipe

RECIPE = Recipe(passes=1, lr=0.01, loss="half_mse", augment="crop_scale")
OPTIONS = {
    "lr_images": 3e-3,
    "lr_temperature": 3e-2,
    "batch_real": 50,
    "ridge": 5e-3,
    "flip": False,
    "inner_steps": 4,
    "softplus": 60.0,
    "networks": 3,
    "lifetime": 30,
    "lr_network": 1e-3,
    "average": 0.9,
}
TINY = Spec("convnet", Shape(1, 4, 3), width=2, depth=1)
LAM = 0.07
RIDGE = "methods.rcig.ridge"


def rcig(recipe: Recipe = RECIPE, **changed: object) -> RCIG:
    settings = settings_by_name()["rcig"].changed({**OPTIONS, **changed})
    return RCIG(settings, name="rcig", recipe=recipe)


def frepo() -> FRePo:
    options = {"lr_images": 0.01, "batch_real": 50, "ridge": 1e-6, "flip": False}
    options |= {"networks": 1, "lifetime": 4, "lr_network": 1e-3}
    settings = settings_by_name()["frepo"].changed(options)
    return FRePo(settings, name="frepo", recipe=RECIPE)


@pytest.fixture
def job(digits, cpu) -> Job:
    spec = Spec("convnet", digits.shape, width=4, depth=1)
    return Job(digits, None, cpu, ipc=1, shard=0, rounds=8, seed=7, network=spec)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def tiny_net(sharpness: float | None = 3.0) -> FlatNet:
    """A linearisable network in float64, with a kernel that is not at its start."""
    built = WithFeatures(smoothed(TINY.build(), sharpness)).double()
    net = FlatNet(built)
    net.load(0.7 * random(net.size, seed=9))
    return net


def parts(net: FlatNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D) and the dense Jacobian (N, C, P) without the kernel of the head."""
    jacobian = torch.autograd.functional.jacobian(
        lambda theta: net.at(theta, images)[1], net.vector, create_graph=images.requires_grad
    )
    kernel = net.module.network.classifier.weight.numel()
    bias = net.module.network.classifier.bias.numel()
    free = torch.ones(net.size, dtype=torch.float64)
    free[net.size - bias - kernel : net.size - bias] = 0  # the last parameters are the head's
    return net.at(net.vector, images)[0], jacobian * free


def papers_loss(net: FlatNet, images: Tensor, targets: Tensor, phi: Tensor) -> Tensor:
    """The inner problem term by term."""
    features, jacobian = parts(net, images)
    kernel = features @ features.T
    rest = targets - jacobian @ phi
    solved = torch.linalg.solve(kernel + LAM * identity(len(kernel)), rest)
    fit = 0.5 * (rest - kernel @ solved).square().sum()
    return fit + 0.5 * LAM * ((solved.T @ kernel @ solved).trace() + phi.square().sum())


def test_the_jacobian_products_equal_the_dense_ones():
    net, images = tiny_net(), random(5, 1, 4, 4)
    view = Tangent(net, images)
    features, jacobian = parts(net, images)
    phi, v = random(net.size, seed=1), random(5, 3, seed=2)
    torch.testing.assert_close(view.features, features)
    torch.testing.assert_close(view.push(phi), jacobian @ phi)
    torch.testing.assert_close(view.pull(v), torch.einsum("ncp,nc->p", jacobian, v))


def test_products_are_differentiable_in_the_images_and_phi():
    net = tiny_net()
    leaves = random(2, 1, 4, 4).requires_grad_(), random(net.size, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, phi: Tangent(net, x).push(phi), leaves)


def test_the_inner_loss_is_that_of_the_paper():
    net, images, targets = tiny_net(), random(5, 1, 4, 4), random(5, 3, seed=1)
    phi = random(net.size, seed=2).requires_grad_()
    q = random(net.size, seed=3)
    expected = papers_loss(net, images, targets, phi) / LAM
    gradient = torch.autograd.grad(expected, phi, create_graph=True)[0]
    curvature = torch.autograd.grad(gradient @ q, phi)[0]
    inner = InnerProblem(Tangent(net, images), targets, LAM, RIDGE)
    loss, slope = inner.slope(phi)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(slope, gradient)
    torch.testing.assert_close(inner.curvature(q), curvature)


def exact(net: FlatNet, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """phi (P,) of least inner loss and the Hessian (P, P), in closed form."""
    features, jacobian = parts(net, images)
    kernel = features @ features.T + LAM * identity(len(features))
    flat = jacobian.flatten(0, 1)  # (N * C, P)
    inverse = torch.linalg.inv(torch.kron(kernel, identity(jacobian.shape[1])))
    hessian = identity(flat.shape[1]) + flat.T @ inverse @ flat
    return torch.linalg.solve(hessian, flat.T @ inverse @ targets.flatten()), hessian


def test_adam_reaches_the_closed_forms():
    net, images, targets = tiny_net(), random(3, 1, 4, 4), random(3, 3, seed=1)
    phi, hessian = exact(net, images, targets)
    inner = InnerProblem(Tangent(net, images), targets, LAM, RIDGE)
    assert float(inner.slope(phi)[1].norm()) < 1e-10
    # in units of the parameters, the gradient's size does not matter
    g = 1e-6 * random(net.size, seed=4) * inner.view.free
    for found, expected in (
        (inner.train(6000, 2e-3).solution, phi),
        (inner.divide(g, 6000, 1e-3).solution, torch.linalg.solve(hessian, g)),
    ):
        assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize(
    ("losses", "outcome"),
    [
        ([3.0, 2.0, 1.0], Outcome.FELL),
        ([3.0, 1.0, 2.0], Outcome.BETWEEN),
        ([3.0, 4.0, 2.0], Outcome.BETWEEN),
        ([3.0, 2.0, 2.0], Outcome.BETWEEN),
        ([3.0, 1.0, 3.0], Outcome.BETWEEN),
        ([3.0, 2.0, 4.0], Outcome.DIVERGED),
        ([3.0, 2.0, math.nan], Outcome.DIVERGED),
        ([3.0, 2.0, math.inf], Outcome.DIVERGED),
    ],
)
def test_a_run_fell_throughout_or_ended_above_its_start_or_neither(losses, outcome):
    net = tiny_net()
    inner, left = (
        InnerProblem(Tangent(net, random(3, 1, 4, 4)), random(3, 3), LAM, RIDGE),
        iter(losses),
    )
    found = inner._adam(2, 0.1, lambda at: (torch.tensor(next(left)), torch.ones_like(at)))
    assert found.outcome is outcome


def test_the_rate_of_a_run_decides_how_it_goes():
    net, images, targets = tiny_net(), random(3, 1, 4, 4), random(3, 3, seed=1)
    inner = InnerProblem(Tangent(net, images), targets, LAM, RIDGE)
    start = float(inner.slope(torch.zeros_like(net.vector))[0])
    outcomes = {1e-4: Outcome.FELL, 0.5: Outcome.BETWEEN, 3.0: Outcome.DIVERGED}
    for rate, outcome in outcomes.items():
        run = inner.train(10, rate)
        assert run.outcome is outcome
        assert (float(inner.slope(run.solution)[0]) > start) is (outcome is Outcome.DIVERGED)


def objective(net: FlatNet, leaves: tuple[Tensor, ...], real: Examples) -> Tensor:
    """The outer loss with the inner problem solved, by the kernel of features and Jacobian."""
    images, targets, temperature = leaves
    features, jacobian = parts(net, images)
    seen, theirs = parts(net, real.images)
    n, c = targets.shape
    kernel = torch.kron(features @ features.T, identity(c))
    kernel = kernel + jacobian.flatten(0, 1) @ jacobian.flatten(0, 1).T
    across = torch.kron(seen @ features.T, identity(c))
    across = across + theirs.flatten(0, 1) @ jacobian.flatten(0, 1).T
    solved = torch.linalg.solve(kernel + LAM * identity(n * c), targets.flatten())
    predicted = (across @ solved).view(-1, c) * temperature.exp()
    best = targets.topk(2, dim=1).values
    margins = (best[:, 0] - best[:, 1]).clamp(max=1 / (2 * c))
    return F.cross_entropy(predicted, real.targets) - margins.mean()


@pytest.mark.parametrize("segment", [None, 2])
def test_with_exact_inner_solutions_the_gradient_is_that_of_finite_differences(
    digits, cpu, monkeypatch, segment
):
    """The whole bilevel objective against direct and implicit gradient together."""
    net = tiny_net()
    given = Job(digits, None, cpu, ipc=1, shard=0, rounds=8, seed=7, network=TINY, segment=segment)
    method = rcig(ridge=LAM / 4, batch_real=7)
    method.attach(given)
    method.net = net
    method.real = Examples(random(7, 1, 4, 4, seed=5), torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    state = {"images": random(4, 1, 4, 4), "targets": random(4, 3, seed=1)}
    state |= {"temperature": torch.tensor(0.3, dtype=torch.float64)}
    state |= {"rate_inner": 0.1, "rate_hessian": 0.1}
    phi, hessian = exact(net, state["images"], state["targets"])

    def divided(inner: InnerProblem, g: Tensor, steps: int, rate: float) -> Descent:
        return Descent(torch.linalg.solve(hessian, g), Outcome.FELL)

    monkeypatch.setattr(InnerProblem, "train", lambda *_: Descent(phi.clone(), Outcome.FELL))
    monkeypatch.setattr(InnerProblem, "divide", divided)
    monkeypatch.setattr(module, "capped", lambda tensor, _: tensor)
    loss, gradients, _ = method._meta_gradient(state, 0)

    leaves = tuple(state[name] for name in ("images", "targets", "temperature"))
    assert float(loss) == pytest.approx(float(objective(net, leaves, method.real)), rel=1e-9)
    for number, gradient in enumerate(gradients):
        flat = torch.zeros_like(gradient).flatten()
        for at in range(len(flat)):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [leaf.clone() for leaf in leaves]
                moved[number].view(-1)[at] += step
                ends.append(float(objective(net, tuple(moved), method.real)))
            flat[at] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(gradient.flatten(), flat, rtol=1e-5, atol=1e-8)


def test_the_head_is_solved_for_what_the_body_leaves():
    net, images, targets = tiny_net(None), random(4, 1, 4, 4), random(4, 3, seed=1)
    phi = random(net.size, seed=2)
    features, jacobian = (t.detach().numpy() for t in parts(net, images))
    rest = targets.numpy() - jacobian @ phi.numpy()
    expected = np.linalg.inv(features @ features.T + LAM * np.eye(4)) @ rest
    solved, head = regress(Tangent(net, images), phi, targets, LAM, RIDGE)
    np.testing.assert_allclose(solved.detach().numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(head.detach().numpy(), features.T @ expected, rtol=1e-9)


def test_a_singular_head_is_one_line_that_names_the_setting():
    net = tiny_net(None)
    net.vector.zero_()  # no features at all
    message = (
        r"^methods\.rcig\.ridge: the kernel matrix of 4 distilled images is singular with .* 0:"
    )
    with pytest.raises(ConfigError, match=message):
        InnerProblem(Tangent(net, random(4, 1, 4, 4)), random(4, 3), 0.0, RIDGE)


def test_the_implicit_gradient_is_shortened_to_the_direct_one():
    tensor = random(3, 4)
    assert float(capped(tensor, 0.5).norm()) == pytest.approx(0.5)
    torch.testing.assert_close(capped(tensor, 0.5) / 0.5, tensor / tensor.norm())
    assert capped(tensor, 1e3) is tensor


def test_relus_become_sharp_softplus_functions():
    x, net = random(20, 1, 4, 4).float(), TINY.build()
    plain = net(x)
    smooth = smoothed(net, 60.0)
    assert not any(isinstance(m, nn.ReLU) for m in smooth.modules())
    torch.testing.assert_close(smooth(x), plain, rtol=0, atol=0.02)
    y = torch.linspace(-0.1, 0.1, 5)
    activation = next(m for m in smooth.modules() if isinstance(m, nn.Softplus))
    torch.testing.assert_close(activation(y), (60 * y).exp().log1p() / 60)


@pytest.mark.parametrize("outcome", [Outcome.BETWEEN, Outcome.DIVERGED])
def test_the_rate_is_the_largest_that_falls_less_a_safety(outcome):
    tried = []

    def run(rate: float) -> Descent:
        tried.append(rate)
        return Descent(torch.zeros(1), Outcome.FELL if rate < 1e-3 else outcome)

    assert 0.7e-3 <= largest_rate(run, 1e-5) < 0.7e-3 * 1.2
    assert len(tried) <= 5 + 8  # of 1.2 alone it would take 26
    assert largest_rate(run, 0.1) == pytest.approx(0.07)
    assert largest_rate(lambda _: Descent(torch.zeros(1), Outcome.FELL), 1e-5) < 0.7 * 1.2


@pytest.mark.parametrize(
    ("fell", "diverged", "factor"),
    [
        (50, 0, 1.05),
        (35, 14, 1.05),
        (34, 0, 1.0),  # neither enough fell nor did too many diverge
        (0, 14, 1.0),
        (0, 15, 0.9),
        (35, 15, 0.9),
    ],
)
def test_the_inner_rate_follows_how_its_runs_fare(job, fell, diverged, factor):
    method = rcig()
    method.attach(job)
    state: State = {"rate_inner": 1.0, "fell": 0, "diverged": 0}
    outcomes = [Outcome.FELL] * fell + [Outcome.DIVERGED] * diverged
    outcomes += [Outcome.BETWEEN] * (50 - len(outcomes))
    for index, outcome in enumerate(outcomes):
        assert state["rate_inner"] == 1.0
        method._adapt(state, index, outcome)
    assert state == {"rate_inner": factor, "fell": 0, "diverged": 0}


def test_a_round_moves_what_is_learned_by_adabelief_and_averages_it(job):
    method = rcig()
    state = method.start(job)
    before = {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)}
    figures = method.round(state, 0)
    for name, rate in (("images", 3e-3), ("targets", 3e-3), ("temperature", 3e-2)):
        assert figures[f"lr_{name}"] == rate
        moments = optimizers.Moments.at_rest(before[name])
        expected = before[name].clone()
        # the first moment after one step is a tenth of the gradient
        optimizers.adabelief_(expected, 10 * state[f"{name}_first"], moments, rate)
        torch.testing.assert_close(state[name], expected, rtol=1e-4, atol=1e-5)
    first = state["images"].clone()
    torch.testing.assert_close(method.finish(state).images, first)  # without the pull of zero
    method.round(state, 1)
    expected = (0.9 * 0.1 * first + 0.1 * state["images"]) / (1 - 0.9**2)
    torch.testing.assert_close(method.finish(state).images, expected)
    labels = (0.9 * 0.1 * before["targets"] + 0.1 * state["targets"]) / (1 - 0.9**2)
    assert torch.allclose(method.finish(state).targets, labels, atol=0.01)


def test_without_rounds_the_start_is_the_result(job, digits):
    method = rcig()
    shard = method.finish(method.start(job))
    assert torch.equal(shard.images, digits.shard(1, 0)[0])
    torch.testing.assert_close(shard.targets, torch.eye(10)[shard.classes] - 0.1)


def test_networks_learn_for_some_steps_and_are_replaced_at_the_end_of_their_life(job):
    method = rcig(networks=1, lifetime=12)
    state, steps, replaced = method.start(job), [], 0
    for index in range(8):
        before = int(state["ages"][0])
        method.round(state, index)
        fresh = job.spec.fresh(*job.stream, index, "fresh")
        if torch.equal(state["vectors"][0], fresh):
            replaced += 1
            assert int(state["ages"][0]) == 0 and float(state["vectors_count"][0]) == 0
        else:
            steps.append(int(state["ages"][0]) - before)
            assert int(state["ages"][0]) == float(state["vectors_count"][0]) < 12
    assert replaced >= 2 and steps and all(1 <= n <= 15 for n in steps)


def test_a_gradient_that_is_not_finite_is_shown_and_spoils_nothing(job):
    method = rcig()
    state = method.start(job)
    state["vectors"][:] = 1e30
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
    figures = method.round(state, 0)
    assert not all(map(math.isfinite, figures.values()))
    for name, value in before.items():
        same = (
            torch.equal(state[name], value) if isinstance(value, Tensor) else value == state[name]
        )
        assert same, name


@pytest.mark.parametrize("method", ["frepo", "rcig"])
def test_a_round_that_runs_out_of_memory_can_be_done_again(job, method, monkeypatch):
    """Whatever fails, be it the last step of the network's training, the state has not moved."""
    made = rcig() if method == "rcig" else frepo()
    state, train, calls = made.start(job), network_pool.train, []

    def exhausted(*arguments: object) -> None:
        train(*arguments)
        calls.append(1)
        if len(calls) == (3 if method == "rcig" else 1):
            raise torch.OutOfMemoryError

    monkeypatch.setattr(network_pool, "train", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        for _ in range(9):
            snapshot = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
            made.round(state, 0)
    assert snapshot.keys() == state.keys()
    for name, value in snapshot.items():
        same = (
            torch.equal(state[name], value) if isinstance(value, Tensor) else value == state[name]
        )
        assert same, name


def test_flips_count_for_the_regression_but_not_for_its_ridge(job):
    method = rcig(flip=True)
    state = method.start(job)
    images, targets = method._mirrored(state["images"], state["targets"])
    assert torch.equal(images[10:], state["images"][..., range(7, -1, -1)])
    assert torch.equal(targets, state["targets"].repeat(2, 1))
    assert method._lam(state) == pytest.approx(0.05)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("segment", [None, 3])
def test_a_network_learns_from_the_images_and_with_flips_from_mirrored_ones_too(
    digits, cpu, monkeypatch, flip, segment
):
    given = Job(digits, None, cpu, ipc=1, shard=0, rounds=8, seed=7, network=TINY, segment=segment)
    method = rcig(flip=flip, networks=1)
    method.attach(given)
    method.net = net = tiny_net()
    before = net.vector.detach().clone()
    zeros = torch.zeros(1, net.size, dtype=torch.float64)
    state = {"vectors": before[None].clone(), "buffers": torch.zeros(1, 0)}
    state |= {"vectors_first": zeros.clone(), "vectors_second": zeros.clone()}
    state |= {"vectors_count": torch.zeros(1, dtype=torch.float64)}
    state |= {"ages": torch.zeros(1, dtype=torch.int64)}
    images, targets = random(4, 1, 4, 4), random(4, 3, seed=1)
    monkeypatch.setattr(module, "NETWORK_STEPS", 1)
    method._train({**state, "images": images, "targets": targets}, 0, 0)

    theta = before.clone().requires_grad_()
    errors = []
    for image, target in zip(images, targets, strict=True):
        mirrored = torch.stack([image[..., column] for column in (3, 2, 1, 0)], dim=-1)
        for seen in (image, mirrored) if flip else (image,):
            errors.append(0.5 * (net.at(theta, seen[None])[1][0] - target).square().sum())
    gradient = torch.autograd.grad(sum(errors) / len(errors), theta)[0]
    torch.testing.assert_close(state["vectors_first"][0], 0.1 * gradient)
    expected = before - method.settings.lr_network * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(state["vectors"][0], expected)


def test_the_error_falls(job):
    method, found = rcig(batch_real=500, lr_images=0.03, lr_temperature=0.1), []
    state = method.start(job)
    for index in range(12):
        found.append(method.round(state, index)["loss"])
    assert found[-1] < 0.8 * found[0]


def test_what_cannot_be_distilled_is_refused(digits, cpu):
    with pytest.raises(ConfigError, match=r"methods\.rcig\.recipe\.loss: ce does not go with"):
        rcig(recipe=Recipe(passes=1, lr=0.1, loss="ce"))
    spec = Spec("alexnet", digits.shape)
    given = Job(digits, None, cpu, ipc=1, shard=0, rounds=8, seed=7, network=spec)
    with pytest.raises(ConfigError, match=r"methods\.rcig\.network: alexnet has no embedding"):
        rcig().start(given)


def test_shards_are_resumed_and_merged_with_their_labels(
    digits, recipe_settings, cpu, tmp_path, resumed
):
    recipe = recipe_settings.changed({"loss": "half_mse", "optimizer": "adam"})
    settings = DistillSettings(
        method="rcig",
        options={**OPTIONS, "lifetime": 5},
        ipc=1,
        rounds=6,
        recipe=recipe,
        network=Network(width=4, depth=1),
        precision="float32",
    )
    assert isinstance(methods.build(DistillSettings.read(settings.text)), RCIG)
    file = tmp_path / "0"
    unbroken = distill_shard(file, settings, 0, digits, None, Run(cpu))

    again = resumed(
        lambda *given: distill_shard(tmp_path / "b", settings, 0, digits, None, Run(cpu, *given)),
        after=4,
    )
    assert again.content == unbroken.content

    merged = tmp_path / "set.zarr.zip"
    merge_settings = MergeSettings(entry="rcig", labels="own", recipe=recipe)
    merge(merged, merge_settings, [file], digits, None, cpu)
    found = distilled.load(merged)
    assert found.recipe.optimizer == "adam" and found.targets.shape == (10, 10)
