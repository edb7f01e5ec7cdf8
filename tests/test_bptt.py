"""Back-propagation through training: one round by hand, what is learned, what is refused."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.errors import ConfigError, DivergenceError
from apm_core.methods.base import Job
from apm_core.methods.bptt import BPTT, START_LOGIT
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.settings.method import methods
from apm_core.stages.distill import distill
from apm_core.training import augment
from apm_core.training.recipe import Recipe

RECIPE = Recipe(passes=1, lr=0.01, loss="soft_ce", augment="crop_scale")
OPTIONS = {
    "lr_images": 0.02,
    "lr_labels": 0.03,
    "lr_rate": 0.01,
    "rate": 0.2,
    "before": 3,
    "window": 4,
    "batch": 7,
    "batch_real": 50,
}


def bptt(recipe: Recipe = RECIPE, **changed: object) -> BPTT:
    settings = methods()["bptt"].changed({**OPTIONS, **changed})
    return BPTT(settings, name="bptt", recipe=recipe)


@pytest.fixture
def job(digits, cpu) -> Job:
    spec = Spec("convnet", digits.shape, 6, 1)
    return Job(digits, None, cpu, ipc=1, shard=0, rounds=5, seed=7, network=spec)


def unrolled(job: Job, method: BPTT, state: dict, index: int) -> tuple[Tensor, list[Tensor]]:
    """The loss of round `index` with the graph of the whole window, and its gradients."""
    stream = (*job.stream, index)
    names = ("images", "targets", "log_rate")
    leaves = [state[name].clone().requires_grad_() for name in names]
    images, targets, log_rate = leaves
    net, theta = job.spec.network(images.device), job.spec.fresh(*stream, "network")
    random = streams.generator(*stream, "window")
    first = int(torch.randint(OPTIONS["before"] + 1, (), generator=random))
    for number, step in enumerate(method.inner.draw(10, images.device, *stream)[: first + 4]):
        theta = theta.detach() if number <= first else theta
        theta.requires_grad_()
        found = net.at(theta, augment.augment(images[step.index], step.drawn))
        loss = -(targets[step.index].softmax(1) * found.log_softmax(1)).sum(1).mean()
        slope = torch.autograd.grad(loss, theta, create_graph=True)[0]
        theta = theta - log_rate.exp() * slope
    train = job.data.examples("train", job.compute)
    order = torch.randperm(len(train.targets), generator=streams.generator(*stream, "real"))[:50]
    result = F.cross_entropy(net.at(theta, train.images[order]), train.targets[order])
    return result.detach(), list(torch.autograd.grad(result, leaves))


def test_rounds_follow_adam_along_the_gradient_of_full_unrolling(job):
    method = bptt()
    state = method.start(job)
    images, classes = job.real_images()
    assert torch.equal(state["images"], images)
    assert torch.equal(state["targets"], START_LOGIT * torch.eye(10)[classes])
    leaves = [state[name].clone().requires_grad_() for name in ("images", "targets", "log_rate")]
    rates = zip(leaves, (0.02, 0.03, 0.01), strict=True)
    adam = torch.optim.Adam([{"params": [leaf], "lr": rate} for leaf, rate in rates])
    for index in range(3):
        value, gradients = unrolled(job, method, state, index)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        adam.step()
        figures = method.round(state, index)
        assert (figures["lr_images"], figures["lr_targets"]) == (0.02, 0.03)
        assert figures["match"] == pytest.approx(float(value), rel=1e-4)
        if index == 0:  # Adam's first moment is then a tenth of the gradient
            torch.testing.assert_close(
                10 * state["images_first"], gradients[0], rtol=1e-3, atol=1e-7
            )
        for name, leaf in zip(("images", "targets", "log_rate"), leaves, strict=True):
            # Adam's first steps divide by gradients that may be all but zero
            torch.testing.assert_close(state[name], leaf.detach(), rtol=0, atol=2e-3)
            with torch.no_grad():
                leaf.copy_(state[name])


def test_the_error_on_real_images_falls(job):
    method = bptt(lr_images=0.05, lr_labels=0.1, before=0, window=10, batch=None, batch_real=300)
    state = method.start(replace(job, rounds=40))
    losses = [method.round(state, index)["match"] for index in range(40)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_labels_and_rate_are_part_of_the_shard(job):
    method = bptt()
    state = method.start(job)
    figures = method.round(state, 0)
    shard = method.finish(state)
    assert torch.equal(shard.targets, state["targets"]) and shard.targets.shape == (10, 10)
    assert figures["rate"] == pytest.approx(0.2)  # that of the round's training
    assert shard.rate != pytest.approx(0.2, rel=1e-3) and shard.rate > 0
    assert method.round(state, 1)["rate"] == pytest.approx(shard.rate)
    assert not torch.equal(shard.targets, START_LOGIT * torch.eye(10)[shard.classes])


def test_a_resumed_run_has_the_same_bits(job, resumed):
    whole = distill(bptt(), job, rounds=4)

    found = resumed(
        lambda resume, progress: distill(bptt(), job, rounds=4, resume=resume, progress=progress),
        after=2,
    )
    assert torch.equal(found.images, whole.images) and torch.equal(found.targets, whole.targets)
    assert found.rate == whole.rate


def test_dropout_is_off_so_that_a_round_depends_on_its_state_alone(job):
    job = replace(job, network=Spec("vit", job.data.shape, None, None))
    method, found = bptt(batch_real=20), []
    state = method.init(job)
    for seed in (1, 2):  # of random numbers that are no stream of the job
        torch.manual_seed(seed)
        found.append(method.step(state, 0).gradients["images"])
    assert torch.equal(*found)


def test_a_gradient_that_is_not_finite_is_shown_and_spoils_nothing(job):
    method = bptt(rate=1e30)
    state = method.start(job)
    before = {name: value.clone() for name, value in state.items()}
    figures = method.round(state, 0)
    assert not all(map(math.isfinite, figures.values()))
    assert all(torch.equal(state[name], value) for name, value in before.items())
    with pytest.raises(DivergenceError, match="in round 0"):
        distill(method, job, rounds=1)


def test_what_cannot_be_distilled_is_refused(job):
    with pytest.raises(ConfigError, match=r"methods\.bptt\.batch: 11 is more than the 10 images"):
        bptt(batch=11).start(job)
    with pytest.raises(ConfigError, match=r"methods\.bptt\.recipe\.loss: ce does not go with"):
        bptt(replace(RECIPE, loss="ce"))
