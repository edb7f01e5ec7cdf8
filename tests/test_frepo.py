"""FRePo: its regression, its gradient, its pool, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apm_core import distilled, methods
from apm_core.errors import ConfigError, DivergenceError
from apm_core.methods.base import Job
from apm_core.methods.kernel import network_pool, ridge
from apm_core.methods.kernel.frepo import FRePo, centred, distillation_network
from apm_core.methods.movers import State
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime.run import Run
from apm_core.settings.method import methods as settings_by_name
from apm_core.settings.methods.frepo import FRePoSettings
from apm_core.settings.stages import DistillSettings, MergeSettings
from apm_core.settings.training import Network
from apm_core.stages.distill import distill, distill_shard
from apm_core.stages.merge import merge
from apm_core.training.recipe import Recipe

RECIPE = Recipe(passes=1, lr=0.01, loss="half_mse", augment="crop_scale")
OPTIONS = {
    "lr_images": 0.01,
    "batch_real": 50,
    "ridge": 1e-6,
    "flip": False,
    "networks": 3,
    "lifetime": 4,
    "lr_network": 1e-3,
}


def settings_of(**changed: object) -> FRePoSettings:
    return settings_by_name()["frepo"].changed({**OPTIONS, **changed})


def frepo(recipe: Recipe = RECIPE, **changed: object) -> FRePo:
    return FRePo(settings_of(**changed), name="frepo", recipe=recipe)


@pytest.fixture
def job(digits, cpu) -> Job:
    spec = Spec("convnet", digits.shape, width=6, depth=1)
    return Job(digits, None, cpu, ipc=2, shard=0, rounds=8, seed=7, network=spec)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def member_of(job: Job, method: FRePo, index: int) -> int:
    """The network of the pool that a round takes, found by what the round changes."""
    state = method.start(job)
    before = state["vectors"].clone()
    method.round(state, index)
    changed = (state["vectors"] != before).any(dim=1)
    assert int(changed.sum()) == 1
    return int(changed.nonzero())


def test_the_head_equals_the_regression_of_the_paper():
    features, targets, seen = random(6, 9), random(6, 4, seed=1), random(5, 9, seed=2)
    h, y, x = (t.numpy() for t in (features, targets, seen))
    kernel = h @ h.T
    jitter = 0.3 * np.trace(kernel) / 6
    expected = x @ h.T @ np.linalg.inv(kernel + jitter * np.eye(6)) @ y
    found = seen @ ridge.head(features, targets, 0.3, "key")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_without_a_ridge_the_labels_are_interpolated():
    features, targets = random(6, 9), random(6, 4, seed=1)
    found = features @ ridge.head(features, targets, 1e-12, "key")
    torch.testing.assert_close(found, targets, rtol=1e-8, atol=1e-8)


def test_duplicates_change_nothing_as_the_ridge_vanishes():
    features, targets, seen = random(6, 9), random(6, 4, seed=1), random(5, 9, seed=2)
    twice = torch.cat([features, features]), torch.cat([targets, targets])
    apart = []
    for relative in (1e-2, 1e-4, 1e-6):
        once = seen @ ridge.head(features, targets, relative, "key")
        apart.append(float((seen @ ridge.head(*twice, relative, "key") - once).abs().max()))
    # two copies halve the ridge, relative to the mean of the diagonal
    assert apart[0] > 1e-4 and apart[1] < 2e-2 * apart[0] and apart[2] < 2e-2 * apart[1]


def test_the_regression_and_the_margin_have_the_gradients_of_finite_differences():
    seen = random(5, 9, seed=2)

    def loss(features: Tensor, targets: Tensor) -> Tensor:
        predicted = seen @ ridge.head(features, targets, 0.05, "key")
        return predicted.square().sum() + ridge.margin(targets, 10.0)

    leaves = random(6, 9).requires_grad_(), random(6, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss, leaves)


def test_the_margin_counts_up_to_its_limit():
    targets = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.0, 0.15], [-0.1, -0.4, -0.3]])
    assert float(ridge.margin(targets, 1 / 3)) == pytest.approx(-(1 / 3 + 0.05 + 0.2) / 3)


def test_a_singular_kernel_is_one_line_that_names_the_setting():
    message = (
        r"^frepo\.ridge: the kernel matrix of 4 distilled images is singular with a ridge of 0"
    )
    with pytest.raises(
        ConfigError, match=message + r".*: raise frepo\.ridge, ten times at a time$"
    ):
        ridge.head(torch.zeros(4, 9), torch.zeros(4, 3), 1e-6, "frepo.ridge")


def test_features_that_are_not_finite_give_a_head_that_is_not():
    assert ridge.head(torch.full((4, 9), math.inf), torch.zeros(4, 3), 1e-6, "key").isnan().all()


def test_it_starts_from_real_images_and_scaled_centred_labels(job, digits):
    state = frepo().start(job)
    images, classes = digits.shard(2, 0)
    assert torch.equal(state["images"], images) and torch.equal(state["classes"], classes)
    one_hot = torch.eye(10)[classes]
    torch.testing.assert_close(state["targets"], one_hot - 0.1)  # sqrt(10 / 10) is 1
    torch.testing.assert_close(centred(torch.tensor([1]), 4), torch.eye(4)[[1]] - 0.25)


@pytest.mark.parametrize("flip", [False, True])
def test_a_round_follows_the_gradient_of_the_prediction_error(job, flip):
    method, index = frepo(flip=flip, ridge=1e-3), 2
    member = member_of(job, method, index)
    state = method.start(job)
    net = job.spec.build()
    nn.utils.vector_to_parameters(state["vectors"][member], net.parameters())
    images, targets = (state[name].clone().requires_grad_() for name in ("images", "targets"))
    support, labels = [images], [targets]
    if flip:
        support, labels = [images, images[..., range(7, -1, -1)]], [targets] * 2
    h, y = net.embed(torch.cat(support)), torch.cat(labels)
    kernel = h @ h.T
    jitter = 1e-3 * kernel.diagonal().mean() * torch.eye(len(h))
    found, wanted = method._real(*job.stream, index)
    predicted = net.embed(found) @ h.T @ torch.linalg.solve(kernel + jitter, y)
    best = targets.sort(dim=1, descending=True).values
    loss = 0.5 * ((predicted - wanted) ** 2).sum(1).mean()
    loss = loss - (best[:, 0] - best[:, 1]).clamp(max=0.1).mean()
    gradients = torch.autograd.grad(loss, (images, targets))
    figures = method.round(state, index)
    assert figures["loss"] == pytest.approx(float(loss.detach()), rel=1e-3)
    for name, gradient in zip(("images", "targets"), gradients, strict=True):
        # the first moment after one step is a tenth of the gradient
        scale = float(gradient.abs().max())
        moment = 10 * state[f"{name}_first"]
        torch.testing.assert_close(moment, gradient, rtol=1e-2, atol=2e-3 * scale)


def test_real_batches_are_drawn_without_replacement_and_labelled(job, digits, cpu):
    method, train = frepo(), digits.examples("train", cpu)
    method.attach(job)
    images, wanted = method._real(1)
    assert len(images.unique(dim=0)) == 50
    for image, target in list(zip(images, wanted, strict=True))[:5]:
        label = train.targets[(train.images == image).flatten(1).all(1)]
        assert torch.allclose(target, torch.eye(10)[label[0]] - 0.1)
    assert not torch.equal(images, method._real(2)[0])


def test_images_and_labels_move_by_a_share_of_their_norm_that_falls_to_a_tenth(job):
    for index, rate in ((0, 0.01), (4, 0.0055), (8, 0.001)):
        method = frepo()
        state = method.start(job)
        before = {name: state[name].clone() for name in ("images", "targets")}
        figures = method.round(state, index)
        assert figures["lr_images"] == figures["lr_targets"] == pytest.approx(rate)
        for name, tensor in before.items():
            moved = float((state[name] - tensor).norm() / tensor.norm())
            assert moved == pytest.approx(rate, rel=1e-4)


def test_segments_do_not_change_the_gradient(job):
    moments, networks = [], []
    for segment in (None, 3):
        method, state = frepo(flip=True), None
        state = method.start(Job(**{**vars(job), "segment": segment}))
        method.round(state, 0)
        moments.append(state["images_first"])
        networks.append(state["vectors_first"])
    assert networks[0].any()
    torch.testing.assert_close(*networks, rtol=1e-3, atol=1e-3 * float(networks[0].abs().max()))
    torch.testing.assert_close(*moments, rtol=1e-3, atol=1e-3 * float(moments[0].abs().max()))


def adam_step(job: Job, vector: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    net = job.spec.build()
    nn.utils.vector_to_parameters(vector.clone(), net.parameters())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    (0.5 * ((net(images) - targets) ** 2).sum(1).mean()).backward()
    optimizer.step()
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def test_a_network_learns_from_the_set_and_is_replaced_at_the_end_of_its_life(job):
    method = frepo(networks=1, lifetime=2)
    state = method.start(job)
    assert state["ages"].tolist() == [0]
    first, seen = state["vectors"][0].clone(), []
    for index in range(4):
        images = state["images"].clone()
        method.round(state, index)
        assert not torch.equal(state["images"], images)
        seen.append((state["ages"].tolist()[0], float(state["vectors_count"][0])))
        if index == 0:
            moved = state["vectors"][0] - first
            # on the images and labels as just moved
            expected = adam_step(job, first, state["images"], state["targets"]) - first
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.0), (0, 0.0)]
    assert torch.equal(state["vectors"][0], job.spec.fresh(*job.stream, 3, "fresh"))
    noise = slice(54, 60)  # biases before an instance norm have gradients of rounding alone
    moved[noise] = expected[noise] = 0
    torch.testing.assert_close(moved, expected, rtol=1e-2, atol=1e-6)
    assert not torch.equal(state["vectors"][0], first)


def test_the_pool_begins_at_staggered_ages_with_different_networks(job):
    state = frepo(networks=4, lifetime=100).start(job)
    assert state["ages"].tolist() == [0, 25, 50, 75]
    assert len(state["vectors"].unique(dim=0)) == 4
    assert {member_of(job, frepo(), index) for index in range(12)} == {0, 1, 2}


def test_batch_norm_of_frepos_own_network_lives_in_the_pool(digits, cpu):
    spec = Spec("frepo_conv", digits.shape)
    given = Job(digits, None, cpu, ipc=1, shard=0, rounds=8, seed=7, network=spec)
    state = frepo().start(given)
    assert state["buffers"].shape == (3, 0)  # one block at 8 px has none
    deep = FlatNet(distillation_network(Spec("frepo_conv", Shape(1, 16, 10))))
    state = network_pool.fresh_pool(
        lambda: distillation_network(Spec("frepo_conv", Shape(1, 16, 10))), 2
    )
    assert state["buffers"].tolist() == [[0.0] * 128 + [1.0] * 128] * 2
    kept = state["buffers"][0].clone()
    network_pool.load(state, 1, deep)
    images, targets = random(4, 1, 16, 16).float(), random(4, 10).float()
    moments = network_pool.member_moments(state, 1)
    network_pool.train(deep, deep, images, targets, moments, 1e-3, given)
    with_one_step = deep(images)
    network_pool.store(state, 1, deep, moments)
    assert torch.equal(state["buffers"][0], kept) and not torch.equal(state["buffers"][1], kept)
    network_pool.load(state, 0, deep)
    assert not torch.allclose(deep(images), with_one_step, rtol=1e-2)
    network_pool.load(state, 1, deep)
    assert torch.equal(deep(images), with_one_step)  # in evaluation mode: nothing else is kept


def test_features_of_an_image_do_not_depend_on_the_others(job):
    method = frepo()
    method.attach(job)
    method.net = FlatNet(distillation_network(Spec("frepo_conv", Shape(1, 16, 10))).train())
    images = random(4, 1, 16, 16).float()
    together = method._embed(images)
    torch.testing.assert_close(method._embed(images[:1]), together[:1], rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_finite_is_shown_and_spoils_nothing(job):
    method = frepo()
    state = method.start(job)
    state["vectors"][:] = 1e30
    before = {k: v.clone() for k, v in state.items()}
    figures = method.round(state, 0)
    assert not all(map(math.isfinite, figures.values()))
    assert all(torch.equal(state[name], value) for name, value in before.items())

    class Spoiled(FRePo):
        def init(self, job: Job) -> State:
            state = super().init(job)
            state["targets"] += math.inf
            return state

    with pytest.raises(DivergenceError, match=r"in round 0 \(lr_images 0\.01, lr_targets 0\.01\)"):
        distill(Spoiled(settings_of(), name="frepo", recipe=RECIPE), job, rounds=1)


def test_the_error_falls(job):
    method, found = frepo(lr_images=0.03, batch_real=1000, ridge=1e-4), []
    state = method.start(job)
    for index in range(9):
        found.append(method.round(state, index)["loss"])
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("loss", ["ce", "l1", "soft_ce"])
def test_other_losses_are_refused(loss):
    message = (
        rf"methods\.frepo\.recipe\.loss: {loss} does not go with centred labels: set it to half"
    )
    with pytest.raises(ConfigError, match=message):
        frepo(recipe=Recipe(passes=1, lr=0.1, loss=loss))


def test_an_architecture_without_embedding_is_refused(digits, cpu):
    spec = Spec("alexnet", digits.shape)
    given = Job(digits, None, cpu, ipc=1, shard=0, rounds=8, seed=7, network=spec)
    with pytest.raises(ConfigError, match=r"methods\.frepo\.network: alexnet has no embedding"):
        frepo().start(given)


def test_shards_are_resumed_and_merged_with_their_labels(
    digits, recipe_settings, cpu, tmp_path, resumed
):
    recipe = recipe_settings.changed({"loss": "half_mse", "optimizer": "adam"})
    settings = DistillSettings(
        method="frepo",
        options={**OPTIONS, "lifetime": 1},
        ipc=1,
        rounds=6,
        recipe=recipe,
        network=Network(width=4, depth=1),
        precision="float32",
    )
    assert isinstance(methods.build(DistillSettings.read(settings.text)), FRePo)
    file = tmp_path / "0"
    unbroken = distill_shard(file, settings, 0, digits, None, Run(cpu))

    again = resumed(
        lambda *given: distill_shard(tmp_path / "b", settings, 0, digits, None, Run(cpu, *given)),
        after=4,
    )
    assert again.content == unbroken.content

    merged = tmp_path / "set.zarr.zip"
    merge_settings = MergeSettings(entry="frepo", labels="own", recipe=recipe)
    merge(merged, merge_settings, [file], digits, None, cpu)
    found = distilled.load(merged)
    assert found.recipe.optimizer == "adam" and found.recipe.loss == "half_mse"
    assert found.targets.shape == (10, 10)
    assert not torch.allclose(found.targets, torch.eye(10)[found.classes] - 0.1, atol=1e-3)
