"""What a recipe means: its schedules, where it comes from, what it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from apm_core.errors import ConfigError
from apm_core.settings.training import PoolTraining
from apm_core.training.recipe import Recipe, teacher_recipe

RECIPE = Recipe(passes=5, lr=0.1, batch=4, drop=3, loss="l1")
WARM = Recipe(passes=9, lr=1.0, schedule="cosine", warmup=3)


@pytest.mark.parametrize(
    ("epochs", "drop_momentum", "high", "low"),
    [(1000, False, 501, 500), (1000, True, 502, 499), (250, False, 126, 125), (1, False, 1, 1)],
)
def test_schedule_for_epochs_is_that_of_the_field(epochs, drop_momentum, high, low):
    recipe = Recipe(passes=1, lr=0.02, drop_momentum=drop_momentum).with_epochs(epochs)
    rates = [recipe.rate(index) for index in range(recipe.passes)]
    assert rates == pytest.approx([0.02] * high + [0.002] * low)
    assert recipe.drop == high


def test_teachers_without_a_drop_keep_their_rate():
    recipe = Recipe(passes=4, lr=0.02)
    assert [recipe.rate(index) for index in range(4)] == [0.02] * 4


@pytest.mark.parametrize(("epochs", "drop_at"), [(1, 0.5), (4, 0.1)])
def test_the_first_epoch_of_a_teacher_has_its_rate(epochs, drop_at):
    recipe = teacher_recipe(PoolTraining(epochs=epochs, drop_at=drop_at, lr=0.05))
    rates = [recipe.rate(index) for index in range(epochs)]
    assert rates == pytest.approx([0.05, *[0.005] * (epochs - 1)])


def test_cosine_equals_that_of_torch():
    recipe = Recipe(passes=7, lr=0.3, schedule="cosine", drop=2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for index in range(7):
        assert recipe.rate(index) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_a_warm_up_rises_to_the_rate_and_the_cosine_falls_to_the_floor():
    rates = [replace(WARM, passes=8, warmup=2, floor=0.1).rate(i) for i in range(9)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[5] == pytest.approx(0.55) and rates[8] == pytest.approx(0.1)  # half-way, the end
    assert sorted(rates[2:], reverse=True) == rates[2:]
    short = [replace(WARM, passes=4, warmup=500).rate(i) for i in range(4)]
    assert short == pytest.approx([0.5, 1.0, 1.0, 0.5])  # never more than half of the passes


def test_half_a_cosine_ends_at_half_the_rate():
    recipe = Recipe(passes=300, lr=0.001, schedule="half_cosine", drop=2)
    rates = [recipe.rate(index) for index in range(300)]
    expected = [0.001 * (1 + math.cos(math.pi * e / 600)) / 2 for e in range(300)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[0] == 0.001 and rates[150] == pytest.approx(0.001 * (2 + 2**0.5) / 4)
    assert 0.0005 < rates[-1] < 0.000503


def test_recipe_of_a_config_section(recipe_settings):
    recipe = Recipe.of(recipe_settings)
    assert (recipe.passes, recipe.drop, recipe.lr, recipe.batch) == (7, 4, 0.05, 16)
    assert (recipe.loss, recipe.augment, recipe.schedule) == ("l1", "crop_scale", "step")
    assert Recipe(**recipe.to_dict()) == recipe


def test_hard_labels_change_the_loss_alone():
    assert RECIPE.with_hard_labels() == replace(RECIPE, loss="ce")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "l2"}, "loss: there is no loss 'l2'; known: ce, half_mse, kl, l1, soft_ce"),
        ({"schedule": "linear"}, "schedule: 'linear' is none of step, cosine, half_cosine"),
        ({"optimizer": "lamb"}, "optimizer: 'lamb' is none of sgd, adam, adamw"),
        ({"optimizer": "adam", "nesterov": True}, "nesterov: true goes with optimizer sgd: set it"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov: .*: set it to false for adamw"),
        ({"augment": "blur"}, "augment: there is no group 'blur'"),
    ],
)
def test_recipe_refuses_what_does_not_exist(wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(RECIPE, **wrong)
