"""Coresets: scores and picks against plain computations, the order that shards are cut from."""

from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apm_core import methods
from apm_core.data.prepared import PreparedData
from apm_core.errors import ConfigError, DataError
from apm_core.methods.base import Job
from apm_core.methods.selection.coreset import Coreset
from apm_core.methods.selection.greedy import Herding, KCenter
from apm_core.methods.selection.scored import arranged
from apm_core.nets.flat import FlatNet
from apm_core.runtime.device import Compute
from apm_core.runtime.run import Run
from apm_core.settings.methods.coreset import METHODS
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import DistillSettings
from apm_core.stages.distill import distill_shard
from apm_core.training.teacher_pool import TeacherPool

EPOCHS = 5  # of the hand-made networks
EARLY = {  # settings for which two epochs are enough
    "el2n": {"epoch": 1},
    "grand": {"epoch": 1},
    "forgetting": {"epochs": 2},
    "cad": {"window": [1, 1], "successive": 2},
}


def plan_of(*entries: str, **config: Any) -> Plan:
    """A run on digits with teachers as those of the tests, whose last epoch is the second."""
    base = {
        "ipc": 6,
        "distill": {"methods": list(entries)},
        "teachers": {"epochs": 2, "snapshots": True},
        "methods": EARLY,
    }
    return Plan(RunSettings.of({**base, **config}))


def coreset(name: str, **changed: Any) -> Coreset:
    options = METHODS[name].changed(changed).model_dump(mode="json")
    return methods.build(DistillSettings(method=name, options=options, ipc=2))


def points(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_herding_brings_the_mean_of_the_picks_to_that_of_all(seed):
    given = points(11, seed)
    rows, picked = given.numpy(), []
    while len(picked) < len(rows):
        rest = [i for i in range(len(rows)) if i not in picked]
        distance = {
            i: np.linalg.norm(rows[[*picked, i]].mean(axis=0) - rows.mean(axis=0)) for i in rest
        }
        picked.append(min(rest, key=distance.get))
        assert Herding.pick(given, len(picked)) == picked


@pytest.mark.parametrize("seed", range(4))
def test_k_center_picks_what_is_farthest_from_the_picks(seed):
    given = points(11, seed)
    rows = given.numpy()
    picked = [int(np.linalg.norm(rows - rows.mean(axis=0), axis=1).argmin())]
    while len(picked) < len(rows):
        distance = [
            -1.0 if i in picked else min(np.linalg.norm(row - rows[j]) for j in picked)
            for i, row in enumerate(rows)
        ]
        picked.append(int(np.argmax(distance)))
        assert KCenter.pick(given, len(picked)) == picked
    # a greedy cover has at most twice the radius of the best one
    between = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    best = min(between[:, list(c)].min(axis=1).max() for c in combinations(range(11), 3))
    assert best <= between[:, KCenter.pick(given, 3)].min(axis=1).max() <= 2 * best


@pytest.mark.parametrize("kind", [Herding, KCenter])
def test_equal_points_are_picked_once_each(kind):
    assert sorted(kind.pick(points(2, 0).repeat(3, 1), 6)) == list(range(6))


def test_scores_are_taken_from_below_above_or_the_median():
    keys = [np.array([3.0, 1.0, 2.0, 1.0, np.inf]), np.array([0.0, 9.0, 0.0, 5.0, 0.0])]
    assert arranged(keys, "lowest").tolist() == [3, 1, 2, 0, 4]
    assert arranged(keys, "highest").tolist() == [4, 0, 2, 1, 3]
    assert arranged(keys, "middle").tolist() == [2, 1, 0, 3, 4]
    assert arranged([np.array([4.0, 2.0, 1.0, 3.0])], "middle").tolist() == [1, 3, 2, 0]


class Table(nn.Module):
    """Answers that do not depend on the pixels: row i of the parameters for an image of value i."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(images, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x.flatten(1)[:, 0].long()]


@dataclass(frozen=True)
class Numbered(PreparedData):
    """Images whose first pixel is their row; the real classes."""

    def at(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(self.artifact.arrays["train_labels"][rows])
        return torch.from_numpy(rows).float().view(-1, 1, 1, 1), labels


@pytest.fixture
def numbered(digits) -> Numbered:
    return Numbered(digits.artifact, digits.whitening)


@pytest.fixture
def answers(numbered) -> np.ndarray:
    """Logits (networks, epochs, images, classes) of three networks that answer at random, of which
    the second never knows image 0 of class 4.
    """
    labels = numbered.artifact.arrays["train_labels"]
    random = np.random.default_rng(0)
    found = random.normal(size=(3, EPOCHS + 1, len(labels), 10)).astype(np.float32)
    found[..., np.arange(len(labels)), labels] += np.float32(1.5)
    found[1, :, numbered.order(4)[0], 4] = -9
    return found


@pytest.fixture
def pool(answers, teachers) -> TeacherPool:
    """Networks with these answers."""
    snapshots = answers.reshape(3, EPOCHS + 1, -1)
    group = replace(
        teachers.artifacts[0],
        arrays={"snapshots": snapshots},
        shapes={"snapshots": snapshots.shape},
    )
    vectors = torch.from_numpy(snapshots[:, -1].copy())
    return TeacherPool(teachers.spec, vectors, FlatNet(Table(answers.shape[2])), (group,))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def keys_of(method: Coreset, data: PreparedData, pool: TeacherPool, c: int) -> list[np.ndarray]:
    job = Job(data, pool, Compute(torch.device("cpu"), compile="off"), 2, 0, 0, 0)
    images, _ = data.at(data.order(c))
    return [key.numpy() for key in method.keys(job, images, c)]


def test_el2n_is_the_length_of_the_error(numbered, answers, pool):
    method = coreset("el2n", networks=2, epoch=1)
    for c in (0, 4):
        error = softmax(answers[:2, 1, numbered.order(c)]) - np.eye(10)[c]
        (found,) = keys_of(method, numbered, pool, c)
        np.testing.assert_allclose(found, np.sqrt((error**2).sum(-1)).mean(0), rtol=1e-12)


def test_grand_is_the_length_of_the_gradient_in_the_last_layer(digits, teachers):
    (found,) = keys_of(coreset("grand", networks=3, epoch=1), digits, teachers, 7)
    images, _ = digits.at(digits.order(7)[:5])
    expected = np.zeros(5)
    for member in range(3):
        module = teachers.spec.build().double()
        FlatNet(module).load(teachers.after(1)[member])
        for number, image in enumerate(images.double()):
            loss = nn.functional.cross_entropy(module(image[None]), torch.tensor([7]))
            gradients = torch.autograd.grad(loss, list(module.classifier.parameters()))
            expected[number] += float(torch.cat([g.flatten() for g in gradients]).norm()) / 3
    np.testing.assert_allclose(found[:5], expected, rtol=1e-4)


def test_forgetting_counts_the_epochs_that_lose_an_image(numbered, answers, pool):
    method = coreset("forgetting", networks=3, epochs=EPOCHS)
    for c in (0, 4):
        rows = numbered.order(c)
        events, loss = keys_of(method, numbered, pool, c)
        expected = np.zeros(len(rows))
        for number, row in enumerate(rows):
            for member in range(3):
                right = [answers[member, e, row].argmax() == c for e in range(1, EPOCHS + 1)]
                lost = sum(a and not b for a, b in pairwise(right))
                expected[number] += lost / 3 if any(right) else np.inf
        np.testing.assert_allclose(events, expected, rtol=1e-12)
        final = -np.log(softmax(answers[:, EPOCHS, rows])[..., c]).mean(axis=0)
        np.testing.assert_allclose(loss, final, rtol=1e-12)
    assert events[0] == np.inf


def test_cad_is_the_mean_deviation_in_a_window(numbered, answers, pool):
    method = coreset("cad", networks=3, window=[2, 3], successive=3)
    probability = softmax(answers[:, :, numbered.order(4)])[..., 4]
    deviations = [probability[:, e : e + 3].std(axis=1, ddof=1) for e in (2, 3)]
    (found,) = keys_of(method, numbered, pool, 4)
    np.testing.assert_allclose(found, np.mean(deviations, axis=(0, 1)), rtol=1e-12)


def embedded(images: Tensor, *modules: nn.Module) -> Tensor:
    """Embeddings of length 1, joined."""
    with torch.no_grad():
        parts = [getattr(module, "embed", module)(images).double().numpy() for module in modules]
    rows = [part / np.sqrt((part**2).sum(axis=1, keepdims=True)) for part in parts]
    return torch.from_numpy(np.concatenate(rows, axis=1))


@pytest.mark.parametrize(("name", "kind"), [("herding", Herding), ("k_center", KCenter)])
def test_picks_are_by_the_embeddings_of_the_first_networks(digits, teachers, cpu, name, kind):
    modules = []
    for member in range(2):
        modules.append(teachers.spec.build())
        FlatNet(modules[-1]).load(teachers.vectors[member])
    job = Job(digits, teachers, cpu, 3, 0, 0, 0)
    images, _ = digits.at(digits.order(2))
    for count in (1, 2):
        expected = kind.pick(embedded(images, *modules[:count]), 6)
        assert coreset(name, networks=count).order(job, images, 2, 6).tolist() == expected


def test_logits_stand_in_for_embeddings(numbered, answers, pool, cpu):
    job = Job(numbered, pool, cpu, 3, 0, 0, 0)
    images, _ = numbered.at(numbered.order(2))
    module = Table(answers.shape[2])
    FlatNet(module).load(pool.vectors[0])
    expected = Herding.pick(embedded(images, module), 5)
    assert coreset("herding").order(job, images, 2, 5).tolist() == expected


@pytest.fixture
def shard(tmp_path, digits, teachers, cpu):
    """Makes a shard as a job of the pipeline does; returns its images, class by class."""

    def run(name: str, plan: Plan, number: int = 0, *, data=digits, pool=teachers, compute=cpu):
        settings, path = plan.distill(name), tmp_path / "shard.zarr.zip"
        found = distill_shard(path, settings, number, data, pool, Run(compute))
        assert found.arrays["classes"].tolist() == np.repeat(range(10), plan.shard_ipc).tolist()
        assert "targets" not in found.arrays
        return found.arrays["images"].reshape(10, plan.shard_ipc, -1)

    return run


@pytest.mark.parametrize("name", METHODS)
def test_shards_are_parts_of_one_order_and_share_no_image(shard, digits, name):
    whole = shard(name, plan_of(name))
    two = plan_of(name, distill={"methods": [name], "shards": 2})
    parts = [shard(name, two, number) for number in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(shard(name, plan_of(name, ipc=2)), whole[:, :2])
    for c in range(10):
        real = digits.at(digits.order(c))[0].flatten(1).numpy()
        rows = [np.flatnonzero((real == image).all(axis=1)).tolist() for image in whole[c]]
        assert all(rows) and len({row[0] for row in rows}) == 6
        assert [row[0] for row in rows] != list(range(6))


@pytest.mark.parametrize("name", METHODS)
def test_neither_precision_nor_the_test_split_has_a_part(shard, digits, name):
    arrays = {key: digits.artifact.arrays[key] for key in ("train_images", "train_labels")}
    blind = PreparedData(replace(digits.artifact, arrays=arrays), digits.whitening)
    bf16 = Compute(torch.device("cpu"), "bf16", compile="off")
    plan = plan_of(name, ipc=2)
    found = shard(name, plan, data=blind, compute=bf16)
    np.testing.assert_array_equal(found, shard(name, plan))
    assert plan.distill(name) == plan_of(name, ipc=2, compute={"precision": "bf16"}).distill(name)


def test_a_coreset_has_labels_of_teachers_or_of_its_classes():
    names = [*METHODS, *(f"{name}_hard" for name in METHODS)]
    plan = plan_of(*names)
    for name in METHODS:
        hard = f"{name}_hard"
        assert plan.distill(name) == plan.distill(hard)
        assert (plan.distill_pool(hard), plan.label_pool(hard)) == ("teachers", None)
        assert (plan.label_pool(name), plan.merge(name).labels) == ("teachers", "teacher")
        labelled = plan.merge(hard)
        assert (labelled.labels, labelled.recipe.loss) == ("classes", "ce")


@pytest.mark.parametrize("name", EARLY)
def test_networks_without_the_epochs_are_refused_in_one_line(shard, teachers, name):
    bare = replace(teachers, artifacts=tuple(replace(one, arrays={}) for one in teachers.artifacts))
    key = f"methods.{name}.{next(iter(EARLY[name]))}"
    with pytest.raises(ConfigError, match=rf"^{key}: its teachers need snapshots: true[^\n]*$"):
        shard(name, plan_of(name), pool=bare)
    late = {
        **{"el2n": {"epoch": 3}, "grand": {"epoch": 3}},
        **{"forgetting": {"epochs": 3}, "cad": {"window": [1, 2], "successive": 2}},
    }
    plan = plan_of(name, methods=late, teachers={"epochs": 3, "snapshots": True})
    with pytest.raises(ConfigError, match=rf"^{key}: \[3\] are not epochs [^\n]* from 0 to 2"):
        shard(name, plan)


def test_what_cannot_be_is_refused(shard, numbered, pool):
    with pytest.raises(ConfigError, match=r"methods\.cad\.window: 2 is after 1: swap them"):
        coreset("cad", window=[2, 1])
    with pytest.raises(ConfigError, match=r"methods\.grand: convnet has no embedding"):
        shard("grand", plan_of("grand"), data=numbered, pool=pool)
    with pytest.raises(DataError, match=r"training images, shard 0 needs 300: lower ipc"):
        shard("herding", plan_of("herding", ipc=300))
