"""PAD: DATM with a distance that leaves out the shallow layers."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from apm_core.errors import ConfigError
from apm_core.methods.base import Job
from apm_core.methods.matching.datm import DATM
from apm_core.methods.matching.pad import PAD
from apm_core.settings.method import methods
from apm_core.settings.run import RunSettings
from apm_core.stages.distill import distill
from apm_core.training import augment
from apm_core.training.recipe import Recipe

RECIPE = Recipe(passes=1, lr=0.01, loss="soft_ce", augment="crop_scale")
OPTIONS = {
    "lr_images": 5.0,
    "rate": 0.05,
    "steps": 3,
    "expert_epochs": 1,
    "start_below_first": 1,
    "start_below": 2,
    "threshold": 100.0,
    "batch": 7,
}


def pad(**changed: object) -> PAD:
    settings = methods()["pad"].changed({**OPTIONS, **changed})
    return PAD(settings, name="pad", recipe=RECIPE)


@pytest.fixture
def job(digits, teachers, cpu) -> Job:
    return Job(digits, teachers, cpu, ipc=1, shard=0, rounds=5, seed=7)


def unrolled(job: Job, method: PAD, state: dict, skip: int) -> tuple[float, list[Tensor]]:
    """Loss of round 0 and its gradients, with the graph of all steps, in float64."""
    stream = (*job.stream, 0)
    start, target = (one.double() for one in method.experts.piece(range(1), *stream))
    leaves = [state[key].double().requires_grad_() for key in ("images", "targets", "rate")]
    images, labels, rate = leaves
    theta, net = start.clone().requires_grad_(), job.spec.network(images.device)
    for step in method.inner.draw(len(images), images.device, *stream):
        seen = net.at(theta, augment.augment(images[step.index], step.drawn))
        value = -(labels[step.index].softmax(1) * seen.log_softmax(1)).sum(1).mean()
        theta = theta - rate * torch.autograd.grad(value, theta, create_graph=True)[0]
    kept = torch.arange(len(theta)) >= skip
    result = ((theta - target) ** 2 * kept).sum() / ((start - target) ** 2 * kept).sum()
    return float(result.detach()), list(torch.autograd.grad(result, leaves))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_numerator_and_normalisation_leave_out_the_first_parameters(job, share):
    method = pad(skip=share)
    state = method.start(job)
    value, gradients = unrolled(job, method, state, int(share * job.teachers.net.size))
    update = method.step(state, 0)
    assert update.figures["match"] == pytest.approx(value, rel=1e-4)
    for name, gradient in zip(("images", "targets", "rate"), gradients, strict=True):
        found = update.gradients[name].double()
        assert float((found - gradient).norm()) < 1e-3 * float(gradient.norm()), name


def test_what_is_left_out_are_the_layers_at_the_input(job):
    net = job.teachers.net
    parts = [name for name, p in net.module.named_parameters() for _ in range(p.numel())]
    method = pad()
    method.start(job)
    assert parts[0].startswith("features") and parts[-1].startswith("classifier")
    assert method.skip == net.size // 2


def test_without_a_share_it_is_datm_bit_by_bit(job):
    datm = DATM(methods()["datm"].changed(OPTIONS), name="datm", recipe=RECIPE)
    ends = []
    for method in (datm, pad(skip=0.0)):
        state = method.start(job)
        for index in range(2):
            method.round(state, index)
        ends.append(state)
    for name in ("images", "targets", "rate"):
        assert torch.equal(ends[0][name], ends[1][name])


def test_a_resumed_run_has_the_same_bits(job, resumed):
    whole = distill(pad(), job, rounds=4)

    found = resumed(
        lambda resume, progress: distill(pad(), job, rounds=4, resume=resume, progress=progress),
        after=2,
    )
    assert torch.equal(found.images, whole.images) and torch.equal(found.targets, whole.targets)
    assert found.rate == whole.rate


def test_what_means_nothing_is_refused(job):
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValidationError, match="skip"):
            pad(skip=wrong)
    with pytest.raises(
        ConfigError, match=r"methods\.pad\.start_below: from epoch 2.*raise ordered"
    ):
        pad(start_below=3).start(job)
    settings = {"distill": {"methods": ["pad"]}, "ordered_experts": {"epochs": 40}}
    with pytest.raises(ConfigError, match=r"pad\.start_below: .* beyond ordered_experts\.epochs"):
        RunSettings.of(settings)
