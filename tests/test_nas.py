"""Rankings of networks: read from tables, trained, compared."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from scipy import stats

from apm_core.errors import DataError
from apm_core.nets.nasbench201 import network, parse, sample
from apm_core.runtime import store
from apm_core.runtime.device import threads_of
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.evaluation import RankedNetworks, RankingTraining
from apm_core.settings.stages import RankingSettings
from apm_core.stages import nas
from apm_core.stages.nas import (
    architectures,
    compare,
    proxy,
    table_reference,
    train_reference,
    train_short,
)
from apm_core.training.inference import accuracy
from apm_core.training.trainer import fit_together

ARCHS = sample(4, 0)


@pytest.fixture
def table(tmp_path):
    """Rows in another order, with other columns and another architecture."""
    rows = [f"{n},{arch},{10 * n + 0.5},x" for n, arch in enumerate([*ARCHS[::-1], *sample(1, 9)])]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["index,arch_str,accuracy,other", *rows]) + "\n")
    return path


def test_a_table_is_read_in_the_order_of_the_architectures(table):
    assert table_reference(table, "accuracy", ARCHS) == [30.5, 20.5, 10.5, 0.5]
    assert table_reference(str(table), "accuracy", ARCHS[:2][::-1]) == [20.5, 30.5]


def test_a_compressed_table_is_the_same(table, tmp_path):
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(table.read_bytes()))
    assert table_reference(packed, "accuracy", ARCHS) == [30.5, 20.5, 10.5, 0.5]


def test_a_missing_table_column_or_architecture_is_named(table, tmp_path):
    with pytest.raises(DataError, match=r"nas\.reference\.table: there is no file .*gone\.csv"):
        table_reference(tmp_path / "gone.csv", "accuracy", ARCHS)
    message = r"no column 'precision'; it has: index, arch_str, accuracy, other"
    with pytest.raises(DataError, match=r"nas\.reference\.column: .*" + message):
        table_reference(table, "precision", ARCHS)
    absent = next(arch for arch in sample(40, 5) if arch not in {*ARCHS, *sample(1, 9)})
    with pytest.raises(DataError) as caught:
        table_reference(table, "accuracy", [*ARCHS, absent])
    assert str(caught.value) == f"nas.reference.table: {table} has no row for {absent}"


def test_a_damaged_table_is_refused_in_one_line(table, tmp_path):
    packed = tmp_path / "cut.csv.gz"
    packed.write_bytes(gzip.compress(table.read_bytes())[:-20])
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(table.read_bytes())
    for path in (packed, broken):
        with pytest.raises(DataError, match=rf"^nas\.reference\.table: {path} cannot be read \("):
            table_reference(path, "accuracy", ARCHS)
    lines = table.read_text().splitlines()
    for cell, shown in ((",", "''"), ("", "None"), (",good", "'good'")):
        table.write_text("\n".join([lines[0], f"0,{ARCHS[0]}{cell}"]))
        with pytest.raises(DataError, match=f"has no accuracy for .*, but {shown}$"):
            table_reference(table, "accuracy", ARCHS[:1])


def test_a_table_without_architectures_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,accuracy\na,1\n")
    with pytest.raises(DataError, match="no column 'arch_str'; it has: name, accuracy"):
        table_reference(path, "accuracy", ARCHS)
    path.write_text("")
    with pytest.raises(DataError, match="has no column"):
        table_reference(path, "accuracy", ARCHS)


REFERENCE = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]
RUNS = [
    [1.0, 3.0, 2.0, 4.0, 6.0, 5.0, 8.0, 7.0],
    [2.0, 2.0, 2.0, 5.0, 5.0, 6.0, 9.0, 9.0],
]


PARAMETERS = [5, 1, 5, 2, 9, 6, 9, 3]


def compared(*runs: list[float], reference=REFERENCE, seed: int = 0, **told) -> dict:
    proxies = {"entry": "apm", "accuracies": list(runs), "seconds": 12.5}
    proxies |= {"architectures": list("abcdefgh")[: len(reference)], "device": "a CPU, 4 threads"}
    proxies["parameters"] = PARAMETERS[: len(reference)]
    return compare(proxies, reference, "table", seed, **told)


def test_correlations_are_means_over_the_seeds():
    result = compared(*RUNS)
    for name, statistic in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        first, second = (float(statistic(REFERENCE, run).statistic) for run in RUNS)
        assert result[name]["mean"] == pytest.approx((first + second) / 2)
        assert result[name]["std"] == pytest.approx(abs(first - second) / 2**0.5)
        low, high = result[name]["ci95"]
        assert -1 <= low < result[name]["mean"] <= high <= 1
    assert (result["networks"], result["seeds"], result["seconds"]) == (8, 2, 12.5)
    assert result["measured"] == {"stage": "nas", "entry": "apm"}
    assert result["accuracies"] == {
        "reference": list(REFERENCE),
        "proxy": pytest.approx([sum(pair) / 2 for pair in zip(*RUNS, strict=True)]),
    }


def test_recall_and_pick_use_the_mean_over_the_seeds():
    result = compared(*RUNS)  # the seventh network is the best by the mean of both runs
    assert result["top10_recall"] == 0.0
    assert result["reference"] == {"source": "table", "pick": 70.0, "best": 80.0, "mean": 45.0}
    assert compared(REFERENCE)["top10_recall"] == 1.0


def test_a_search_names_its_choice_the_best_and_the_cost_of_both_rankings():
    trained = {"seconds": 300.0, "device": "a CPU, 2 threads"}
    assert compared(*RUNS, trained=trained)["search"] == {
        "pick": ["g"],
        "best": ["h"],
        "by_set": {"seconds": 12.5, "core_seconds": 50.0, "device": "a CPU, 4 threads"},
        "by_full_data": {"seconds": 300.0, "core_seconds": 600.0, "device": "a CPU, 2 threads"},
    }


def test_rankings_without_a_set_are_measured_as_that_by_the_set():
    told = {"device": "a CPU, 4 threads", "seconds": 6.0}
    short = {"accuracies": RUNS, "images_per_class": 40, **told}
    found = compared(RUNS[0], short=short)["baselines"]
    own = compared(*RUNS)
    assert found["short"] == {
        **{name: own[name] for name in ("spearman", "kendall")},
        "pick": ["g"],
        "accuracy": 70.0,
        "images_per_class": 40,
        "cost": {**told, "core_seconds": 24.0},
    }
    by_size = found["parameters"]
    expected = float(stats.spearmanr(REFERENCE, PARAMETERS).statistic)
    assert by_size["spearman"]["mean"] == pytest.approx(expected)
    assert (by_size["pick"], by_size["accuracy"]) == (["e", "g"], 60.0)
    assert by_size["cost"]["seconds"] == 0
    assert compared(RUNS[0])["baselines"].keys() == {"parameters"}


def test_a_search_of_a_table_costs_no_training_and_level_networks_are_all_named():
    found = compared([2.0, 9.0, 1.0, 9.0], reference=[1.0, 2.0, 3.0, 3.0])
    assert (found["search"]["pick"], found["search"]["best"]) == (["b", "d"], ["c", "d"])
    assert found["reference"]["pick"] == 2.5 and found["search"]["by_full_data"] is None


@pytest.mark.parametrize("where", [{"device": "NVIDIA H100"}, {}])
def test_rankings_without_cores_have_seconds_alone(where):
    found = compared(*RUNS, trained={"seconds": 3.0, **where})["search"]["by_full_data"]
    assert (found["seconds"], found["core_seconds"]) == (3.0, None)


def test_a_perfect_proxy_agrees_and_a_turned_one_disagrees():
    for name in ("spearman", "kendall"):
        perfect = compared(REFERENCE)[name]
        assert [perfect["mean"], *perfect["ci95"]] == pytest.approx([1, 1, 1])
        assert compared(REFERENCE[::-1])[name]["mean"] == pytest.approx(-1)


def test_a_correlation_that_does_not_exist_is_none_and_the_rest_stays():
    nothing = {"mean": None, "std": None, "ci95": None}
    for result in (compared([5.0] * 8), compared(RUNS[0], [5.0] * 8)):
        assert result["spearman"] == nothing == result["kendall"]
        assert 0 <= result["top10_recall"] <= 1
    assert compared([5.0] * 8)["reference"]["pick"] == 45.0
    constant = compared(RUNS[0], reference=[5.0] * 8)
    assert constant["spearman"] == nothing
    json.dumps([constant, compared([5.0] * 8)], allow_nan=False)


def test_an_interval_that_does_not_exist_is_none(tmp_path):
    result = compared([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], reference=[1.0, 2.0, 3.0])
    assert result["spearman"]["mean"] == 0.0 and result["spearman"]["ci95"] is None
    store.write_json(tmp_path / "scores.json", "scores", result)


def test_intervals_are_drawn_by_the_seed():
    mixed = [3.0, 1.0, 5.0, 2.0, 8.0, 4.0, 7.0, 6.0]
    first, again, second, third = (compared(mixed, seed=seed) for seed in (0, 0, 1, 2))
    assert first == again
    assert first != second or first != third


@pytest.fixture
def settings():
    return RankingSettings(
        ranked=RankedNetworks(networks=3, cells=1, stem=4),
        training=RankingTraining(epochs=2, lr=0.05, batch=16, weight_decay=5e-4),
        seeds=2,
        precision="float32",
    )


def rankings(result: dict) -> tuple:
    return result["architectures"], result["accuracies"]


def test_a_proxy_trains_every_network_with_every_seed(real_set, digits, cpu, settings):
    shown = []
    result = proxy(
        real_set, digits, settings, Run(cpu, progress=lambda *call: shown.append(call[:2]))
    )
    assert result["architectures"] == sample(3, 0) and result["entry"] == "random"
    assert result["device"] == cpu.describe() and threads_of(result["device"]) >= 1
    assert [len(run) for run in result["accuracies"]] == [3, 3]
    first, second = result["accuracies"]
    assert first != second and len(set(first)) > 1
    assert shown == [(done, 6) for done in range(1, 7)]
    assert rankings(proxy(real_set, digits, settings, Run(cpu))) == rankings(result)


def test_the_parameters_of_a_network_are_counted(real_set, digits, cpu, settings):
    found = proxy(real_set, digits, settings, Run(cpu))["parameters"]
    modules = [network(parse(arch), digits.shape, stem=4, cells=1) for arch in sample(3, 0)]
    assert found == [sum(p.numel() for p in module.parameters()) for module in modules]


def test_networks_side_by_side_have_the_accuracies_of_one_after_the_other(
    real_set, digits, cpu, settings
):
    shown, together = [], replace(cpu, side_by_side=4)
    run = Run(together, progress=lambda *call: shown.append(call[:2]))
    found = proxy(real_set, digits, settings, run)
    assert rankings(found) == rankings(proxy(real_set, digits, settings, Run(cpu)))
    assert shown == [(4, 6), (6, 6)]


def test_more_networks_or_seeds_leave_the_others_as_they_were(real_set, digits, cpu, settings):
    table = proxy(real_set, digits, settings, Run(cpu))["accuracies"]
    more = settings.changed({"ranked": {"networks": 4}, "seeds": 1})
    larger = proxy(real_set, digits, more, Run(cpu))["accuracies"]
    assert larger[0][:3] == table[0]
    assert architectures(settings.changed({"ranked": {"networks": 9}}))[:3] == sample(3, 0)


@pytest.fixture
def recipes(monkeypatch):
    """The recipes that networks are trained by, in order."""
    found = []

    class Spy(nas.Trainer):
        def __init__(self, net, recipe, *rest, **more):
            found.append(recipe)
            super().__init__(net, recipe, *rest, **more)

    monkeypatch.setattr(nas, "Trainer", Spy)
    return found


def test_proxies_are_trained_by_the_recipe_of_the_set(real_set, digits, cpu, settings, recipes):
    settings = settings.changed({"ranked": {"networks": 1}, "seeds": 1})
    proxy(real_set, digits, settings, Run(cpu))
    full_data = settings.changed({"training": {"batch": 512}, "augment": "flip"})
    train_reference(digits, full_data, Run(cpu))
    own, full = recipes
    assert (own.loss, own.augment, own.batch) == ("l1", "crop_scale", 16)
    assert (full.loss, full.augment, full.batch) == ("ce", "flip", 512)
    for recipe in recipes:
        assert (recipe.passes, recipe.schedule, recipe.nesterov) == (2, "cosine", True)
        assert (recipe.lr, recipe.weight_decay) == (0.05, 5e-4)


@pytest.mark.parametrize(("per_class", "steps"), [(1, 1), (4, 3), (75, 47), (90, 57), (180, 90)])
def test_a_short_training_is_as_long_as_one_on_a_set_and_sees_no_image_more_often_than_others(
    digits, cpu, settings, monkeypatch, per_class, steps
):
    """10 classes, batches of 16, two passes; the full data are 1,438 images."""
    passes, batches = [], []

    def spy(trainers, trainings, *, among, part):
        passes.extend(among(index).tolist() for index in range(trainers[0].recipe.passes))
        step = trainers[0]._step
        monkeypatch.setattr(trainers[0], "_step", lambda *call: batches.append(step(*call)))
        return fit_together(trainers, trainings, among=among, part=part)

    monkeypatch.setattr(nas, "fit_together", spy)
    one = {"ranked": {"networks": 1}, "seeds": 1, "augment": "flip"}
    found = train_short(digits, per_class, settings.changed(one), Run(cpu))
    assert [len(rows) for rows in passes] == [min(10 * per_class, 1438)] * 2
    assert 2 * steps - 2 <= len(batches) <= 2 * steps  # what makes no batch is left out of a pass
    times = torch.bincount(torch.tensor(passes).flatten(), minlength=1438)
    assert len(times) == 1438 and times.max() - times.min() <= 1
    assert found["architectures"] == sample(1, 0) and len(found["accuracies"]) == 1


def test_a_short_training_has_the_proxies_recipe_with_classes_for_labels(
    digits, cpu, settings, recipes
):
    one = {"ranked": {"networks": 1}, "seeds": 1, "augment": "flip"}
    train_short(digits, 4, settings.changed(one), Run(cpu))
    [recipe] = recipes
    assert (recipe.loss, recipe.augment, recipe.lr, recipe.passes) == ("ce", "flip", 0.05, 2)
    assert (recipe.batch, recipe.schedule, recipe.nesterov) == (14, "cosine", True)


def test_short_trainings_of_several_seeds_differ(digits, cpu, settings):
    found = train_short(digits, 20, settings.changed({"augment": "none"}), Run(cpu))
    assert len(found["accuracies"]) == 2 and found["accuracies"][0] != found["accuracies"][1]


def test_the_reference_learns_the_digits(digits, cpu, settings):
    ranked, training = {"networks": 1, "stem": 8}, {"batch": 64}
    changes = {"ranked": ranked, "training": training, "augment": "none"}
    result = train_reference(digits, settings.changed(changes), Run(cpu))
    assert len(result["accuracies"]) == 1
    assert result["accuracies"][0][0] > 30


def test_an_interrupted_ranking_is_continued(
    real_set, digits, cpu, settings, monkeypatch, tmp_path
):
    unbroken, measured = rankings(proxy(real_set, digits, settings, Run(cpu))), []

    def counted(*arguments):
        measured.append(1)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return accuracy(*arguments)

    monkeypatch.setattr(nas, "accuracy", counted)
    resume = Resume(tmp_path, settings.to_dict(), every=0)
    with pytest.raises(KeyboardInterrupt):
        proxy(real_set, digits, settings, Run(cpu, resume))
    assert rankings(proxy(real_set, digits, settings, Run(cpu, resume))) == unbroken
    assert len(measured) == 3 + 1 + 3
