"""How difficult images are, which of them an epoch trains on, and experts of that order."""

from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apm_core.data.examples import Examples
from apm_core.errors import ConfigError
from apm_core.nets.architectures.convnet import ConvNet
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.names import names_in
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import PoolSettings
from apm_core.settings.training import Curriculum, Network, OrderedTraining, PoolTraining
from apm_core.stages.teachers import train_group
from apm_core.training.difficulty import Lessons, gradient_norms, require_batches, taught
from apm_core.training.recipe import Recipe, teacher_recipe
from apm_core.training.trainer import Trainer

PLAN = Curriculum()


def test_the_score_is_the_norm_of_the_gradient_of_one_image():
    with streams.seeded("difficulty"):
        net = FlatNet(ConvNet(Shape(1, 8, 3), width=4, depth=1).double())
        images = torch.randn(40, 1, 8, 8, dtype=torch.float64)
    classes = torch.arange(40) % 3
    found = gradient_norms(net, Examples(images, classes))
    for row in range(40):
        logits = net(images[row : row + 1])
        loss = -logits.log_softmax(1)[0, classes[row]]
        parts = torch.autograd.grad(loss, list(net.module.parameters()), materialize_grads=True)
        norm = sum(float(part.square().sum()) for part in parts) ** 0.5
        assert float(found[row]) == pytest.approx(norm, rel=1e-9)


@pytest.mark.parametrize("name", names_in("nets.architectures"))
def test_every_architecture_can_score(name, cpu):
    spec = Spec(name, Shape(3, 32, 4), 8 if name in ("convnet", "resnet18") else None)
    net = spec.network(cpu.device)
    net.load(spec.fresh("score"))
    images = torch.randn(2, 3, 32, 32, generator=streams.generator("score"))
    given = Examples(images, torch.tensor([1, 3]))
    found = gradient_norms(net, given)
    for row in range(2):
        loss = F.cross_entropy(net(images[row : row + 1]), given.targets[row : row + 1])
        assert float(found[row]) == pytest.approx(float(net.gradient(loss).norm()), rel=1e-3)


@pytest.mark.parametrize(
    ("epoch", "first", "last"),
    [
        (0, 0, 750),
        (10, 0, 875),  # 0.75 + 0.25 * 10 / 20
        (19, 0, 987),
        (20, 0, 1000),
        (40, 0, 1000),
        (41, 100, 1000),
        (60, 100, 1000),
        (61, 200, 1000),
        (99, 200, 1000),
    ],
)
def test_an_epoch_trains_on_more_images_then_on_fewer_of_the_easiest(epoch, first, last):
    assert range(1000)[taught(PLAN, epoch, 1000)] == range(first, last)


def test_every_class_is_ranked_by_itself():
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 9.0, 3.0, 8.0, 7.0])
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    plan = Curriculum(easiest=0.5, all_from=1, drop_after=1, drop=0.25, drop_more_after=2)
    lessons = Lessons(plan, scores, classes)
    assert lessons(0).tolist() == [1, 3, 5, 7]
    assert lessons(1).tolist() == [1, 3, 2, 0, 5, 7, 6, 4]
    assert lessons(2).tolist() == [3, 2, 0, 7, 6, 4]


def test_an_epoch_without_a_batch_is_refused():
    classes = torch.arange(100) % 2
    require_batches(PLAN, classes, 74)
    message = "^curriculum: epoch 0 has 74 images, fewer than a batch of 75: lower"
    with pytest.raises(ConfigError, match=message):
        require_batches(PLAN, classes, 75)
    with pytest.raises(ConfigError, match="epoch 61 has 20 images"):
        require_batches(PLAN.changed({"drop_more": 0.8}), classes, 30)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_a_pass_over_some_images_sees_each_once_in_whole_batches(cpu, augmentation):
    with streams.seeded("among"):
        images = torch.randn(23, 1, 8, 8, dtype=torch.float64)
        start = FlatNet(ConvNet(Shape(1, 8, 3), width=4, depth=1).double())
    given = Examples(images, torch.arange(23) % 3)
    recipe = Recipe(passes=3, lr=0.1, batch=5, momentum=0.5, augment=augmentation)
    passes = (torch.arange(4, 18), None, torch.arange(12))  # of 5 + 5 + 3 + 1, all, 5 + 5 + 2
    seen = []

    class Watched(Trainer):
        def _step(self, rows, group):
            seen.append(rows.order[int(rows.position)].tolist())
            super()._step(rows, group)

    net = FlatNet(ConvNet(Shape(1, 8, 3), width=4, depth=1).double())
    one = Watched(net, recipe, cpu, given, networks=1)
    one.fit(start.vector, "among", among=lambda index: passes[index])
    assert [len(batch) for batch in seen] == [5, 5, 3, 5, 5, 5, 5, 3, 5, 5]
    first, whole, last = ([*chain(*seen[a:b])] for a, b in ((0, 3), (3, 8), (8, 10)))
    assert len(set(first)) == 13 and set(first) < set(range(4, 18))
    assert sorted(whole) == list(range(23))
    assert len(set(last)) == 10 and set(last) < set(range(12))

    plain = ConvNet(Shape(1, 8, 3), width=4, depth=1).double()
    torch.nn.utils.vector_to_parameters(start.vector.clone(), plain.parameters())
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.5, weight_decay=5e-4)
    if augmentation == "none":
        for batch in seen:
            sgd.zero_grad()
            F.cross_entropy(plain(images[batch]), given.targets[batch]).backward()
            for parameter in plain.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            sgd.step()
        for mine, theirs in zip(net.module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


CURRICULUM = {
    **{"easiest": 0.5, "all_from": 1, "drop_after": 1, "drop": 0.3, "drop_more_after": 2},
    **{"networks": 2, "epochs": 2},
}


@pytest.fixture(scope="module")
def settings() -> PoolSettings:
    training = OrderedTraining(
        per_job=2, epochs=3, augment="crop_scale", snapshots=True, curriculum=CURRICULUM, rho=0.01
    )
    return PoolSettings(training=training, network=Network(width=4, depth=1), precision="float32")


@pytest.fixture(scope="module")
def group(settings, digits, cpu, tmp_path_factory):
    path = tmp_path_factory.mktemp("ordered") / "0"
    return train_group(path, settings, [0, 1], digits, Run(cpu))


def test_experts_see_the_images_in_the_order_of_all_networks_scores(group, settings, digits, cpu):
    spec, train = Spec("convnet", digits.shape, 4, 1), digits.examples("train", cpu)
    plain = Recipe(passes=2, lr=0.05, augment="crop_scale", drop=None)
    judge = Trainer(spec.network(cpu.device), plain, cpu, train, networks=1)
    norms = []
    for number in range(2):
        judge.fit(spec.fresh(0, "difficulty", number, "weights"), 0, "difficulty", number)
        norms.append(gradient_norms(judge.net, train))
    lessons = Lessons(Curriculum(**CURRICULUM), (norms[0] + norms[1]) / 2, train.targets)
    one = Trainer(
        spec.network(cpu.device), teacher_recipe(settings.training), cpu, train, networks=1
    )
    one.fit(spec.fresh(0, "teacher", 1, "weights"), 0, "teacher", 1, among=lessons)
    np.testing.assert_array_equal(one.net.vector, group.arrays["parameters"][1])
    hard = lessons(2)
    assert float(norms[0][hard].mean()) > float(norms[0].mean())


def test_an_expert_does_not_depend_on_those_beside_it(group, settings, digits, cpu, tmp_path):
    alone = train_group(tmp_path / "a", settings, [1], digits, Run(cpu))
    np.testing.assert_array_equal(alone.arrays["snapshots"][0], group.arrays["snapshots"][1])


def test_a_group_killed_anywhere_has_the_same_bits(group, settings, digits, cpu, tmp_path):
    for last in (1, 3, 5, 8):  # passes: 2 + 2 of the scores, 3 + 3 of the experts
        shown = []

        def kill(done, total, figures, last=last, shown=shown):
            shown.append((done, total))
            if done == last:
                raise KeyboardInterrupt

        resume, target = Resume(tmp_path / "resume", [last], every=0), tmp_path / f"{last}"
        with pytest.raises(KeyboardInterrupt):
            train_group(target, settings, [0, 1], digits, Run(cpu, resume, kill))
        assert shown == [(done, 10) for done in range(1, last + 1)]
        shown.clear()
        again = Run(cpu, resume, lambda *call, shown=shown: shown.append(call[:2]))
        found = train_group(target, settings, [0, 1], digits, again)
        assert shown[0][0] in (last, last + 1) and shown[-1] == (10, 10)
        assert found.content == group.content


def test_the_other_pools_have_no_curriculum_and_keep_their_keys(settings):
    plan = Plan(RunSettings.of({}))
    for name in ("teachers", "aligned_teachers", "experts", "flat_experts"):
        told = plan.pool(name)
        assert type(told.training) is PoolTraining and "curriculum" not in told.text
        assert PoolSettings.read(told.text) == told
    told = plan.pool("ordered_experts")
    assert type(PoolSettings.read(told.text).training) is OrderedTraining
    assert PoolSettings.read(told.text) == told
    assert told.training.curriculum == Curriculum()


def test_wrong_curricula_are_refused_in_one_line():
    for wrong, message in (
        ({"easiest": 0}, r"^config: ordered_experts\.curriculum\.easiest: 0 is .*above 0"),
        ({"drop": 1.0}, r"^config: ordered_experts\.curriculum\.drop: 1.0 is .*below 1"),
        ({"hard": 1}, r"^config: ordered_experts\.curriculum\.hard: there is no such key"),
    ):
        with pytest.raises(ConfigError, match=message) as found:
            RunSettings.of({"ordered_experts": {"curriculum": wrong}})
        assert "\n" not in str(found.value)
    with pytest.raises(ConfigError, match=r"experts\.curriculum: there is no such key"):
        RunSettings.of({"experts": {"curriculum": {}}})
