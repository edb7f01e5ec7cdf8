"""APM and APMPlus against one plain autograd computation, and their bookkeeping."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.errors import ConfigError
from apm_core.methods.apm.apm import APM
from apm_core.methods.apm.plus import APMPlus
from apm_core.methods.base import Job
from apm_core.methods.bptt import BPTT
from apm_core.methods.movers import State
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.settings.methods.apm import APMPlusSettings, APMSettings
from apm_core.settings.methods.bptt import BPTTSettings
from apm_core.stages.distill import distill
from apm_core.training import augment
from apm_core.training.recipe import Recipe
from apm_core.training.teacher_pool import TeacherPool

SHAPE = Shape(channels=1, resolution=8, classes=4)
CPU = Compute(torch.device("cpu"), compile="off")


class DoubleSpec(Spec):
    """Networks in float64, so that sums in another order agree to twelve digits."""

    def network(self, device: torch.device) -> FlatNet:
        return FlatNet(self.build().double().to(device))

    def fresh(self, *stream: streams.Key) -> Tensor:
        return super().fresh(*stream).double()


class Images:
    """Stands in for the prepared data: 3 images of each of 4 classes."""

    def shard(self, ipc: int, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(index)
        images = torch.randn(4 * ipc, 1, 8, 8, generator=random, dtype=torch.float64)
        return images, torch.arange(4).repeat_interleave(ipc)


@pytest.fixture
def pool() -> TeacherPool:
    spec = DoubleSpec("convnet", SHAPE, width=6, depth=1)
    vectors = torch.stack([spec.fresh("teacher", i) for i in range(3)])
    net = spec.network(CPU.device)
    net.module.eval().requires_grad_(False)
    return TeacherPool(spec, vectors, net)


def job(pool: TeacherPool, *, segment: int | None = None, rounds: int = 6) -> Job:
    return job_of(Images(), pool, ipc=3, segment=segment, rounds=rounds)


def job_of(data: object, pool: TeacherPool, *, rounds: int = 6, **more: object) -> Job:
    return Job(data, pool, CPU, **{"ipc": 1, "shard": 0, "seed": 5, **more}, rounds=rounds)


RECIPE = Recipe(passes=1, lr=0.02).with_epochs(10)


def apm(recipe: Recipe = RECIPE, *, augment_images: bool = False, **changed: object) -> APM:
    settings = APMSettings(**changed)
    return APM(settings, name="apm", recipe=recipe, augment_images=augment_images)


def plus(recipe: Recipe = RECIPE, **changed: object) -> APMPlus:
    """As published, apart from what is changed."""
    published = {"ce": 0.1, "augment_images": False, "start": "real", "teacher_epochs": None}
    return APMPlus(APMPlusSettings(**{**published, **changed}), name="apm_plus", recipe=recipe)


def loss_of(
    images: Tensor,
    state: State,
    pool: TeacherPool,
    *,
    ce: float,
    logarithm: bool,
) -> Tensor:
    """Equation 4 of the paper in one expression, networks built anew."""

    def predict(vector: Tensor) -> Tensor:
        net = pool.spec.network(CPU.device)
        net.load(vector)
        return net.module(images)

    teacher = predict(pool.vectors[state["teacher"]])
    classes = state["classes"][state["batch"]]
    total = ce * F.cross_entropy(teacher, classes)
    for student in state["students"]:
        apart = (predict(student) - teacher).abs().mean(dim=1)
        total = total - (apart.log() if logarithm else apart).mean()
    return total


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("segment", [None, 1, 5])
def test_first_round_follows_the_gradient_of_the_whole_loss(pool, logarithm, segment):
    method = apm(logarithm=logarithm, lr_images=0.7)
    state = method.start(job(pool, segment=segment))
    before = state["images"].clone()
    figures = method.round(state, 0)

    leaf = before.clone().requires_grad_()
    loss = loss_of(leaf, state, pool, ce=0.1, logarithm=logarithm)
    gradient = torch.autograd.grad(loss, leaf)[0]

    torch.testing.assert_close(state["images"], before - 0.7 * gradient, rtol=1e-12, atol=1e-13)
    assert figures["match"] + 0.1 * figures["ce"] == pytest.approx(float(loss.detach()), rel=1e-6)


def run(pool: TeacherPool, method: APM, segment: int | None, rounds: int = 4) -> Tensor:
    state = method.start(job_of(Images(), pool, ipc=4, segment=segment))  # 16 images
    for index in range(rounds):
        method.round(state, index)
    return state["images"]


@pytest.mark.parametrize("options", [{}, {"logarithm": True, "augment_images": True}])
def test_segments_do_not_change_the_result(pool, options):
    """To the bit where a segment's logits fill whole vector registers, else but for the rounding of
    logarithms and exponentials at their ends.
    """
    whole = run(pool, apm(**options), None)
    for segment in (4, 8, 16, 100):
        assert torch.equal(run(pool, apm(**options), segment), whole)
    for segment in (1, 2, 5, 7):
        found = run(pool, apm(**options), segment)
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_the_order_of_the_checkpoints_does_not_matter(pool):
    method = apm(logarithm=True)
    state = method.start(job(pool))
    method.round(state, 0)
    gradient, _ = method.image_gradient(state, 1)
    backwards = {**state, "students": state["students"].flip(0)}
    torch.testing.assert_close(method.image_gradient(backwards, 1)[0], gradient, rtol=1e-12, atol=0)
    fewer = {**state, "students": state["students"][1:]}
    assert not torch.allclose(method.image_gradient(fewer, 1)[0], gradient, rtol=1e-3)


def test_augmented_images_get_the_gradient_through_the_augmentation(pool):
    method = apm(augment_images=True)
    state = method.start(job(pool, segment=5))
    before = state["images"].clone()
    method.round(state, 0)

    drawn = augment.draw(method.recipe.augment, 12, streams.generator(5, "distill", 0, 0, "images"))
    leaf = before.clone().requires_grad_()
    seen = augment.augment(leaf, augment.Draw(drawn.group, drawn.uniform.double()))
    loss = loss_of(seen, state, pool, ce=0.1, logarithm=False)
    expected = before - torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(state["images"], expected, rtol=1e-6, atol=1e-7)


def test_students_and_teachers_are_renewed_once_a_period(pool):
    method = apm()
    state = method.start(job(pool))
    students = []
    for index in range(7):
        method.round(state, index)
        students.append(state["students"].clone())
    renewed = [i for i in range(1, 7) if not torch.equal(students[i], students[i - 1])]
    assert renewed == [3, 6]


def test_checkpoints_are_those_of_the_published_schedule(pool):
    method = apm(recipe=Recipe(passes=1, lr=0.02).with_epochs(250))
    assert sorted(method.keep) == [50, 100, 150, 200, 250]
    assert method.recipe.passes == 251
    rates = [method.recipe.rate(index) for index in range(251)]
    assert rates.count(0.02) == 126
    assert rates.count(pytest.approx(0.002)) == 125


def test_images_outside_the_batch_move_by_momentum_alone(pool):
    method = apm(batch=5, keep_batch=False, lr_images=2.0)
    state = method.start(job(pool))
    method.round(state, 0)
    first = set(state["batch"].tolist())
    images, velocity = state["images"].clone(), state["images_velocity"].clone()
    method.round(state, 1)
    left = sorted(first - set(state["batch"].tolist()))
    assert left, "the seed draws two different batches"
    expected = images[left] - 2.0 * 0.5 * velocity[left]
    torch.testing.assert_close(state["images"][left], expected)


def test_one_batch_serves_the_whole_period(pool):
    for keep, same in ((True, True), (False, False)):
        method = apm(batch=5, keep_batch=keep)
        state = method.start(job(pool))
        method.round(state, 0)
        first = state["batch"].clone()
        method.round(state, 1)
        assert torch.equal(first, state["batch"]) == same


def test_image_rate_drops_to_three_tenths_at_half_of_the_rounds(pool):
    method = apm()
    state = method.start(job(pool, rounds=6))
    rates = [method.round(state, index)["lr_images"] for index in range(7)]
    assert rates == pytest.approx([1.0] * 3 + [0.3] * 4)


def test_a_step_says_where_to_move_and_moves_nothing(pool):
    method = apm(batch=5)
    state = method.start(job(pool))
    before, velocity = state["images"].clone(), state["images_velocity"].clone()
    update = method.step(state, 0)
    assert torch.equal(state["images"], before) and torch.equal(state["images_velocity"], velocity)
    rows = update.gradients["images"]
    assert torch.equal(rows.index, state["batch"]) and rows.values.shape == (5, 1, 8, 8)
    assert set(update.figures) == {"match", "ce"} and update.then is None


def drawn_epochs(teachers: TeacherPool) -> list[int]:
    """The epochs of the teachers of 40 periods, after checking that those are in use."""
    method = plus(teacher_epochs=[0, 2], period=1)
    state = method.start(job_of(Digits(), teachers, rounds=39))
    epochs = []
    for index in range(40):
        method.round(state, index)
        epochs.append(state["epoch"])
        group, member = divmod(state["teacher"], 2)
        kept = teachers.artifacts[group].arrays["snapshots"][member, state["epoch"]]
        assert torch.equal(teachers.net.vector, torch.from_numpy(kept))
    return epochs


class Digits:
    """Noise in place of digits."""

    def shard(self, ipc: int, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(index)
        return torch.randn(10 * ipc, 1, 8, 8, generator=random), torch.arange(10 * ipc) % 10


def test_teachers_come_from_the_epochs_asked_for(teachers):
    assert set(drawn_epochs(teachers)) == {0, 1, 2}


def test_initial_images_are_those_that_the_teachers_of_the_last_epoch_recognise(teachers, digits):
    method = plus(start="correct", teacher_epochs=[0, 1])
    state = method.start(job_of(digits, teachers, ipc=3, shard=1))
    kept = [one for group in teachers.artifacts for one in group.arrays["snapshots"][:, 1]]
    votes = [teachers.net.at(torch.from_numpy(one), state["images"]).argmax(1) for one in kept]
    hits = torch.stack(votes) == state["classes"]
    assert hits.any(dim=0).all() and state["classes"].bincount().tolist() == [3] * 10
    random_images, _ = digits.shard(3, 1)
    assert not torch.equal(state["images"], random_images)
    real = plus(teacher_epochs=[0, 1]).start(job_of(digits, teachers, ipc=3, shard=1))
    assert torch.equal(real["images"], random_images)


def test_epochs_that_the_teachers_do_not_have_are_refused(pool, teachers):
    with pytest.raises(
        ConfigError, match=r"teacher_epochs: \[1, 3\] are not epochs .* from 0 to 2"
    ):
        plus(teacher_epochs=[1, 3]).start(job_of(Digits(), teachers))
    with pytest.raises(ConfigError, match=r"teacher_epochs: \[2, 1\] are not epochs in ascending"):
        teachers.require_epochs([2, 1], "teacher_epochs")
    with pytest.raises(ConfigError, match=r"apm_plus\.teacher_epochs: 2 is after 1: swap them"):
        plus(teacher_epochs=[2, 1])
    ends = [replace(group, arrays={"parameters": None}) for group in teachers.artifacts]
    with pytest.raises(ConfigError, match=r"teacher_epochs: its teachers need snapshots: true"):
        plus(teacher_epochs=[1, 2]).start(job_of(Digits(), replace(teachers, artifacts=ends)))


UNROLLED = {
    "lr_images": 0.02,
    "lr_labels": 0.03,
    "lr_rate": 0.01,
    "rate": 0.2,
    "before": 2,
    "window": 3,
    "batch_real": 50,
}


def with_unrolled_rounds(**changed: object) -> APMPlus:
    recipe = Recipe(passes=1, lr=0.02, loss="soft_ce").with_epochs(10)
    return plus(recipe, **{"unrolled": {"rounds": 2, **UNROLLED}, **changed})


def test_the_last_rounds_unroll_training_from_the_matched_images(teachers, digits):
    method = with_unrolled_rounds(teacher_epochs=[0, 1])
    this = job_of(digits, teachers, rounds=4)
    state = method.start(this)
    rates = [method.round(state, index)["lr_images"] for index in range(3)]
    assert rates == pytest.approx([1.0, 0.3, 0.3])  # half of the rounds that match predictions
    images = state["images"].clone()

    expected = BPTT(
        BPTTSettings(**UNROLLED), name="apm_plus", recipe=Recipe(1, 0.02, loss="soft_ce")
    )
    expected.attach(replace(this, rounds=2))
    other = expected.at_rest(expected.state_of(images, torch.arange(10)))
    for index in (3, 4):
        figures = method.round(state, index)
        assert figures == pytest.approx(expected.round(other, index), rel=1e-4)
        assert figures["lr_targets"] == 0.03
    shard, wanted = method.finish(state), expected.finish(other)
    torch.testing.assert_close(shard.images, wanted.images, rtol=0, atol=1e-3)
    torch.testing.assert_close(shard.targets, wanted.targets, rtol=0, atol=1e-3)
    assert shard.rate == pytest.approx(wanted.rate) and shard.rate != 0.2


def test_rounds_that_match_predictions_are_those_of_apm(teachers, digits):
    """With the published options, APMPlus is APM on the same stream."""
    results = []
    for method in (apm(), plus()):
        state = method.start(job_of(digits, teachers, rounds=3))
        figures = [method.round(state, index) for index in range(4)]
        results.append((method.finish(state).images, figures))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_a_run_resumed_around_the_unrolled_rounds_has_the_same_bits(
    teachers, digits, resumed, stop_after
):
    this = job_of(digits, teachers, rounds=4)
    whole = distill(with_unrolled_rounds(), this, rounds=5)
    found = resumed(
        lambda resume, progress: distill(
            with_unrolled_rounds(), this, rounds=5, resume=resume, progress=progress
        ),
        after=stop_after,
    )
    assert torch.equal(found.images, whole.images) and torch.equal(found.targets, whole.targets)
    assert found.rate == whole.rate


def test_a_resumed_shard_is_at_home_until_its_rounds_go_through_training(teachers, digits):
    this = job_of(digits, teachers, rounds=4, home=torch.device("cpu"))
    method = with_unrolled_rounds()
    state = method.start(this)
    # a device on which nothing can be read, to see what is put there
    other = replace(this, compute=Compute(torch.device("meta"), compile="off"))
    for index in range(5):
        method.round(state, index)
        place = {
            key: value.device.type
            for key, value in method.placed(state, other).items()
            if isinstance(value, Tensor)
        }
        unrolls = index >= 3
        at_home = {key for key, device in place.items() if device == "cpu"}
        assert at_home == (set() if unrolls else {"images", "images_velocity"})
        assert ("images_first" in place) == unrolls


def test_one_round_may_be_all_that_there_is(teachers, digits):
    shard = distill(with_unrolled_rounds(), job_of(digits, teachers, rounds=0), rounds=1)
    assert shard.targets.shape == (10, 10) and shard.rate != 0.2


def test_without_rounds_the_images_are_those_of_the_start(teachers, digits):
    shard = distill(with_unrolled_rounds(), job_of(digits, teachers, rounds=0), rounds=0)
    assert torch.equal(shard.images, digits.shard(1, 0)[0])
    assert shard.targets is None and shard.rate is None


def test_unrolled_rounds_that_cannot_be_are_refused():
    with pytest.raises(
        ConfigError, match=r"apm_plus\.recipe\.loss: l1 does not go with learned labels"
    ):
        plus(replace(RECIPE, loss="l1"), unrolled={"rounds": 2, **UNROLLED})


def test_checkpoints_must_divide_the_epochs():
    with pytest.raises(ConfigError, match=r"checkpoints: 7 does not divide recipe\.epochs: 120"):
        apm(Recipe(passes=1, lr=0.02).with_epochs(120), checkpoints=7)


def test_batch_larger_than_the_shard_is_refused(pool):
    with pytest.raises(ConfigError, match=r"batch: 13 is more than the 12 images"):
        apm(batch=13).start(job(pool))
