"""The loop around a method, and real shards of APM: interrupted, resumed, cut in segments."""

import math
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from apm_core import methods as library
from apm_core.errors import ConfigError, DivergenceError
from apm_core.methods.base import Job, Method, OneShot, Shard, Update
from apm_core.methods.history import POINTS, SNAPSHOTS, History, Recorder, shown
from apm_core.methods.movers import Momentum, State
from apm_core.methods.selection import random_real
from apm_core.nets.spec import Spec
from apm_core.runtime import store, streams
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.method import MethodSettings, methods
from apm_core.settings.plan import EXCLUDED_OPTIONS, Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import DistillSettings
from apm_core.settings.training import Network, RecipeSettings
from apm_core.stages.distill import distill, distill_shard
from apm_core.training.recipe import Recipe

ROUNDS = 7  # R + 1


class Walk(Method):
    """Moves by random steps; remembers the rounds that it did and how often it was prepared."""

    def __init__(self, **terms: float) -> None:
        super().__init__(MethodSettings(), name="walk", recipe=Recipe(passes=1, lr=1.0))
        self.done: list[int] = []
        self.begun, self.attached, self.terms = 0, 0, terms
        self.movers = {"images": Momentum(0.5), "labels": Momentum(0.25, momentum=0.5)}

    def init(self, job: Job) -> State:
        self.begun += 1
        self.attach(job)
        labels = torch.zeros(2)
        images = torch.zeros(2, 1, 2, 2)
        return {"images": images, "labels": labels, "classes": torch.arange(2), "name": "x"}

    def attach(self, job: Job) -> None:
        self.job = job
        self.attached += 1

    def rehearse(self, state: State, clock) -> tuple[int, float]:
        return len(state["images"]), 0.0 * clock()

    def step(self, state: State, index: int) -> Update:  # noqa: ARG002 - it walks blindly
        self.done.append(index)
        step = torch.rand(2, 1, 2, 2, generator=streams.generator(*self.job.stream, index))
        bad = self.terms if index == 4 else {}
        gradients = {"images": -2 * step, "labels": torch.ones(2)}  # at a rate of 0.5: + step
        return Update({"drift": 1.0, **bad}, gradients)


@pytest.fixture
def job(cpu):
    return Job(data=None, pool=None, compute=cpu, ipc=1, shard=3, rounds=ROUNDS - 1, seed=5)


def stop_at(number: int):
    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done == number:
            raise KeyboardInterrupt

    return stop


def test_every_round_is_done_once_and_shown(job):
    method, shown = Walk(), []
    result = distill(method, job, rounds=ROUNDS, progress=lambda *call: shown.append(call))
    assert method.done == list(range(ROUNDS)) and method.attached == 1
    assert [call[:2] for call in shown] == [(index + 1, ROUNDS) for index in range(ROUNDS)]
    assert shown[0][2] == {"drift": 1.0, "lr_images": 0.5, "lr_labels": 0.25}
    steps = [
        torch.rand(2, 1, 2, 2, generator=streams.generator(5, "distill", 3, index))
        for index in range(ROUNDS)
    ]
    torch.testing.assert_close(result.images, torch.stack(steps).sum(0))
    assert result.classes.tolist() == [0, 1]


def test_without_rounds_the_initial_images_are_the_result(job):
    method = Walk()
    assert torch.equal(distill(method, job, rounds=0).images, torch.zeros(2, 1, 2, 2))
    assert method.done == []


def test_an_interrupted_run_is_continued_where_it_was_saved(job, tmp_path):
    unbroken = distill(Walk(), job, rounds=ROUNDS)
    resume = Resume(tmp_path, "walk", every=0)
    first, second = Walk(), Walk()
    with pytest.raises(KeyboardInterrupt):
        distill(first, job, rounds=ROUNDS, resume=resume, progress=stop_at(4))
    result = distill(second, job, rounds=ROUNDS, resume=resume)
    assert first.done + second.done == list(range(ROUNDS))
    assert (second.begun, second.attached) == (0, 1)
    assert torch.equal(result.images, unbroken.images)
    assert resume.load()["round"] == ROUNDS


def test_rounds_since_the_last_save_are_done_again(job, tmp_path):
    resume, method = Resume(tmp_path, "walk", every=1000), Walk()
    with pytest.raises(KeyboardInterrupt):
        distill(Walk(), job, rounds=ROUNDS, resume=resume, progress=stop_at(4))
    assert resume.load() is None
    result = distill(method, job, rounds=ROUNDS, resume=resume)
    assert method.done == list(range(ROUNDS))
    assert torch.equal(result.images, distill(Walk(), job, rounds=ROUNDS).images)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_names_round_term_and_rates(job, tmp_path, value):
    resume = Resume(tmp_path, "walk", every=0)
    message = (
        rf"the term 'match' is {value} in round 4 \(lr_images 0\.5, lr_labels 0\.25\):"
        " lower the learning rates"
    )
    with pytest.raises(DivergenceError, match=message):
        distill(Walk(match=value), job, rounds=ROUNDS, resume=resume)
    assert resume.load()["round"] == 4


def test_figures_that_are_not_finite_leave_the_state_as_it_was(job):
    for value in (math.nan, math.inf):
        method = Walk(match=value)
        state = method.start(job)
        for index in range(4):
            method.round(state, index)
        assert state["labels"].tolist() == [-0.25 * (1 + 1.5 + 1.75 + 1.875)] * 2
        before = {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
        assert {"images_velocity", "labels_velocity"} < before.keys()
        figures = method.round(state, 4)
        assert figures == {"drift": 1.0, "match": value, "lr_images": 0.5, "lr_labels": 0.25} or (
            math.isnan(value) and math.isnan(figures["match"])
        )
        assert all(torch.equal(state[key], tensor) for key, tensor in before.items())
        method.round(state, 5)
        assert not torch.equal(state["images"], before["images"])


class Follow(Walk):
    """Counts what has moved, once all has."""

    def step(self, state: State, index: int) -> Update:
        update, before = super().step(state, index), dict(state)

        def then(moved: State) -> None:
            assert all(torch.equal(state[key], before[key]) for key in ("images", "labels"))
            changed = [key for key in update.gradients if not torch.equal(moved[key], before[key])]
            self.seen = {key: moved[key].clone() for key in changed}
            moved["sum"] = moved["images"].sum()

        return Update(update.figures, update.gradients, then)


def test_what_follows_sees_all_that_moved_and_may_change_the_state(job):
    method = Follow(match=math.nan)
    state = method.start(job)
    for index in range(4):
        method.round(state, index)
        assert method.seen.keys() == {"images", "labels"}
        assert all(torch.equal(state[key], tensor) for key, tensor in method.seen.items())
        assert state["sum"] == state["images"].sum() != 0
    del method.seen
    method.round(state, 4)
    assert not hasattr(method, "seen"), "nothing follows a round that moved nothing"


def test_a_rehearsal_leaves_the_state_alone(job):
    method = Follow()
    state = method.start(job)
    before = {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
    images, seconds = Method.rehearse(method, state, iter([1.0, 3.5]).__next__)
    assert (images, seconds) == (2, 2.5) and method.done == [0]
    assert state.keys() == {*before, "name"}
    assert all(torch.equal(state[key], tensor) for key, tensor in before.items())


@pytest.fixture
def settings(recipe_settings):
    options = {
        "checkpoints": 2,
        "batch": 15,
        "ce": 0.1,
        "logarithm": True,
        "keep_batch": False,
        "augment_images": True,
        "start": "real",
        "teacher_epochs": None,
    }
    return DistillSettings(
        method="apm_plus",
        options=options,
        ipc=2,
        rounds=5,
        recipe=recipe_settings,
        precision="float32",
    )


def test_a_shard_of_apm_starts_from_real_images_and_moves_them(
    settings, digits, teachers, cpu, tmp_path
):
    found = distill_shard(tmp_path / "a", settings, 1, digits, teachers, Run(cpu))
    images, classes = digits.shard(2, 1)
    np.testing.assert_array_equal(found.arrays["classes"], classes)
    assert found.arrays["images"].dtype == np.float32
    moved = np.abs(found.arrays["images"] - images.numpy()).max((1, 2, 3))
    assert (moved > 0).sum() > 15 and np.isfinite(found.arrays["images"]).all()
    assert found.inputs == {
        "data": digits.artifact.content,
        "teachers0": teachers.artifacts[0].content,
        "teachers1": teachers.artifacts[1].content,
    }
    assert found.settings == settings.to_dict() and found.info["shard"] == 1
    assert found.info["seconds"] > 0 and found.info["peak_memory_bytes"] > 10**7


@pytest.mark.parametrize("killed_at", [1, 2, 3, 5])
def test_a_shard_that_is_killed_and_resumed_has_the_same_bits(
    settings, digits, teachers, cpu, tmp_path, killed_at
):
    unbroken = distill_shard(tmp_path / "a", settings, 0, digits, teachers, Run(cpu))
    resume, shown = Resume(tmp_path / "resume", "shard", every=0), []
    target = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        distill_shard(target, settings, 0, digits, teachers, Run(cpu, resume, stop_at(killed_at)))
    assert not target.exists()
    resumed = distill_shard(
        target,
        settings,
        0,
        digits,
        teachers,
        Run(cpu, Resume(tmp_path / "resume", "shard"), lambda *call: shown.append(call[:2])),
    )
    assert shown == [(done, 6) for done in range(killed_at + 1, 7)]
    assert resumed.content == unbroken.content


def test_a_shard_keeps_its_history(settings, digits, teachers, cpu, tmp_path):
    shard = distill_shard(tmp_path / "a", settings, 1, digits, teachers, Run(cpu))
    history = History.of(store.read(tmp_path / "a", "shard"))
    assert history.seen.tolist() == list(range(6)) and history.noted.tolist() == list(range(1, 7))
    assert {"match", "lr_images"} <= history.figures.keys()
    assert all(
        len(values) == 6 and np.isfinite(values).any() for values in history.figures.values()
    )
    images, classes = digits.shard(2, 1)
    real = digits.whitening.to_uint8(images[shown(classes)])
    np.testing.assert_array_equal(history.images[0], real)
    changed = [int((frame != real.numpy()).sum()) for frame in history.images]
    assert changed[0] == 0 and min(changed[1:]) > 0
    other = distill_shard(
        tmp_path / "b", settings.changed({"rounds": None}), 1, digits, teachers, Run(cpu)
    )
    assert shard.arrays.keys() - other.arrays.keys() == {
        *("history_images", "history_seen", "history_figures", "history_noted")
    }
    assert History.of(other) is None and other.info["figures"] == []


def test_a_history_of_tiles_shows_them_as_they_are_stored(
    settings, digits, teachers, cpu, tmp_path
):
    tiled = settings.changed({"tiles": 2, "rounds": 1})
    shard = distill_shard(tmp_path / "a", tiled, 0, digits, teachers, Run(cpu))
    first = History.of(shard).images[0]
    assert first.shape == (20, 1, 8, 8)
    assert np.abs(first / 255 - shard.arrays["images"]).mean() < 0.2


@pytest.mark.parametrize("rounds", [1, 3, 8, 500, 501, 10_001])
def test_a_history_is_short_and_at_equal_distances(rounds):
    recorder = Recorder(rounds, lambda shard: shard)
    for done in range(rounds):
        recorder.see(done, lambda: torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
        recorder.note(done + 1, {"a": 1.0} if done % 2 else {"b": float(done)})
    kept = recorder.arrays()
    assert kept["history_seen"][0] == 0 and len(kept["history_seen"]) == min(SNAPSHOTS, rounds)
    steps = np.diff([*kept["history_seen"], rounds])
    assert steps.max() - steps.min() <= 1
    assert len(kept["history_noted"]) <= POINTS
    assert len(set(np.diff(kept["history_noted"]))) <= 1
    assert kept["history_figures"].shape == (len(kept["history_noted"]), len(recorder.names()))


def test_snapshots_show_the_first_images_of_the_first_classes():
    classes = torch.arange(25).repeat(5)
    assert classes[shown(classes)].tolist() == [c for c in range(20) for _ in range(3)]
    in_tiles = torch.arange(2).repeat_interleave(16)
    assert shown(in_tiles, 2).tolist() == [*range(12), *range(16, 28)]


@pytest.mark.parametrize("segment", [1, 4, 15, 100])
def test_segments_change_memory_not_results(settings, digits, teachers, cpu, tmp_path, segment):
    settings = settings.changed({"rounds": 2})
    whole = distill_shard(tmp_path / "a", settings, 0, digits, teachers, Run(cpu))
    parts = distill_shard(tmp_path / "b", settings, 0, digits, teachers, Run(cpu), segment=segment)
    np.testing.assert_allclose(parts.arrays["images"], whole.arrays["images"], atol=1e-5)


def test_shards_and_seeds_have_streams_of_their_own(settings, digits, teachers, cpu, tmp_path):
    def moved(shard: int, seed: int) -> np.ndarray:
        seeded = settings.changed({"seed": seed})
        found = distill_shard(tmp_path / "a", seeded, shard, digits, teachers, Run(cpu))
        return found.arrays["images"] - digits.shard(2, shard)[0].numpy()

    results = [moved(0, 0), moved(1, 0), moved(0, 1)]
    assert len({result.tobytes() for result in results}) == 3
    assert moved(0, 0).tobytes() == results[0].tobytes()


def test_apm_without_teachers_is_refused(settings, digits, cpu, tmp_path):
    with pytest.raises(ConfigError, match="this method needs teachers"):
        distill_shard(tmp_path / "a", settings, 0, digits, None, Run(cpu))


def test_a_shard_of_random_is_the_real_images(random_files, digits):
    for index, path in enumerate(random_files):
        shard = store.read(path, "shard")
        images, classes = digits.shard(2, index)
        np.testing.assert_array_equal(shard.arrays["images"], images)
        np.testing.assert_array_equal(shard.arrays["classes"], classes)
        assert set(shard.arrays) == {"images", "classes"}


class Maker(OneShot):
    """Makes grey images with labels and a rate of their own."""

    def make(self, job: Job) -> Shard:
        Maker.asked = (self.recipe, job)
        images, classes = job.real_images()
        if job.resume.load() is None:
            job.resume.save({"begun": 1})
            job.progress(1, 2, {"share": 0.5})
        job.progress(2, 2, {"share": 1.0})
        shade = torch.full_like(images, 0.5)
        return Shard(shade, classes, torch.eye(10)[classes], 0.125)


def test_a_method_without_rounds_is_asked_once_and_given_all_that_a_job_has(
    digits, cpu, tmp_path, monkeypatch, recipe_settings
):
    monkeypatch.setattr(random_real, "RandomReal", Maker)
    monkeypatch.setattr("apm_core.stages.distill.distill", None)  # no rounds
    settings = DistillSettings(method="random", options={}, ipc=2, recipe=recipe_settings, seed=9)
    shown, resume = [], Resume(tmp_path / "resume", "shard", every=0)
    run = Run(cpu, resume, lambda *call: shown.append(call))
    written = distill_shard(tmp_path / "a", settings, 1, digits, None, run, segment=7)
    recipe, job = Maker.asked
    assert recipe == Recipe.of(recipe_settings)
    assert (job.resume, job.segment, job.seed, job.shard, job.rounds) == (resume, 7, 9, 1, 0)
    assert shown == [(1, 2, {"share": 0.5}), (2, 2, {"share": 1.0})]
    assert resume.load() == {"begun": 1}

    found = store.read(tmp_path / "a", "shard")
    classes = digits.shard(2, 1)[1]
    np.testing.assert_array_equal(found.arrays["images"], np.full((20, 1, 8, 8), 0.5, np.float32))
    np.testing.assert_array_equal(found.arrays["classes"], classes)
    np.testing.assert_array_equal(found.arrays["targets"], np.eye(10, dtype=np.float32)[classes])
    assert found.info["rate"] == 0.125 and found.content == written.content
    assert found.settings == settings.to_dict()

    distill_shard(tmp_path / "b", settings, 1, digits, None, run)
    assert shown[2:] == [(2, 2, {"share": 1.0})], "what was saved is there"


@pytest.mark.parametrize("name", methods())
def test_a_method_says_whether_it_reads_embeddings(name, digits, teachers, cpu):
    config = {
        "distill": {"methods": [name]},
        "teachers": {"network": "alexnet", "width": None, "snapshots": True},
        "ipc": 1,
    }
    settings = Plan(RunSettings.of(config)).distill(name)
    spec = Spec("alexnet", digits.shape)
    pool = replace(teachers, spec=spec, net=spec.network(cpu.device), artifacts=())
    method = library.build(settings)
    job = Job(digits, pool, cpu, ipc=1, shard=0, rounds=1, seed=0, network=spec)
    start = method.make if isinstance(method, OneShot) else method.attach
    with pytest.raises(Exception) as found:  # of those that need more than this
        start(job)
        raise ConfigError("none")
    assert ("has no embedding" in str(found.value)) is methods()[name].embeds, found.value


TRAJECTORY = {"steps": 2, "expert_epochs": 1, "start_below": 2}
UNROLLED = {"before": 2, "window": 2, "batch_real": 9}
QUICK = {  # what makes a round short
    "apm": {"checkpoints": 1},
    "apm_plus": {"checkpoints": 1, "teacher_epochs": None, "start": "real"},
    "dc": {"batch_real": 9, "inner_epochs": 1},
    "dsa": {"batch_real": 9, "inner_epochs": 1},
    "mtt": TRAJECTORY,
    "tesla": TRAJECTORY,
    "ftd": TRAJECTORY,
    "datm": TRAJECTORY | {"start_below_first": None},
    "pad": TRAJECTORY | {"start_below_first": None},
    "bptt": UNROLLED,
    "at_bptt": UNROLLED | {"spread": 1},
    "frepo": {"networks": 1, "batch_real": 9},
    "rcig": {"networks": 1, "batch_real": 9, "inner_steps": 1},
}


OTHER_RECIPE = {
    **{"epochs": 3, "lr": 0.5, "batch": 7, "momentum": 0.1, "weight_decay": 0.1, "loss": "kl"},
    **{"augment": "flip", "optimizer": "adam", "schedule": "cosine", "warmup": 1, "floor": 0.5},
    "drop_momentum": True,
}


@pytest.mark.parametrize("name", [name for name, one in methods().items() if one.trains])
def test_keys_of_the_recipe_that_a_method_does_not_read_do_not_change_it(
    name, digits, teachers, cpu
):
    assert set(OTHER_RECIPE) == set(RecipeSettings.model_fields)
    own = methods()[name].changed(QUICK.get(name, {}))
    first = RecipeSettings(epochs=1).changed(own.recipe.model_dump(exclude_none=True))
    first = first.changed({"epochs": 1, "drop_momentum": False})
    kept = own.recipe_keys | ({"loss"} if own.needed_loss else set())
    other = {key: value for key, value in OTHER_RECIPE.items() if key not in kept}
    assert other
    network = None if own.pool else Spec("convnet", digits.shape, width=4, depth=1)
    job = Job(digits, teachers, cpu, ipc=1, shard=0, rounds=1, seed=0, network=network)
    module, kind = own.implementation.split(":")
    implementation = getattr(import_module(f"apm_core.methods.{module}"), kind)
    results = []
    for recipe in (first, first.changed(other)):
        method = implementation(own, name=name, recipe=Recipe.of(recipe))
        state = method.start(job)
        method.round(state, 0)
        results.append(method.finish(state))
    assert torch.equal(results[0].images, results[1].images)
    assert not torch.equal(results[0].images, method.finish(method.start(job)).images)


STARTS = {
    name: one for name, one in methods().items() if getattr(one, "start_keys", None) is not None
}


@pytest.mark.parametrize("name", STARTS)
def test_what_a_method_starts_from_depends_on_no_other_setting(
    name, digits, teachers, cpu, tmp_path
):
    own = STARTS[name].changed(QUICK.get(name, {}))
    edited = own.changed({"lr_images": 9.0}).model_dump(mode="json", exclude=EXCLUDED_OPTIONS)
    start = {key: edited[key] for key in own.start_keys}
    network = None if own.pool else Network(width=4, depth=1)
    contents = []
    for number, (options, epochs) in enumerate(((start, 250), (edited, 5))):
        settings = DistillSettings(
            method=name,
            options=options,
            ipc=1,
            recipe=RecipeSettings(epochs=epochs),
            network=network,
        )
        run = Run(cpu)
        shard = distill_shard(tmp_path / f"{number}", settings, 0, digits, teachers, run)
        contents.append(shard.content)
    assert contents[0] == contents[1]


def test_unknown_method_is_refused_with_those_that_exist():
    message = "there is no method 'mm'; known here: apm, apm_plus, bptt, .*, rded_hard$"
    with pytest.raises(ConfigError, match=rf"distill\.methods\.1: {message}"):
        RunSettings.of({"distill": {"methods": ["apm", "mm"]}})
