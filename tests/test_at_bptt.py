"""AT-BPTT: where its window lies, when its stages change, and that it resumes."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from apm_core.errors import ConfigError
from apm_core.methods.at_bptt import ATBPTT, EARLY, LATE, MIDDLE
from apm_core.methods.base import Job
from apm_core.nets.spec import Spec
from apm_core.settings.method import methods
from apm_core.stages.distill import distill
from apm_core.training import augment
from apm_core.training.recipe import Recipe

RECIPE = Recipe(passes=1, lr=0.01, loss="soft_ce", augment="crop_scale")
OPTIONS = {
    "rate": 0.2,
    "before": 6,
    "window": 4,
    "spread": 2,
    "period": 2,
    "calm_early": 1,
    "calm_middle": 1,
    "batch": 7,
    "batch_real": 50,
}


def at_bptt(**changed: object) -> ATBPTT:
    settings = methods()["at_bptt"].changed({**OPTIONS, **changed})
    return ATBPTT(settings, name="at_bptt", recipe=RECIPE)


@pytest.fixture
def job(digits, cpu) -> Job:
    spec = Spec("convnet", digits.shape, 6, 1)
    return Job(digits, None, cpu, ipc=1, shard=0, rounds=5, seed=7, network=spec)


def at_stage(state: dict, stage: int) -> dict:
    return {**state, "policy": {**state["policy"], "stage": stage}}


def known_norms(method: ATBPTT, norms: list[float], monkeypatch) -> None:
    found = torch.tensor(norms, dtype=torch.float64)
    monkeypatch.setattr(method, "gradient_norms", lambda *_: found)


def test_the_probe_measures_the_gradients_of_a_training(job):
    method = at_bptt()
    state = method.start(job)
    stream = (*job.stream, 3, "probe")
    theta, expected = job.spec.fresh(*stream, "network"), []
    net = job.spec.network(theta.device)
    for step in method.inner.draw(10, theta.device, *stream):
        theta = theta.detach().requires_grad_()
        seen = net.at(theta, augment.augment(state["images"][step.index], step.drawn))
        loss = -(state["targets"][step.index].softmax(1) * seen.log_softmax(1)).sum(1).mean()
        slope = torch.autograd.grad(loss, theta)[0]
        expected.append(float(slope.norm()))
        theta = theta - 0.2 * slope
    assert len(expected) == 10
    np.testing.assert_allclose(method.gradient_norms(state, 3), expected, rtol=1e-3)


NORMS = [3.0, 1.0, 2.5, 2.0, 0.5, 0.6, 2.9, 0.1, 0.2, 1.5]
CHANGES = [0.0, 2.0, 1.5, 0.5, 1.5, 0.1, 2.3, 2.8, 0.1, 1.3]


def test_in_the_early_stage_large_gradients_draw_the_window_and_their_change_its_size(
    job, monkeypatch
):
    method = at_bptt()
    state = method.start(job)
    known_norms(method, NORMS, monkeypatch)
    windows = {}  # by the step drawn, from the definition
    for at, change in enumerate(CHANGES):
        rank = sum(other < change - 1e-9 for other in CHANGES)
        size = int(4 - 2 + 4 * rank / 10)
        windows[at] = (min(at, 10 - size), size)
    shares = np.exp(NORMS) / np.exp(NORMS).sum()
    expected = Counter()
    for at, window in windows.items():
        expected[window] += shares[at]
    draws = 3000
    found = Counter(method.place(state, index) for index in range(draws))
    assert set(found) <= set(expected) and {size for _, size in found} == {2, 3, 4, 5}
    for window, share in expected.items():
        spread = (share * (1 - share) / draws) ** 0.5
        assert abs(found[window] / draws - share) < 4 * spread + 1e-9, window


def test_in_the_middle_stage_a_large_window_lies_anywhere(job):
    method = at_bptt()
    state = at_stage(method.start(job), MIDDLE)
    found = Counter(method.place(state, index) for index in range(500))
    assert set(found) == {(first, 6) for first in range(5)}
    assert min(found.values()) > 60


def test_in_the_late_stage_a_small_window_is_mirrored(job, monkeypatch):
    method = at_bptt()
    state = at_stage(method.start(job), LATE)
    for at, first in ((0, 8), (3, 5), (8, 0), (9, 0)):
        known_norms(method, [99.0 if t == at else 0.0 for t in range(10)], monkeypatch)
        assert method.place(state, 5) == (first, 2)


def test_stages_change_after_calm_periods_in_a_row(job):
    method = at_bptt(calm_early=3, calm_middle=2, gain_early=1.5, gain_middle=1.0)
    policy = method.start(job)["policy"]
    stages = []
    for accuracy in (30, 31, 32.4, 34, 35, 36.4, 30, 31.1, 32, 31, 40, 40):
        policy = method.judged({**policy, "accuracy": float(accuracy)})
        stages.append(policy["stage"])
    # gains: 30, 1, 1.4, 1.6 | 1, 1.4, -6.4: three calm | 1.1, 0.9, -1: two calm | none later
    assert stages == [EARLY] * 6 + [MIDDLE] * 3 + [LATE] * 3


def differentiated(method: ATBPTT, job: Job, state: dict, first: int, window: int) -> list[Tensor]:
    """Loss of round 0 and its gradients, with the graph of the whole window, in float64."""
    stream = (*job.stream, 0)
    names = ("images", "targets", "log_rate")
    leaves = [state[name].double().requires_grad_() for name in names]
    images, targets, log_rate = leaves
    net = job.spec.network(images.device)
    theta = job.spec.fresh(*stream, "network").double()
    steps = method.inner.draw(10, images.device, *stream)[: first + window]
    for number, step in enumerate(steps):
        theta = theta.detach() if number <= first else theta
        theta.requires_grad_()
        seen = net.at(theta, augment.augment(images[step.index], step.drawn))
        loss = -(targets[step.index].softmax(1) * seen.log_softmax(1)).sum(1).mean()
        theta = theta - log_rate.exp() * torch.autograd.grad(loss, theta, create_graph=True)[0]
    real = method.real_batch(0)
    logits = net.at(theta, real.images.double())
    result = -logits.log_softmax(1)[range(50), real.targets].mean()
    correct = 100 * (logits.argmax(1) == real.targets).double().mean()
    return [result.detach(), correct, *torch.autograd.grad(result, leaves)]


def test_a_round_follows_the_gradient_of_its_window(job):
    method = at_bptt()
    state = method.start(job)
    first, window = method.place(state, 0)
    value, accuracy, *gradients = differentiated(method, job, state, first, window)
    update = method.step(state, 0)
    assert (update.figures["first"], update.figures["window"]) == (first, window)
    assert update.figures["match"] == pytest.approx(float(value), rel=1e-4)
    assert update.figures["accuracy"] == pytest.approx(float(accuracy))
    for name, gradient in zip(("images", "targets", "log_rate"), gradients, strict=True):
        found = update.gradients[name].double()
        assert float((found - gradient).norm()) < 1e-3 * float(gradient.norm()), name


def test_a_rehearsal_has_a_share_of_the_probe(job, monkeypatch):
    method, clock = at_bptt(period=5), [0.0]
    state = method.init(job)

    def timed(_: dict, index: int) -> None:
        clock[0] += 2.0 + 9.0 * (index % 5 == 0)

    monkeypatch.setattr(method, "round", timed)
    assert method.rehearse(state, lambda: clock[0]) == (10, 2.0 + 9.0 / 5)


def test_a_window_is_kept_for_a_period_and_its_accuracies_are_averaged(job):
    method = at_bptt(period=3, calm_early=9)
    state = method.start(job)
    shown = [method.round(state, index) for index in range(6)]
    windows = [(one["first"], one["window"]) for one in shown]
    assert windows[:3] == [windows[0]] * 3 and windows[3:] == [windows[3]] * 3
    mean = sum(one["accuracy"] for one in shown[3:]) / 3
    assert state["policy"]["before"] == pytest.approx(mean)
    assert state["policy"]["stage"] == EARLY


def test_a_resumed_run_has_the_same_bits_in_every_stage(job, resumed):
    def method() -> ATBPTT:
        return at_bptt(gain_early=100.0, gain_middle=100.0)  # every period is calm

    stages = []
    whole = distill(method(), job, rounds=6, progress=lambda *call: stages.append(call[2]["stage"]))
    assert stages == [EARLY, EARLY, MIDDLE, MIDDLE, LATE, LATE]

    for last in (1, 3, 4):  # inside a period, and between two
        found = resumed(
            lambda resume, progress: distill(
                method(), job, rounds=6, resume=resume, progress=progress
            ),
            after=last + 1,
        )
        assert torch.equal(found.images, whole.images)
        assert torch.equal(found.targets, whole.targets) and found.rate == whole.rate


def test_a_round_that_diverges_is_reported_and_spoils_nothing(job):
    method = at_bptt(rate=1e30)
    state = method.start(job)
    before = dict(state)
    figures = method.round(state, 0)
    assert not np.isfinite(list(figures.values())).all()
    assert all(state[name] is value for name, value in before.items())


@pytest.mark.parametrize("wrong", [{"spread": 4}, {"spread": 3, "before": 2}])
def test_a_window_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"^methods\.at_bptt\.spread: \d leaves no window of"):
        at_bptt(**wrong)
