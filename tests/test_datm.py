"""DATM: its start, the growing range, one round by hand, rounds that do not count."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from apm_core import distilled, methods
from apm_core.errors import ConfigError
from apm_core.methods.base import Job
from apm_core.methods.matching.datm import DATM
from apm_core.methods.matching.trajectory import Match, Trajectory
from apm_core.methods.shared.recognised import correct_shard
from apm_core.runtime.run import Run
from apm_core.settings.method import methods as settings_by_name
from apm_core.settings.stages import DistillSettings, MergeSettings
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge
from apm_core.training import augment
from apm_core.training.losses.soft_ce import loss as soft_ce
from apm_core.training.recipe import Recipe

RECIPE = Recipe(passes=1, lr=0.01, loss="soft_ce", augment="crop_scale")
OPTIONS = {
    "lr_images": 5.0,
    "momentum_images": 0.5,
    "lr_labels": 3.0,
    "momentum_labels": 0.9,
    "rate": 0.05,
    "lr_rate": 1e-4,
    "steps": 3,
    "expert_epochs": 1,
    "start_from": 0,
    "start_below_first": 1,
    "start_below": 2,
    "expand_until": 3,
    "threshold": 100.0,
    "batch": 7,
    "exact": True,
    "start": "correct",
}


def datm(recipe: Recipe = RECIPE, **changed: object) -> DATM:
    settings = settings_by_name()["datm"].changed({**OPTIONS, **changed})
    return DATM(settings, name="datm", recipe=recipe)


def with_threshold(method: DATM, threshold: float) -> None:
    method.settings = method.settings.changed({"threshold": threshold})


@pytest.fixture
def job(digits, teachers, cpu) -> Job:
    return Job(digits, teachers, cpu, ipc=1, shard=1, rounds=5, seed=7)


@pytest.mark.parametrize(
    ("first", "last", "until", "bounds"),
    [
        # 20 to 40 over 2000 rounds: one more every 100 rounds, and no more than 40
        (20, 40, 2000, {0: 20, 99: 20, 100: 21, 1999: 39, 2000: 40, 9999: 40}),
        # 10 to 20 over 3 rounds: 10 + int(10 / 3), 10 + int(20 / 3)
        (10, 20, 3, {0: 10, 1: 13, 2: 16, 3: 20, 4: 20}),
        (None, 60, 1000, {0: 60, 500: 60, 5000: 60}),
    ],
)
def test_the_bound_of_the_starts_grows_and_stops(first, last, until, bounds):
    method = datm(start_from=5, start_below_first=first, start_below=last, expand_until=until)
    for index, bound in bounds.items():
        assert method.epochs(index) == range(5, bound)


def test_pieces_start_in_the_range(job, teachers):
    method = datm(start_from=1, start_below_first=2)
    method.start(job)
    experts = [member for group in teachers.trajectories for member in group]
    seen = set()
    for index in range(30):
        start, target = method.experts.piece(method.epochs(index), index)
        seen |= {n for n, e in enumerate(experts) if torch.equal(e[1], start)}
        assert any(torch.equal(e[1], start) and torch.equal(e[2], target) for e in experts)
    assert seen == {0, 1, 2, 3}


def test_it_starts_from_correct_images_labelled_by_those_who_are_right(job, digits, teachers, cpu):
    state = datm().start(job)
    images, classes = correct_shard(digits, teachers.net, teachers.vectors, cpu, 1, 1)
    assert torch.equal(state["images"], images) and torch.equal(state["classes"], classes)
    real = datm(start="real").start(job)
    assert torch.equal(real["images"], digits.shard(1, 1)[0])
    for found in (state, real):
        said = torch.stack([teachers.logits(k, found["images"], cpu) for k in range(4)])
        for image, c in enumerate(classes):
            right = [z for z in said[:, image] if int(z.argmax()) == int(c)]
            expected = torch.stack(right or list(said[:, image])).mean(0)
            torch.testing.assert_close(found["targets"][image], expected, rtol=1e-4, atol=1e-5)


def unrolled(job: Job, method: DATM, state: dict, index: int) -> tuple[float, list[Tensor]]:
    """Loss of a round and its gradients in images, label logits and rate, with the whole graph."""
    stream = (*job.stream, index)
    start, target = method.experts.piece(method.epochs(index), *stream)
    leaves = [state[key].clone().requires_grad_() for key in ("images", "targets", "rate")]
    images, labels, rate = leaves
    theta, net = start.clone().requires_grad_(), job.spec.network(images.device)
    for step in method.inner.draw(len(images), images.device, *stream):
        seen = net.at(theta, augment.augment(images[step.index], step.drawn))
        value = -(labels[step.index].softmax(1) * seen.log_softmax(1)).sum(1).mean()
        theta = theta - rate * torch.autograd.grad(value, theta, create_graph=True)[0]
    result = (theta - target).square().sum() / (start - target).square().sum()
    return float(result.detach()), list(torch.autograd.grad(result, leaves))


def test_two_rounds_follow_the_gradient_of_full_unrolling(job):
    method = datm()
    state = method.start(job)
    speeds = [torch.zeros_like(state[key]) for key in ("images", "targets", "rate")]
    momenta, rates = (0.5, 0.9, 0.5), (5.0, 3.0, 1e-4)
    for index in range(2):
        expected = [state[key].clone() for key in ("images", "targets", "rate")]
        value, gradients = unrolled(job, method, state, index)
        for number, gradient in enumerate(gradients):
            speeds[number] = momenta[number] * speeds[number] + gradient
            expected[number] = expected[number] - rates[number] * speeds[number]
        rate = float(state["rate"])
        figures = method.round(state, index)
        assert figures["rate"] == rate  # that of the round
        assert tuple(figures[f"lr_{key}"] for key in ("images", "targets", "rate")) == rates
        assert figures["match"] == pytest.approx(value, rel=1e-5)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        assert figures["gradient"] == pytest.approx(norm, rel=1e-3)
        for key, wanted, speed, rate in zip(
            ("images", "targets", "rate"), expected, speeds, rates, strict=True
        ):
            atol = 1e-3 * rate * float(speed.abs().max())
            torch.testing.assert_close(state[key], wanted, rtol=1e-6, atol=atol)
    assert float(speeds[1].abs().max()) > 1e-5


def test_labels_that_differ_by_a_constant_are_the_same():
    random = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(2, 5, 4, generator=random, dtype=torch.float64)
    moved = labels + torch.randn(5, 1, generator=random, dtype=torch.float64)
    torch.testing.assert_close(soft_ce(logits, labels), soft_ce(logits, moved), rtol=1e-12, atol=0)


def test_a_round_above_the_threshold_changes_no_bit(job):
    method = datm()
    state = method.start(job)
    method.round(state, 0)  # so that there is momentum
    before = {name: value.clone() for name, value in state.items()}
    with_threshold(method, 1e-9)
    skipped = method.round(state, 1)
    assert all(torch.equal(before[name], state[name]) for name in before)
    assert all(math.isfinite(value) for value in skipped.values())
    assert skipped["rate"] == float(before["rate"]) and skipped["match"] > 1e-9
    with_threshold(method, skipped["match"])
    assert method.round(state, 1)["match"] == skipped["match"]
    assert not any(torch.equal(before[name], state[name]) for name in before if name != "classes")


def test_a_gradient_that_is_not_finite_matters_only_where_it_is_used(job, monkeypatch):
    match = Trajectory.match

    def broken(*given) -> Match:
        found = match(*given)
        return replace(found, targets=torch.full_like(found.targets, math.nan))

    monkeypatch.setattr(Trajectory, "match", broken)
    for threshold, finite in ((1e-9, True), (100.0, False)):
        method = datm(threshold=threshold)
        state = method.start(job)
        before = {name: value.clone() for name, value in state.items()}
        figures = method.round(state, 0)
        assert all(map(math.isfinite, figures.values())) is finite
        assert all(torch.equal(before[name], state[name]) for name in before)


def test_the_rate_stays_above_a_hundredth_of_its_start(job):
    method = datm(lr_rate=1e6)
    state = method.start(job)
    state["rate_velocity"] += 1e3
    method.round(state, 0)
    assert float(state["rate"]) == pytest.approx(0.0005)


def test_a_round_that_diverges_is_reported_and_spoils_nothing(job):
    method = datm(rate=1e30)
    state = method.start(job)
    before = {name: value.clone() for name, value in state.items()}
    figures = method.round(state, 0)
    assert not all(math.isfinite(value) for value in figures.values())
    assert all(torch.equal(before[name], state[name]) for name in before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start_below": 3}, r"methods\.datm\.start_below: from epoch 2, 1 epochs on, is beyond"),
        ({"start_from": 1}, r"start_from: 1, start_below_first: 1 and start_below: 2 leave no"),
        ({"start_below_first": 3}, r"start_below_first: 3 and start_below: 2 leave no epoch"),
        (
            {"start_from": 2, "start_below_first": None},
            r"methods\.datm\.start_from: 2, start_below_first: None and start_below: 2 leave no",
        ),
        ({"batch": 11}, r"methods\.datm\.batch: 11 is more than the 10 images"),
        (
            {"recipe": Recipe(passes=1, lr=0.01)},
            r"methods\.datm\.recipe\.loss: ce does not go with learned labels: set it to soft_ce",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(job, wrong, message):
    with pytest.raises(ConfigError, match=message):
        datm(**wrong).start(job)


@pytest.mark.parametrize("wrong", [{"start": "noise"}, {"threshold": 0.0}, {"expand_until": 0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        datm(**wrong)


def test_a_resumed_shard_has_the_same_bits_and_its_labels_are_merged(
    digits, teachers, recipe_settings, cpu, tmp_path, resumed
):
    recipe = recipe_settings.changed({"loss": "soft_ce", "drop_momentum": True})
    settings = DistillSettings(
        method="datm", options=OPTIONS, ipc=1, rounds=3, recipe=recipe, precision="float32"
    )
    assert isinstance(methods.build(settings), DATM)
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
    merge_settings = MergeSettings(entry="datm", labels="own", recipe=recipe)
    merge(merged, merge_settings, files, digits, None, cpu)
    found = distilled.load(merged)
    assert found.targets.shape == (20, 10) and found.recipe.loss == "soft_ce"
    assert found.recipe.lr == pytest.approx(sum(s.info["rate"] for s in shards) / 2)
