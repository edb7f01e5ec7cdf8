"""MTT and TESLA: one round by hand, what is learned, what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core import distilled, methods
from apm_core.errors import ConfigError
from apm_core.methods.base import Job
from apm_core.methods.matching.mtt import MTT
from apm_core.methods.matching.trajectory import InnerTraining, Match, Trajectory
from apm_core.runtime.run import Run
from apm_core.settings.method import methods as settings_by_name
from apm_core.settings.stages import DistillSettings, MergeSettings
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge
from apm_core.training import augment
from apm_core.training.recipe import Recipe

RECIPE = Recipe(passes=1, lr=0.01, loss="ce", augment="crop_scale")
OPTIONS = {
    "lr_images": 5.0,
    "momentum_images": 0.5,
    "rate": 0.05,
    "lr_rate": 1e-4,
    "steps": 3,
    "expert_epochs": 1,
    "start_below": 2,
    "batch": 7,
    "exact": True,
    "soft_labels": False,
}


def mtt(recipe: Recipe = RECIPE, **changed: object) -> MTT:
    settings = settings_by_name()["mtt"].changed({**OPTIONS, **changed})
    return MTT(settings, name="mtt", recipe=recipe)


@pytest.fixture
def job(digits, teachers, cpu) -> Job:
    return Job(digits, teachers, cpu, ipc=1, shard=0, rounds=5, seed=7)


def unrolled(job: Job, method: MTT, images: Tensor, targets: Tensor, loss) -> list[Tensor]:
    """Loss of round 0 and its gradients in images and rate, with the graph of all steps."""
    stream = (*job.stream, 0)
    start, target = method.experts.piece(range(2), *stream)
    leaf, rate = images.clone().requires_grad_(), torch.tensor(0.05, requires_grad=True)
    theta = start.clone().requires_grad_()
    net = job.spec.network(images.device)
    for step in method.inner.draw(len(images), images.device, *stream):
        seen = augment.augment(leaf[step.index], step.drawn)
        value = loss(net.at(theta, seen), targets[step.index])
        theta = theta - rate * torch.autograd.grad(value, theta, create_graph=True)[0]
    result = (theta - target).square().sum() / (start - target).square().sum()
    return [result.detach(), *torch.autograd.grad(result, (leaf, rate))]


@pytest.mark.parametrize("soft", [False, True])
def test_a_round_follows_the_gradient_of_full_unrolling(job, soft):
    loss = "soft_ce" if soft else "ce"
    recipe = Recipe(passes=1, lr=0.01, loss=loss, augment="crop_scale")
    method = mtt(soft_labels=soft, recipe=recipe)
    state = method.start(job)
    before, targets = state["images"].clone(), state["classes"]
    if soft:
        _, target = method.experts.piece(range(2), *job.stream, 0)
        net = job.spec.network(before.device)
        net.load(target)
        targets = net(before).softmax(1).detach()
    figures = method.round(state, 0)
    value, by_images, by_rate = unrolled(job, method, before, targets, F.cross_entropy)
    assert figures["match"] == pytest.approx(float(value), rel=1e-5)
    scale = float(by_images.abs().max())
    moved = (before - state["images"]) / 5.0
    torch.testing.assert_close(moved, by_images, rtol=1e-3, atol=1e-3 * scale)
    assert figures["rate"] == pytest.approx(0.05)  # that of the round
    assert (figures["lr_images"], figures["lr_rate"]) == (5.0, 1e-4)
    assert float(state["rate"]) == pytest.approx(0.05 - 1e-4 * float(by_rate), rel=1e-5)
    torch.testing.assert_close(state["targets"], targets)


def test_a_start_with_soft_labels_is_a_set_of_its_own(job):
    method = mtt(replace(RECIPE, loss="soft_ce"), soft_labels=True)
    shard = method.finish(method.init(job))
    assert shard.targets.shape == (10, 10)
    torch.testing.assert_close(shard.targets.exp().sum(dim=1), torch.ones(10))


def test_the_approximation_is_another_gradient(job):
    images = []
    for exact in (True, False):
        method = mtt(exact=exact)
        state = method.start(job)
        method.round(state, 0)
        images.append(state["images"])
    assert not torch.allclose(*images, rtol=1e-3)


def test_pieces_are_epochs_of_one_expert(job, teachers):
    method, seen = mtt(), set()
    method.start(job)
    experts = [member for group in teachers.trajectories for member in group]
    for index in range(40):
        start, target = method.experts.piece(range(2), 1, index)
        found = [
            (e, t)
            for e, expert in enumerate(experts)
            for t in range(2)
            if torch.equal(start, expert[t]) and torch.equal(target, expert[t + 1])
        ]
        assert len(found) == 1
        seen |= set(found)
    assert seen == {(e, t) for e in range(4) for t in range(2)}


def test_inner_batches_are_permutations_one_after_another():
    plan = InnerTraining(steps=5, batch=4, strategy="crop").draw(10, torch.device("cpu"), 3)
    assert [len(step.index) for step in plan] == [4, 4, 2, 4, 4]
    assert sorted(torch.cat([s.index for s in plan[:3]]).tolist()) == list(range(10))
    assert len(torch.cat([s.index for s in plan[3:]]).unique()) == 8


def test_the_rate_stays_above_a_hundredth_of_its_start(job):
    method = mtt(lr_rate=1e6)
    state = method.start(job)
    state["rate_velocity"] += 1e3
    method.round(state, 0)
    assert float(state["rate"]) == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start_below": 3}, r"start_below: from epoch 2, 1 epochs on, is beyond the 2 epochs"),
        ({"expert_epochs": 2}, r"is beyond the 2 epochs of the experts: lower start_below"),
        ({"batch": 11}, r"methods\.mtt\.batch: 11 is more than the 10 images"),
        ({"soft_labels": True}, r"recipe\.loss: ce does not go with soft_labels: true: set it to"),
    ],
)
def test_what_cannot_be_matched_is_refused(job, wrong, message):
    with pytest.raises(ConfigError, match=message):
        mtt(**wrong).start(job)


@pytest.mark.parametrize("name", ["mtt", "tesla"])
def test_messages_name_the_method_that_runs(name, job, recipe_settings):
    recipe = recipe_settings.changed({"loss": "ce"})
    options = {**OPTIONS, "batch": 11}
    settings = DistillSettings(method=name, options=options, ipc=1, recipe=recipe)
    with pytest.raises(ConfigError, match=rf"^methods\.{name}\.batch: 11 is more"):
        methods.build(settings).start(job)
    settings = settings.changed({"recipe": {"loss": "l1"}})
    with pytest.raises(ConfigError, match=rf"^methods\.{name}\.recipe\.loss: l1 does not go"):
        methods.build(settings)


@pytest.mark.parametrize("soft", [False, True])
def test_a_round_that_diverges_is_reported_and_spoils_nothing(job, soft):
    recipe = Recipe(passes=1, lr=0.01, loss="soft_ce" if soft else "ce", augment="none")
    method = mtt(rate=1e30, soft_labels=soft, recipe=recipe)
    state = method.start(job)
    before = {name: value.clone() for name, value in state.items()}
    figures = method.round(state, 0)
    assert not all(map(math.isfinite, figures.values()))
    assert all(torch.equal(before[name], state[name]) for name in before)


@pytest.mark.parametrize("part", ["images", "rate"])
def test_a_gradient_that_is_not_finite_is_reported_though_the_loss_is(job, monkeypatch, part):
    match = Trajectory.match

    def broken(*given) -> Match:
        found = match(*given)
        return replace(found, **{part: torch.full_like(getattr(found, part), math.inf)})

    monkeypatch.setattr(Trajectory, "match", broken)
    method = mtt()
    state = method.start(job)
    before = {name: value.clone() for name, value in state.items()}
    figures = method.round(state, 0)
    assert math.isfinite(figures["match"]) and not math.isfinite(figures["gradient"])
    assert all(torch.equal(before[name], state[name]) for name in before)


def test_experts_stored_as_float16_are_matched_in_float32(job, teachers):
    wide = teachers.trajectories
    groups = [
        replace(one, arrays={"snapshots": one.arrays["snapshots"].astype(np.float16)})
        for one in teachers.artifacts
    ]
    method = mtt()
    method.start(replace(job, pool=replace(teachers, artifacts=groups)))
    start, target = method.experts.piece(range(2), 0)
    assert start.dtype == target.dtype == torch.float32
    rounded = [epoch.half().float() for group in wide for member in group for epoch in member]
    assert any(torch.equal(start, epoch) for epoch in rounded)


def test_a_pool_without_trajectories_is_refused(job, teachers):
    ends = [replace(one, arrays={"parameters": None}) for one in teachers.artifacts]
    with pytest.raises(ConfigError, match="holds no trajectories: distil from the experts"):
        mtt().start(replace(job, pool=replace(teachers, artifacts=ends)))


def test_shards_are_resumed_and_merged_with_their_learned_rate(
    digits, teachers, recipe_settings, cpu, tmp_path, resumed
):
    recipe = recipe_settings.changed({"loss": "ce", "drop_momentum": True})
    settings = DistillSettings(
        method="mtt", options=OPTIONS, ipc=1, rounds=3, recipe=recipe, precision="float32"
    )
    files = [tmp_path / "0", tmp_path / "1"]
    shards = [
        distill_shard(file, settings, number, digits, teachers, Run(cpu))
        for number, file in enumerate(files)
    ]

    again = resumed(
        lambda *given: distill_shard(
            tmp_path / "b", settings, 0, digits, teachers, Run(cpu, *given)
        ),
        after=2,
    )
    assert again.content == shards[0].content and again.info["rate"] == shards[0].info["rate"]

    merged = tmp_path / "set.zarr.zip"
    merge_settings = MergeSettings(entry="mtt", labels="own", recipe=recipe)
    merge(merged, merge_settings, files, digits, None, cpu)
    found = distilled.load(merged)
    rates = [shard.info["rate"] for shard in shards]
    assert rates[0] != rates[1] and found.recipe.lr == pytest.approx(np.mean(rates))
    assert torch.equal(found.targets, found.classes) and found.recipe.drop_momentum
    seconds = sum(a.info["seconds"] for a in teachers.artifacts)
    assert found.artifact.info["teacher_seconds"] == pytest.approx(seconds)
