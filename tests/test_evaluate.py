"""Networks trained on a distilled set, under every protocol, against the same by hand."""

from dataclasses import replace
from typing import get_args

import pytest

from apm_core.data.examples import Examples
from apm_core.data.labels import Labels
from apm_core.errors import DivergenceError
from apm_core.nets.spec import Spec
from apm_core.runtime import store
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.evaluation import OnlineTraining, Protocol
from apm_core.settings.stages import CeilingSettings, EvaluateSettings
from apm_core.settings.training import Network
from apm_core.stages.evaluate import ceiling, evaluate, protocol_recipe
from apm_core.training import rate_search
from apm_core.training.inference import accuracy, labeller
from apm_core.training.recipe import Recipe, online_recipe, teacher_recipe
from apm_core.training.teacher_pool import TeacherPool
from apm_core.training.trainer import Trainer

RECIPE = Recipe(passes=3, lr=0.5, batch=7, drop_momentum=True, loss="soft_ce", augment="crop")
PROTOCOLS = get_args(Protocol)
KD = OnlineTraining(epochs=13, batch=9, lr=0.01, augment="crop_scale")


@pytest.fixture
def settings():
    return EvaluateSettings(
        protocols=["own"],
        epochs=12,
        networks=2,
        lr=0.04,
        rates=[],
        network=Network(width=6, depth=1),
        precision="float32",
        seed=3,
        kd=KD,
    )


def scores(result: dict) -> dict:
    """All but the time, which differs from run to run."""
    return {key: value for key, value in result.items() if key != "seconds"}


def runs(result: dict, protocol: Protocol = "own") -> list[float]:
    return result["protocols"][protocol]["metrics"]["accuracy"]["runs"]


def by_hand(
    spec: Spec, recipe: Recipe, examples: Examples, data, cpu, *stream, label=None
) -> float:
    """The accuracy of one network, from the pieces that the other tests check."""
    one = Trainer(spec.network(cpu.device), recipe, cpu, examples, networks=1, label=label)
    one.fit(spec.fresh(*stream, "weights"), *stream)
    return accuracy(one.net, data.examples("test", cpu), cpu)


def test_protocols_change_labels_loss_and_augmentation_alone(settings, real_set):
    one = replace(real_set, recipe=RECIPE)
    found = {
        name: protocol_recipe(one, settings.changed({"lr": 0.1, "epochs": 100}), name)
        for name in PROTOCOLS
    }
    own = replace(RECIPE, lr=0.1, passes=101, drop=52)
    assert found == {
        "own": own,
        "hard": replace(own, loss="ce"),
        "plain": replace(own, augment="none"),
        "kd": online_recipe(KD, 4),
    }


def test_an_architecture_may_have_a_recipe_of_its_own(settings, real_set):
    one = replace(real_set, recipe=replace(RECIPE, loss="l1"))  # its labels are logits
    other = settings.changed(
        {"lr": 0.1, "batch": 8, "optimizer": "adam", "schedule": "cosine", "loss": "soft_ce"}
    )
    own, hard = (protocol_recipe(one, other, name) for name in ("own", "hard"))
    assert (own.optimizer, own.schedule, own.loss) == ("adam", "cosine", "soft_ce")
    assert (own.lr, own.batch) == (0.1, 8)
    assert hard == replace(own, loss="ce")
    assert protocol_recipe(one, other, "plain") == replace(own, augment="none")
    assert protocol_recipe(one, other, "kd") == online_recipe(KD, 4)
    warm = replace(
        one, recipe=replace(own, schedule="cosine", loss="half_mse", warmup=9, floor=0.1)
    )
    kept = protocol_recipe(warm, other, "own")
    assert (kept.warmup, kept.floor, kept.loss) == (9, 0.1, "half_mse")  # no labels that are logits
    step = protocol_recipe(warm, other.changed({"schedule": "step"}), "own")
    assert (step.warmup, step.floor) == (0, 0.0)  # they belong to the set's schedule
    of_classes = replace(one, recipe=RECIPE, labels=Labels(real_set.classes))
    assert protocol_recipe(of_classes, other, "own").loss == RECIPE.loss


def test_the_recipe_of_online_labels_is_the_published_one_and_no_set_changes_it():
    expected = {"passes": 300, "lr": 0.001, "weight_decay": 0.01, "optimizer": "adamw"}
    expected |= {"schedule": "half_cosine", "loss": "kl", "temperature": 20.0, "cutmix": True}
    expected |= {"augment": "flip", "momentum": 0.9}
    sizes = {1: 10, 2: 50, 10: 50, 11: 100, 50: 100, 100: 100}
    for ipc, batch in sizes.items():
        found = online_recipe(OnlineTraining(), ipc).to_dict()
        assert {key: found[key] for key in expected} == expected and found["batch"] == batch
    assert online_recipe(OnlineTraining(batch=7), 1).batch == 7


def test_without_a_learning_rate_that_of_the_set_is_used(settings, real_set):
    found = protocol_recipe(real_set, settings.changed({"lr": None}), "own")
    assert found.lr == real_set.recipe.lr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_network_is_its_stream_and_the_recipe_of_the_set(
    real_set, digits, cpu, settings, protocol, teachers
):
    settings = settings.changed({"protocols": [protocol]})
    result = evaluate(real_set, digits, settings, Run(cpu), teachers)
    recipe, label = protocol_recipe(real_set, settings, protocol), None
    if protocol == "kd":
        label = labeller(teachers.load(0), cpu)
    else:
        assert (recipe.passes, recipe.lr, recipe.drop) == (13, 0.04, 7)
    targets = real_set.classes if protocol == "hard" else real_set.targets
    examples = Examples(real_set.images, targets)
    spec = Spec("convnet", digits.shape, 6, 1)
    stream = (3, "evaluate", protocol, "convnet")
    expected = [
        by_hand(spec, recipe, examples, digits, cpu, *stream, n, label=label) for n in range(2)
    ]
    assert set(result["protocols"]) == {protocol}
    found = result["protocols"][protocol]
    assert set(found["metrics"]) == {"accuracy"}
    accuracies = found["metrics"]["accuracy"]
    assert accuracies["runs"] == expected
    assert accuracies["mean"] == pytest.approx(sum(expected) / 2)
    assert accuracies["std"] == pytest.approx(abs(expected[0] - expected[1]) / 2**0.5)
    assert accuracies["n"] == 2 and result["seconds"] > 0
    assert found["recipe"] == recipe.to_dict() and found["rates"] == []
    measured = {"stage": "evaluate", "entry": "random", "network": "convnet"}
    assert result["measured"] == measured


def test_online_labels_are_those_of_one_teacher_whatever_the_set_says(
    real_set, digits, cpu, settings, teachers, teacher_files
):
    settings = settings.changed({"protocols": ["kd"], "rates": [0.1, 1.0], "lr": 7.0, "epochs": 3})
    result = evaluate(real_set, digits, settings, Run(cpu), teachers)
    found = result["protocols"]["kd"]
    group = store.read(teacher_files[0], "teachers")
    assert found["teacher"] == {
        "network": "convnet",
        "accuracy": group.info["test_accuracy"][0],
        "content": group.content,
    }
    assert found["rates"] == [] and found["recipe"] == online_recipe(KD, 4).to_dict()
    # neither the labels nor the recipe of the set, nor other teachers, have a part
    other = replace(
        real_set, labels=Labels.of(-real_set.targets), recipe=replace(RECIPE, loss="half_mse")
    )
    first = TeacherPool.open(teacher_files[:1], digits, cpu)
    assert runs(evaluate(other, digits, settings, Run(cpu), first), "kd") == runs(result, "kd")
    second = replace(teachers, vectors=teachers.vectors[1:])
    assert runs(evaluate(real_set, digits, settings, Run(cpu), second), "kd") != runs(result, "kd")


def test_a_protocol_has_the_same_bits_alone_and_among_others(
    real_set, digits, cpu, settings, teachers
):
    settings = settings.changed({"rates": [0.5, 1.0], "epochs": 3, "protocols": [*PROTOCOLS]})
    together = evaluate(real_set, digits, settings, Run(cpu), teachers)
    assert list(together["protocols"]) == [*PROTOCOLS]
    for protocol in PROTOCOLS:
        changed = settings.changed({"protocols": [protocol]})
        alone = evaluate(real_set, digits, changed, Run(cpu), teachers)
        assert alone["protocols"] == {protocol: together["protocols"][protocol]}
    assert len({tuple(runs(together, protocol)) for protocol in PROTOCOLS}) == len(PROTOCOLS)


def test_networks_side_by_side_have_the_bits_of_one_after_the_other(
    real_set, digits, cpu, settings
):
    settings = settings.changed({"rates": [0.5, 1.0], "epochs": 3, "networks": 3})
    shown, alone = [], evaluate(real_set, digits, settings, Run(cpu))
    run = Run(replace(cpu, side_by_side=2), progress=lambda *call: shown.append(call[:2]))
    assert scores(evaluate(real_set, digits, settings, run)) == scores(alone)
    passes = [2, 4, 6, 8, 9, 10, 11, 12]  # of two networks at once, then of the third
    assert [call for call in shown if call[1] == 3 * 4 * len(settings.protocols)][:8] == [
        (done, 12 * len(settings.protocols)) for done in passes
    ]


def test_networks_differ_and_more_of_them_leave_the_first_as_they_were(
    real_set, digits, cpu, settings
):
    few = evaluate(real_set, digits, settings, Run(cpu))
    many = evaluate(real_set, digits, settings.changed({"networks": 4}), Run(cpu))
    assert runs(many)[:2] == runs(few)
    assert len(set(runs(many))) > 2


def test_an_evaluation_is_reproducible_and_follows_its_seed(real_set, digits, cpu, settings):
    first = evaluate(real_set, digits, settings, Run(cpu))
    assert scores(evaluate(real_set, digits, settings, Run(cpu))) == scores(first)
    other = evaluate(real_set, digits, settings.changed({"seed": 4}), Run(cpu))
    assert runs(other) != runs(first)


def test_other_architectures_can_be_evaluated(real_set, digits, cpu, settings):
    network = {"network": "vit", "width": None, "depth": None}
    vit = settings.changed({"network": network, "networks": 1, "epochs": 2})
    result = evaluate(real_set, digits, vit, Run(cpu))
    accuracies = result["protocols"]["own"]["metrics"]["accuracy"]
    assert accuracies["n"] == 1 and 0 <= accuracies["mean"] <= 100
    assert result["measured"]["network"] == "vit"
    assert scores(evaluate(real_set, digits, vit, Run(cpu))) == scores(result)


# a pass of the first protocol's second network, of the second protocol's first, of its second, of
# the second under online labels, which makes fewer passes
@pytest.mark.parametrize("fatal", [18, 27, 43, 90])
def test_an_interrupted_evaluation_is_continued(
    real_set, digits, cpu, settings, tmp_path, fatal, teachers
):
    settings = settings.changed({"protocols": [*PROTOCOLS], "kd": {"epochs": 9}})
    unbroken, shown = evaluate(real_set, digits, settings, Run(cpu), teachers), []

    def kill(done, total, figures):
        if done == fatal:
            raise KeyboardInterrupt

    resume = Resume(tmp_path, settings.to_dict(), every=0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(real_set, digits, settings, Run(cpu, resume, kill), teachers)
    run = Run(cpu, resume, lambda *call: shown.append(call[:2]))
    result = evaluate(real_set, digits, settings, run, teachers)
    assert scores(result) == scores(unbroken)
    passes = 2 * (3 * 13 + 9)  # of two networks under each protocol
    assert shown == [(done, passes) for done in range(fatal, passes + 1)]


@pytest.fixture
def searched(settings):
    return settings.changed({"rates": [0.01, 5.0, 1.0, 1e30]})


def test_the_best_rate_on_training_images_is_used(real_set, digits, cpu, searched):
    result = evaluate(real_set, digits, searched, Run(cpu))
    recipe = protocol_recipe(real_set, searched, "own")
    examples, spec = (
        Examples(real_set.images, real_set.targets),
        Spec("convnet", digits.shape, 6, 1),
    )
    stream = (3, "evaluate", "own")
    real, found = digits.examples("train", cpu).some(rate_search.REAL, *stream, "real"), {}
    for factor in searched.rates[:3]:
        one = Trainer(spec.network(cpu.device), recipe, cpu, examples, networks=1)
        name, lr = (*stream, "convnet", "rate"), factor * recipe.lr
        one.fit(spec.fresh(*name, "network"), *name, lr=lr)
        found[lr] = accuracy(one.net, real, cpu)
    own = result["protocols"]["own"]
    shown = {one["lr"]: one["accuracy"] for one in own["rates"]}
    assert shown == {**found, 1e30 * recipe.lr: None}
    used = max(found, key=found.__getitem__)
    assert used != recipe.lr and own["recipe"] == replace(recipe, lr=used).to_dict()
    given = (spec, replace(recipe, lr=used), examples, digits, cpu)
    assert runs(result) == [by_hand(*given, *stream, "convnet", n) for n in range(2)]


def test_a_set_that_no_rate_suits_is_reported(real_set, digits, cpu, searched):
    message = r"protocol own: .* at every rate \(4e\+28\): lower the learning rate"
    with pytest.raises(DivergenceError, match=message):
        evaluate(real_set, digits, searched.changed({"rates": [1e30]}), Run(cpu))


def test_an_interrupted_search_is_continued(real_set, digits, cpu, searched, tmp_path, monkeypatch):
    searched = searched.changed({"protocols": ["hard", "own"], "epochs": 3})
    unbroken, seen = evaluate(real_set, digits, searched, Run(cpu)), []

    def counted(trainer, spec, rate, *given, **options):
        seen.append(rate)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return rate_search.accuracy_at(trainer, spec, rate, *given, **options)

    resume = Resume(tmp_path, searched.to_dict(), every=0)
    monkeypatch.setattr("apm_core.stages.evaluate.accuracy_at", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(real_set, digits, searched, Run(cpu, resume))
    assert scores(evaluate(real_set, digits, searched, Run(cpu, resume))) == scores(unbroken)
    assert seen == [0.04 * factor for factor in (*searched.rates, 0.01, 5.0, *searched.rates[1:])]


def test_the_ceiling_is_trained_on_all_data_as_the_teachers_are(digits, cpu, teacher_settings):
    settings = CeilingSettings(
        training=teacher_settings.training,
        networks=2,
        network=teacher_settings.network,
        precision="float32",
        seed=3,
    )
    result = ceiling(digits, settings, Run(cpu))
    spec, train = Spec("convnet", digits.shape, 6, 1), digits.examples("train", cpu)
    recipe = teacher_recipe(settings.training)
    expected = [
        by_hand(spec, recipe, train, digits, cpu, 3, "ceiling", "convnet", number)
        for number in range(2)
    ]
    accuracies = result["metrics"]["accuracy"]
    assert accuracies["runs"] == expected and result["recipe"] == recipe.to_dict()
    assert recipe.loss == "ce" and accuracies["mean"] > 40 and result["seconds"] > 0
    assert result["measured"] == {"stage": "ceiling", "network": "convnet"}
