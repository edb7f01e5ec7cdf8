"""DM, DC and DSA against their formulas, written out with other means."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm_core.errors import ConfigError
from apm_core.methods import build
from apm_core.methods.base import Job
from apm_core.methods.dc import DC, matching_distance
from apm_core.methods.dm import DM
from apm_core.methods.movers import State
from apm_core.methods.shared.real_classes import RealClasses, siamese
from apm_core.nets.spec import Spec
from apm_core.runtime.run import Run
from apm_core.settings.method import methods
from apm_core.settings.stages import DistillSettings
from apm_core.settings.training import Network, RecipeSettings
from apm_core.stages.distill import distill_shard
from apm_core.training import augment
from apm_core.training.recipe import Recipe

STRATEGY = "crop_scale"
RECIPE = Recipe(passes=1, lr=0.01, loss="ce", augment=STRATEGY)


@pytest.fixture
def job(digits, cpu) -> Job:
    spec = Spec("convnet", digits.shape, width=6, depth=1)
    return Job(digits, None, cpu, ipc=2, shard=1, rounds=5, seed=7, network=spec)


def dm(recipe: Recipe = RECIPE, **changed: object) -> DM:
    settings = methods()["dm"].changed({"lr_images": 0.5, "batch_real": 9, **changed})
    return DM(settings, name="dm", recipe=recipe)


SHORT = {"batch_real": 9, "outer_loops": 3, "inner_epochs": 2}


def dc(recipe: Recipe = RECIPE, **changed: object) -> DC:
    return DC(methods()["dsa"].changed({**SHORT, **changed}), name="dsa", recipe=recipe)


def network(job: Job, vector: Tensor) -> nn.Module:
    net = job.spec.build()
    nn.utils.vector_to_parameters(vector, net.parameters())
    return net


def stepped(method, job: Job, rounds: int = 1) -> tuple[Tensor, State, dict[str, float]]:
    state = method.start(job)
    before = state["images"].clone()
    for index in range(rounds):
        figures = method.round(state, index)
    return before, state, figures


def test_real_batches_are_of_their_class_and_drawn_without_replacement(job, digits, cpu):
    real, train = RealClasses(job), digits.examples("train", cpu)
    for c in (0, 7):
        drawn = real.draw(c, 9, 1, 2)
        assert torch.equal(drawn, real.draw(c, 9, 1, 2))
        assert not torch.equal(drawn, real.draw(c, 9, 1, 3))
        labels = [
            int(train.targets[(train.images == image).flatten(1).all(1)].unique())
            for image in drawn
        ]
        assert labels == [c] * 9 and len(drawn.unique(dim=0)) == 9
        everything = real.draw(c, 10**6, 1)
        assert len(everything) == int((train.targets == c).sum())


def test_siamese_augmentation_is_the_same_for_all_images(cpu):
    drawn = siamese("rotate", cpu.device, 3)
    image = torch.rand(1, 1, 8, 8)
    moved = augment.augment(image.expand(5, -1, -1, -1), drawn)
    assert torch.equal(moved, moved[:1].expand_as(moved)) and not torch.equal(moved[:1], image)
    assert siamese("none", cpu.device, 3) is None


def test_dm_follows_the_gradient_of_its_loss(job):
    before, state, figures = stepped(dm(), job)
    stream, leaf = (*job.stream, 0), before.clone().requires_grad_()
    net, real = network(job, job.spec.fresh(*stream, "network")), RealClasses(job)
    loss = torch.zeros(())
    for c in range(10):
        drawn = siamese(STRATEGY, before.device, *stream, c)
        mine = net.embed(augment.augment(leaf[2 * c : 2 * c + 2], drawn)).mean(0)
        theirs = net.embed(augment.augment(real.draw(c, 9, *stream), drawn)).mean(0)
        loss = loss + ((mine - theirs) ** 2).sum()
    gradient = torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(state["images"], before - 0.5 * gradient, rtol=1e-4, atol=1e-5)
    assert figures["distance"] == pytest.approx(float(loss.detach()), rel=1e-5)


@pytest.mark.parametrize("make", [dm, dc])
def test_all_of_a_shard_in_host_memory_comes_to_the_device(job, make):
    # the methods update whole tensors there; "meta" stands for a host that differs from the device
    state = make().start(job)
    state = make().placed(state, replace(job, home=torch.device("meta")))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    assert {"images", "images_velocity", "classes"} <= tensors.keys()
    assert {value.device for value in tensors.values()} == {job.compute.device}


def test_dm_brings_the_means_together(job):
    method = dm(Recipe(passes=1, lr=1, augment="none"), batch_real=100, lr_images=1.0)
    state, found = method.start(job), []
    for index in range(40):
        found.append(method.round(state, index)["distance"])
    assert np.mean(found[-5:]) < 0.5 * np.mean(found[:5])


def test_matching_distance_is_one_minus_the_cosine_of_each_row():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 4, 3, 2)), random.normal(size=(2, 5, 6))
    expected = 0.0
    for x, y in ((a[0], a[1]), (b[0], b[1])):
        for u, v in zip(x.reshape(len(x), -1), y.reshape(len(y), -1), strict=True):
            expected += 1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v) + 1e-6)
    pairs = [[torch.from_numpy(t[i]) for t in (a, b)] for i in (0, 1)]
    assert float(matching_distance(*pairs)) == pytest.approx(expected, rel=1e-12)
    assert float(matching_distance(pairs[0], pairs[0])) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("strategy", [STRATEGY, "none"])
def test_dsa_follows_the_gradient_of_its_distance(job, strategy):
    recipe = Recipe(passes=1, lr=0.01, loss="ce", augment=strategy)
    before, state, figures = stepped(dc(recipe), job)
    stream, leaf = (*job.stream, 0), before.clone().requires_grad_()
    net, real = network(job, job.spec.fresh(*stream, "network")), RealClasses(job)
    weights = [p for p in net.parameters() if p.ndim >= 2]
    assert len(weights) == 2  # one convolution and the head
    total = torch.zeros(())
    for c in range(10):
        drawn = siamese(strategy, before.device, *stream, c)
        label = torch.tensor([c])
        theirs = augment.augment(real.draw(c, 9, *stream), drawn)
        mine = augment.augment(leaf[2 * c : 2 * c + 2], drawn)
        target = torch.autograd.grad(F.cross_entropy(net(theirs), label.expand(9)), weights)
        loss = F.cross_entropy(net(mine), label.expand(2))
        found = torch.autograd.grad(loss, weights, create_graph=True)
        for a, b in zip(found, target, strict=True):
            cosine = F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1, eps=1e-12)
            total = total + (1 - cosine).sum()
    gradient = torch.autograd.grad(total, leaf)[0]
    scale = float(gradient.abs().max())
    moved = (before - state["images"]) / 0.1
    torch.testing.assert_close(moved, gradient, rtol=1e-2, atol=2e-3 * scale)
    assert figures["distance"] == pytest.approx(float(total.detach()), rel=1e-3)


def test_a_network_lives_for_its_outer_loops_and_is_trained_between(job):
    method = dc()
    state, vectors = method.start(job), []
    for index in range(4):
        method.round(state, index)
        vectors.append(state["network"].clone())
    fresh = [job.spec.fresh(*job.stream, index, "network") for index in (0, 3)]
    assert not torch.equal(vectors[0], fresh[0]) and not torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[1], vectors[2])  # the published code ends without training
    assert not torch.equal(vectors[3], fresh[1]) and not torch.equal(vectors[3], vectors[2])


def test_dc_starts_from_noise_and_dsa_from_real_images(job, digits):
    images, classes = digits.shard(2, 1)
    assert torch.equal(dc().start(job)["images"], images)
    noise = dc(start="noise").start(job)
    assert torch.equal(noise["classes"], classes)
    assert abs(float(noise["images"].mean())) < 0.1 and 0.9 < float(noise["images"].std()) < 1.1


def test_the_network_is_trained_on_the_moved_images(job):
    method = dc()
    state = method.start(job)
    method.round(state, 0)
    stream, trainer = (*job.stream, 0), method.trainer
    method.examples.images.copy_(state["images"])
    trainer.fit(job.spec.fresh(*stream, "network"), *stream)
    assert torch.equal(trainer.net.snapshot(), state["network"])


@pytest.mark.parametrize("name", ["dm", "dc", "dsa"])
def test_shards_have_the_same_bits_after_a_resume(name, digits, cpu, tmp_path, resumed):
    options = {"lr_images": 0.1, "batch_real": 9}
    if name != "dm":
        options |= {"outer_loops": 2, "inner_epochs": 1, "start": "real"}
    recipe = RecipeSettings(
        epochs=3, lr=0.01, batch=16, loss="ce", augment=STRATEGY, drop_momentum=True
    )
    settings = DistillSettings(
        method=name,
        options=options,
        ipc=1,
        rounds=4,
        recipe=recipe,
        network=Network(width=4, depth=1),
        precision="float32",
    )
    unbroken = distill_shard(tmp_path / "a", settings, 0, digits, None, Run(cpu))

    again = resumed(
        lambda *given: distill_shard(tmp_path / "b", settings, 0, digits, None, Run(cpu, *given)),
        after=3,
    )
    assert again.content == unbroken.content


@pytest.mark.parametrize(("name", "start"), [("dc", "noise"), ("dsa", "real")])
def test_both_names_are_one_class_with_settings_of_their_own(name, start, recipe_settings):
    settings = DistillSettings(method=name, options={}, ipc=1, recipe=recipe_settings)
    method = build(settings)
    assert type(method) is DC and method.settings.start == start
    assert method.key("start") == f"methods.{name}.start"


def test_dm_needs_an_embedding(job):
    with pytest.raises(ConfigError, match=r"^methods\.dm: vit has no embedding: use convnet"):
        dm().start(replace(job, network=Spec("vit", job.spec.shape)))


def test_dropout_and_attention_are_no_matter_of_chance(job):
    given = replace(job, network=Spec("vit", job.spec.shape))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(stepped(dc(inner_epochs=1), given)[1]["images"])
    assert torch.equal(*found) and found[0].isfinite().all()
