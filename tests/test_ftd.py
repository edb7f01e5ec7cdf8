"""FTD: matching as MTT does, and the moving average that is its product."""

import pytest
import torch

from apm_core import methods
from apm_core.errors import ConfigError, DivergenceError
from apm_core.methods.base import Job
from apm_core.methods.matching.ftd import FTD
from apm_core.methods.matching.mtt import MTT
from apm_core.runtime.run import Run
from apm_core.settings.method import methods as settings_by_name
from apm_core.settings.stages import DistillSettings
from apm_core.settings.training import RecipeSettings
from apm_core.stages.distill import distill_shard
from apm_core.training.recipe import Recipe

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
}
RECIPE = Recipe(passes=1, lr=0.01, loss="ce", augment="crop_scale")


def ftd(**changed: object) -> FTD:
    settings = settings_by_name()["ftd"].changed({**OPTIONS, "ema": 0.75, **changed})
    return FTD(settings, name="ftd", recipe=RECIPE)


@pytest.fixture
def job(digits, teachers, cpu) -> Job:
    return Job(digits, teachers, cpu, ipc=1, shard=0, rounds=5, seed=7)


def test_the_images_move_as_those_of_mtt_and_their_average_is_the_product(job):
    """a_n = d^n u_0 + (1 - d) sum_i d^(n - i) u_i."""
    mtt = MTT(settings_by_name()["mtt"].changed(OPTIONS), name="mtt", recipe=RECIPE)
    method = ftd()
    plain, state = mtt.start(job), method.start(job)
    seen = [plain["images"]]
    assert torch.equal(method.finish(state).images, seen[0])
    for index in range(4):
        assert mtt.round(plain, index) == method.round(state, index)
        seen.append(plain["images"])
    assert torch.equal(state["images"], seen[-1])
    weights = [0.75**4] + [0.25 * 0.75 ** (4 - i) for i in range(1, 5)]
    average = sum(w * images.double() for w, images in zip(weights, seen, strict=True))
    shard = method.finish(state)
    torch.testing.assert_close(shard.images.double(), average, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(shard.images, seen[-1], atol=1e-3)
    assert shard.rate == float(plain["rate"]) and torch.equal(shard.targets, shard.classes)


def test_without_memory_the_average_is_the_images(job):
    method = ftd(ema=0.0)
    state = method.start(job)
    method.round(state, 0)
    torch.testing.assert_close(method.finish(state).images, state["images"])


def test_a_round_that_diverges_is_reported_and_spoils_nothing(job):
    method = ftd()
    state = method.start(job)
    method.round(state, 0)  # so that the average is not the images
    state["rate"] = torch.tensor(1e30)
    before = {name: value.clone() for name, value in state.items()}
    figures = method.round(state, 1)
    assert not all(torch.isfinite(torch.tensor(list(figures.values()))))
    assert all(torch.equal(before[name], state[name]) for name in before)


def test_messages_name_ftd_and_its_experts(job):
    with pytest.raises(ConfigError, match=r"methods\.ftd\.batch: 11 is more than the 10 images"):
        ftd(batch=11).start(job)
    with pytest.raises(ConfigError, match=r"methods\.ftd\.start_below.*raise flat_experts\.epochs"):
        ftd(start_below=3).start(job)


def settings_of(recipe: RecipeSettings, **changed: object) -> DistillSettings:
    options = {**OPTIONS, "ema": 0.9, **changed}
    recipe = recipe.changed({"loss": "ce", "drop_momentum": True})
    return DistillSettings(
        method="ftd", options=options, ipc=1, rounds=3, recipe=recipe, precision="float32"
    )


def test_a_resumed_shard_has_the_same_bits(
    digits, teachers, recipe_settings, cpu, tmp_path, resumed
):
    settings = settings_of(recipe_settings)
    assert isinstance(methods.build(settings), FTD)
    unbroken = distill_shard(tmp_path / "a", settings, 1, digits, teachers, Run(cpu))

    again = resumed(
        lambda *given: distill_shard(
            tmp_path / "b", settings, 1, digits, teachers, Run(cpu, *given)
        ),
        after=2,
    )
    assert again.content == unbroken.content and again.info["rate"] == unbroken.info["rate"]


def test_a_diverging_shard_names_its_round(digits, teachers, recipe_settings, cpu, tmp_path):
    settings = settings_of(recipe_settings, rate=1e30)
    message = r"in round 0 \(lr_images 5, lr_rate 0\.0001\): lower the learning"
    with pytest.raises(DivergenceError, match=message):
        distill_shard(tmp_path / "a", settings, 0, digits, teachers, Run(cpu))
