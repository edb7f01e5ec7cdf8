"""DANCE, and what it shares with NCFM, against the formulas written out with other means."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apm_core.errors import ConfigError
from apm_core.methods.base import Job
from apm_core.methods.features.dance import DANCE, mean_distance
from apm_core.methods.features.interpolated import augmented
from apm_core.methods.shared.real_classes import RealClasses, siamese
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.run import Run
from apm_core.settings.method import methods
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import DistillSettings
from apm_core.settings.training import RecipeSettings
from apm_core.stages.distill import distill_shard
from apm_core.training import augment
from apm_core.training.recipe import Recipe

GROUPS = ("color", "crop", "cutout")
RECIPE = Recipe(passes=1, lr=0.01)


@pytest.fixture
def job(digits, teachers, cpu) -> Job:
    return Job(digits, teachers, cpu, ipc=2, shard=1, rounds=5, seed=7)


def dance(**changed: object) -> DANCE:
    settings = methods()["dance"].changed({"batch_real": 9, "lr_images": 0.25, **changed})
    return DANCE(settings, name="dance", recipe=RECIPE)


def network(spec: Spec, vector: Tensor) -> nn.Module:
    net = spec.build()
    nn.utils.vector_to_parameters(vector, net.parameters())
    return net


def drawn(job: Job, index: int) -> tuple[nn.Module, nn.Module]:
    """The interpolated and the trained network of a round."""
    random = streams.generator(*job.stream, index, "teacher")
    member, share = (
        int(torch.randint(4, (), generator=random)),
        float(torch.rand((), generator=random)),
    )
    pool = job.teachers
    start, end = pool.trajectories[member // 2][member % 2][[0, -1]]
    between = share * start + (1 - share) * end
    return network(pool.spec, between), network(pool.spec, end)


def seen(images: Tensor, *stream: streams.Key) -> Tensor:
    for name in GROUPS:
        images = augment.augment(images, siamese(name, images.device, *stream, name))
    return images


def test_a_teacher_begins_as_its_first_snapshot(teachers):
    for index in range(4):
        first = teachers.trajectories[index // 2][index % 2][0]
        assert torch.equal(teachers.before(index), first)


def test_the_distance_is_that_of_the_means():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(7, 5)), random.normal(size=(3, 5))
    expected = sum((a[:, d].mean() - b[:, d].mean()) ** 2 for d in range(5))
    found = mean_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_images_follow_distance_and_calibration(job):
    method = dance(calibration=0.7)
    state = method.start(job)
    before = state["images"].clone()
    figures = method.round(state, 3)
    stream, leaf = (*job.stream, 3), before.clone().requires_grad_()
    (between, end), real = drawn(job, 3), RealClasses(job)
    distance = calibration = torch.zeros(())
    for c in range(10):
        mine = leaf[2 * c : 2 * c + 2]
        theirs = between.embed(seen(real.draw(c, 9, *stream), *stream, c)).mean(0)
        found = between.embed(seen(mine, *stream, c)).mean(0)
        distance = distance + ((found - theirs) ** 2).sum()
        logits = end(seen(mine, *stream, "calibration", c))
        calibration = calibration - logits.log_softmax(dim=1)[:, c].mean()
    gradient = torch.autograd.grad(distance + 0.7 * calibration, leaf)[0]
    moved = (before - state["images"]) / (0.25 * 2)  # two images per class
    torch.testing.assert_close(moved, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    assert figures["distance"] == pytest.approx(float(distance.detach()), rel=1e-4)
    assert figures["calibration"] == pytest.approx(float(calibration.detach()), rel=1e-4)


def test_every_group_is_applied_and_equal_for_all_images(job):
    method = dance()
    method.attach(job)
    draws = method._draws(1, 2)
    assert [one.group for one in draws] == list(GROUPS)
    image = torch.rand(1, 1, 8, 8)
    out = augmented(image.expand(5, -1, -1, -1), draws)
    assert torch.equal(out, out[:1].expand_as(out))
    by_hand = image
    for one in draws:
        by_hand = augment.augment(by_hand, one)
    assert torch.equal(out[:1], by_hand)
    plain = dance(augment="none")
    plain.attach(job)
    assert torch.equal(augmented(image, plain._draws(1, 2)), image)


@pytest.mark.parametrize(("figure", "weight"), [("distance", 0.0), ("calibration", 30.0)])
def test_what_has_the_weight_falls(job, figure, weight):
    method = dance(augment="none", batch_real=1000, lr_images=0.5, calibration=weight)
    state, found = method.start(job), []
    for index in range(30):
        found.append(method.round(state, index))
    values = [one[figure] for one in found]
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5]), values


def test_without_calibration_there_is_none_to_show(job):
    method = dance(calibration=0.0)
    assert method.round(method.start(job), 0).keys() == {"distance", "lr_images"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dance", {}),
        ("ncfm", {"frequencies": 16}),
        ("ncfm", {"frequencies": 16, "sampler": True, "optimizer": "sgd", "augment": "none"}),
    ],
)
@pytest.mark.parametrize("tiles", [1, 2])
def test_shards_have_the_same_bits_after_a_resume(
    name, options, tiles, digits, teachers, cpu, tmp_path, resumed
):
    settings = DistillSettings(
        method=name,
        options={"batch_real": 9, **options},
        ipc=1,
        tiles=tiles,
        rounds=3,
        recipe=RecipeSettings(loss="ce"),
        precision="float32",
    )
    unbroken = distill_shard(tmp_path / "a", settings, 0, digits, teachers, Run(cpu))

    again = resumed(
        lambda *given: distill_shard(
            tmp_path / "b", settings, 0, digits, teachers, Run(cpu, *given)
        ),
        after=2,
    )
    assert again.content == unbroken.content


def test_teachers_need_an_embedding(job, digits):
    spec = Spec("vit", digits.shape)
    pool = replace(job.teachers, spec=spec, net=spec.network(job.compute.device))
    with pytest.raises(ConfigError, match=r"^methods\.dance: vit has no embedding: use convnet"):
        dance().start(replace(job, pool=pool))


@pytest.mark.parametrize("name", ["dance", "ncfm"])
def test_wrong_settings_are_refused_in_one_line(name):
    for key, value in (("calibration", -1), ("augment", "blur"), ("batch_real", 0)):
        with pytest.raises(ConfigError, match=rf"^config: methods\.{name}\.{key}: .*$"):
            RunSettings.of({"methods": {name: {key: value}}})


def test_tiles_are_ready_made_entries():
    entries = RunSettings.of({"distill": {"methods": ["dance_tiles", "ncfm_tiles"]}}).entries
    assert [entry.settings.tiles for entry in entries.values()] == [2, 2]
    assert [entry.method for entry in entries.values()] == ["dance", "ncfm"]
