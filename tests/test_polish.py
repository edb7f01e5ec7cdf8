"""Labels and rates that are learned when the images are there."""

import numpy as np
import pytest
import torch

from apm_core import distilled
from apm_core.data.examples import Examples
from apm_core.errors import DivergenceError
from apm_core.methods.apm import polish
from apm_core.methods.base import Job, Shard
from apm_core.methods.shared.recognised import correct_shard
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import store, streams
from apm_core.runtime.run import Run
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge
from apm_core.training.inference import accuracy
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer

RECIPE = Recipe(passes=1, lr=0.05, batch=16, loss="l1", augment="none").with_epochs(10)
SPEC = Spec("convnet", Shape(channels=1, resolution=8, classes=4), width=6, depth=1)


def features(net: FlatNet, vector: torch.Tensor, images: torch.Tensor) -> np.ndarray:
    """What the head sees, with a column of ones, by the module's own layers."""
    net.load(vector)
    with torch.no_grad():
        found = net.module.features(images).flatten(1).numpy()
    return np.column_stack([found, np.ones(len(found))])


def test_labels_solve_the_least_squares_problem_of_all_students():
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    images, real, labels, logits = draw(6, 1, 8, 8), draw(30, 1, 8, 8), draw(6, 4), draw(30, 4)
    net = FlatNet(SPEC.build().double())
    students = [SPEC.fresh("student", i).double() for i in range(2)]
    found = polish.learned_labels(net, students, Examples(images, labels), real, logits)

    stacked = []
    for student in students:
        h, seen = features(net, student, images), features(net, student, real)
        kernel = h @ h.T
        ridge = polish.RIDGE * np.trace(kernel) / 6
        stacked.append(seen @ h.T @ np.linalg.inv(kernel + ridge * np.eye(6)))
    hold = polish.PULL * sum((a**2).sum() for a in stacked) / 6
    left = np.vstack([*stacked, np.sqrt(hold) * np.eye(6)])
    right = np.vstack([logits.numpy()] * 2 + [np.sqrt(hold) * labels.numpy()])
    expected = np.linalg.lstsq(left, right, rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.fixture
def start(digits, teachers, cpu):
    """A job, and real images of it as they come out of a method."""
    job = Job(digits, teachers, cpu, ipc=3, shard=0, rounds=4, seed=5)
    return job, Shard(*job.real_images())


def test_the_rate_is_the_one_that_does_best_on_real_training_images(start, teachers, digits, cpu):
    job, shard = start
    found = polish.polished(shard, job, RECIPE, 1, labels=False, rate=True)
    assert found.targets is None and torch.equal(found.images, shard.images)
    train = digits.examples("train", cpu)
    order = torch.randperm(
        len(train.targets), generator=streams.generator(*job.stream, "polish", "real")
    )
    rows = order[: polish.REAL]
    real = Examples(train.images[rows], train.targets[rows])
    examples = Examples(shard.images, teachers.logits(None, shard.images, cpu, epoch=1))
    scores = {}
    for factor in polish.RATES:
        recipe = Recipe(**{**RECIPE.to_dict(), "lr": factor * RECIPE.lr})
        one = Trainer(teachers.spec.network(cpu.device), recipe, cpu, examples, networks=1)
        one.fit(teachers.spec.fresh(*job.stream, "rate", "network"), *job.stream, "rate")
        scores[recipe.lr] = accuracy(one.net, real, cpu)
    assert len(set(scores.values())) > 1
    assert found.rate == max(scores, key=scores.__getitem__)


def test_rates_that_diverge_are_left_out(start, monkeypatch):
    job, shard = start
    monkeypatch.setattr(polish, "RATES", (1e12, 1.0))
    assert polish.polished(shard, job, RECIPE, None, labels=False, rate=True).rate == RECIPE.lr
    monkeypatch.setattr(polish, "RATES", (1e12,))
    with pytest.raises(DivergenceError, match="lower the learning rate"):
        polish.polished(shard, job, RECIPE, None, labels=False, rate=True)


def settings_of(method: str, recipe: dict) -> dict:
    options = {"lr_images": 1.0, "momentum_images": 0.5, "checkpoints": 2, "period": 2}
    options |= {"batch": None, "ce": 0.1, "logarithm": True, "keep_batch": True}
    options |= {"augment_images": False, "start": "correct"}
    options |= {"learn_labels": True, "learn_rate": True}
    settings = {"method": method, "options": options, "ipc": 2, "seed": 0}
    return settings | {"recipe": recipe, "precision": "float32"}


def test_the_control_has_the_images_before_the_first_round_and_what_is_learned_about_them(
    digits, teachers, recipe_settings, cpu, tmp_path
):
    settings = settings_of("random_plus", recipe_settings)
    found = distill_shard(tmp_path / "a", settings, 1, digits, teachers, Run(cpu))
    given = correct_shard(digits, teachers.net, teachers.vectors, cpu, 2, 1)
    np.testing.assert_array_equal(found.arrays["images"], given[0])
    assert found.arrays["targets"].shape == (20, 10) and found.info["rate"] > 0


def test_learned_labels_and_rate_are_part_of_the_set(
    digits, teachers, recipe_settings, cpu, tmp_path
):
    settings = {**settings_of("apm_plus", recipe_settings), "rounds": 1}
    shard = distill_shard(tmp_path / "a", settings, 0, digits, teachers, Run(cpu))
    recipe = {"method": "apm_plus", "recipe": recipe_settings, "seed": 0}
    merge(
        tmp_path / "set",
        {**recipe, "labels": "mean", "label_epoch": None},
        [tmp_path / "a"],
        digits,
        teachers,
        cpu,
    )
    found = distilled.load(tmp_path / "set")
    assert torch.equal(found.targets, torch.from_numpy(shard.arrays["targets"]))
    given = teachers.logits(None, found.images, cpu)
    assert not torch.allclose(found.targets, given, atol=1e-2)
    assert found.recipe.lr == store.read(tmp_path / "a", "shard").info["rate"]
    assert found.recipe.lr / recipe_settings["lr"] in polish.RATES
