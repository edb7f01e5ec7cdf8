"""Distilled sets as the memory of classes that come in steps."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from apm_core import scores
from apm_core.data.examples import Examples
from apm_core.data.labels import Labels
from apm_core.errors import ArtifactError, ConfigError
from apm_core.nets.base import Shape
from apm_core.nets.spec import Spec
from apm_core.report import continual as report
from apm_core.report.charts import continual as chart
from apm_core.report.charts import style
from apm_core.runtime import store
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.stages import CollectSettings, ContinualSettings
from apm_core.settings.training import Network
from apm_core.stages import evaluate
from apm_core.stages.continual import KIND, class_order, continual, curves, seen_after
from apm_core.training.inference import logits
from apm_core.training.trainer import Trainer


@pytest.fixture
def settings():
    return ContinualSettings(
        steps=3,
        orders=2,
        network=Network(width=6, depth=1),
        epochs=12,
        rates=[],
        precision="float32",
        seed=3,
    )


def runs(result: dict) -> list[list[float]]:
    """Accuracies by step and order."""
    return [step["accuracy"]["runs"] for step in result["steps"]]


@pytest.mark.parametrize(
    ("classes", "steps", "expected"),
    [
        (10, 5, [2, 4, 6, 8, 10]),
        (10, 3, [4, 7, 10]),
        (10, 1, [10]),
        (3, 3, [1, 2, 3]),
        (100, 7, [15, 30, 44, 58, 72, 86, 100]),
    ],
)
def test_classes_come_in_parts_as_equal_as_can_be(classes, steps, expected):
    assert seen_after(classes, steps) == expected


def test_more_steps_than_classes_are_refused_in_one_line(real_set, digits, cpu, settings):
    with pytest.raises(ConfigError) as caught:
        continual(real_set, digits, settings.changed({"steps": 11}), Run(cpu))
    assert str(caught.value) == (
        "config: continual.steps: 11 steps need as many classes, the data have 10: lower it"
    )


def test_orders_are_permutations_drawn_by_the_seed():
    orders = [class_order(10, seed, number) for seed in (0, 1) for number in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 6
    assert class_order(10, 0, 2) == orders[2]


def test_a_network_learns_what_was_seen_and_is_tested_on_it(real_set, digits, cpu, settings):
    result = continual(real_set, digits, settings, Run(cpu))
    assert result["measured"] == {"stage": "continual", "entry": "random", "network": "convnet"}
    assert [step["classes"] for step in result["steps"]] == [4, 7, 10]
    test = digits.examples("test", cpu)
    for number, names in enumerate(result["orders"]):
        order = list(map(int, names))
        assert order == class_order(10, 3, number)
        for step, count in enumerate((4, 7, 10)):
            seen, stream = order[:count], (3, "continual", number, count, "convnet", 0)
            rows = [r for c in seen for r, of in enumerate(real_set.classes.tolist()) if of == c]
            memory = Examples(real_set.images[rows], real_set.targets[rows][:, seen])
            spec = Spec("convnet", Shape(1, 8, count), 6, 1)
            recipe = real_set.recipe.with_epochs(12)
            one = Trainer(spec.network(cpu.device), recipe, cpu, memory, networks=1)
            one.fit(spec.fresh(*stream, "weights"), *stream)
            asked = [r for r, c in enumerate(test.targets.tolist()) if c in seen]
            said = logits(one.net, test.images[asked], cpu).argmax(1).tolist()
            right = [seen[s] == c for s, c in zip(said, test.targets[asked].tolist(), strict=True)]
            accuracy = result["steps"][step]["accuracy"]["runs"][number]
            assert accuracy == pytest.approx(100 * sum(right) / len(right))
    by_order = [sum(of_it) / 3 for of_it in zip(*runs(result), strict=True)]
    assert result["average"] == scores.summarize(by_order)
    assert all(step["lr"] == [0.05, 0.05] for step in result["steps"])


def test_nothing_is_learnt_of_classes_still_to_come(real_set, digits, cpu, settings):
    once = settings.changed({"orders": 1})
    first = class_order(10, 3, 0)[:4]
    later = [c for c in range(10) if c not in first]
    targets, stored = real_set.targets.clone(), real_set.stored.clone()
    targets[:, later] = 100 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    stored[torch.isin(real_set.classes, torch.tensor(later))] *= -1
    other = replace(real_set, labels=Labels.of(targets), stored=stored)
    before, after = (continual(one, digits, once, Run(cpu)) for one in (real_set, other))
    assert runs(before)[0] == runs(after)[0] and runs(before)[2] != runs(after)[2]


def test_the_smallest_memory_knows_one_class(real_set, digits, cpu, settings):
    hard = real_set.recipe.with_hard_labels()
    one = replace(real_set, labels=Labels.of(real_set.classes), recipe=hard)
    result = continual(one, digits, settings.changed({"steps": 10, "epochs": 2}), Run(cpu))
    assert runs(result)[0] == [100.0, 100.0] and len(runs(result)) == 10


def test_orders_and_steps_do_not_depend_on_how_many_there_are(real_set, digits, cpu, settings):
    few = continual(real_set, digits, settings, Run(cpu))
    more = continual(real_set, digits, settings.changed({"orders": 3}), Run(cpu))
    assert [of[:2] for of in runs(more)] == runs(few) and more["orders"][:2] == few["orders"]
    joint = continual(real_set, digits, settings.changed({"steps": 1}), Run(cpu))
    assert runs(joint) == runs(few)[2:]


def test_a_rate_is_looked_for_after_every_step_on_the_classes_seen(
    real_set, digits, cpu, settings, monkeypatch
):
    judged, rate = [], evaluate.accuracy_at

    def spy(trainer, spec, lr, real, *stream, part):
        judged.append((lr, len(trainer.examples.targets), int(real.targets.max())))
        return rate(trainer, spec, lr, real, *stream, part=part)

    monkeypatch.setattr(evaluate, "accuracy_at", spy)
    told = settings.changed({"rates": [1e-6, 2.0], "orders": 1})
    result = continual(real_set, digits, told, Run(cpu))
    sizes = [(4 * count, count - 1) for count in (4, 7, 10)]
    assert judged == [(lr * 0.05, *size) for size in sizes for lr in (1e-6, 2.0)]
    assert [step["lr"] for step in result["steps"]] == [[0.1]] * 3


def test_an_interrupted_measurement_is_continued(real_set, digits, cpu, settings, tmp_path):
    unbroken, shown = continual(real_set, digits, settings, Run(cpu)), []

    def show(done: int, total: int, _: dict) -> None:
        shown.append(done)
        if len(shown) == 30:
            raise KeyboardInterrupt
        assert total == 6 * 13

    resume = Resume(tmp_path, settings.to_dict(), every=0)
    with pytest.raises(KeyboardInterrupt):
        continual(real_set, digits, settings, Run(cpu, resume, show))
    found = continual(real_set, digits, settings, Run(cpu, resume, show))
    assert runs(found) == runs(unbroken)
    assert shown == [*range(1, 31), *range(30, 79)]


@pytest.fixture
def files(real_set, digits, tmp_path):
    """Score files of two sets, and the sets by entry."""
    sets, paths = {}, []
    for entry, accuracy in (("mine", 90.0), ("random", 50.0)):
        info = {**real_set.artifact.info, "entry": entry}
        artifact = replace(real_set.artifact, info=info, content=entry * 9)
        sets[entry] = replace(real_set, artifact=artifact)
        steps = [
            {"classes": c, "accuracy": scores.summarize([accuracy, accuracy - c]), "lr": [0.1, 0.2]}
            for c in (5, 10)
        ]
        figures = {
            "measured": {"stage": "continual", "entry": entry, "network": "convnet"},
            "orders": [list("0123456789"), list("9876543210")],
            "steps": steps,
            "average": scores.summarize([accuracy, accuracy - 7.5]),
            "seconds": 30.0,
        }
        paths.append(tmp_path / f"{entry}.json")
        inputs = {"data": digits.artifact.content, "distilled": artifact.content}
        store.write_json(paths[-1], "scores", figures, inputs)
    return sets, paths


COLLECT = CollectSettings(ipc=4, seed=3, controls={}, record={"ipc": 4})


def test_results_hold_every_entry_with_its_bytes(files):
    sets, paths = files
    found = curves("toys", COLLECT, sets, paths)
    assert list(found["methods"]) == ["mine", "random"]
    mine = found["methods"]["mine"]
    assert mine["bytes_per_class"] == {"images": 4 * 64 * 4, "labels": 4 * 10 * 4}
    assert mine["steps"][1]["accuracy"]["runs"] == [90.0, 80.0] and mine["seconds"] == 30.0
    assert found["run"]["seconds"]["continual"] == 60.0 and found["run"]["settings"] == {"ipc": 4}
    assert found["network"] == "convnet" and len(found["orders"]) == 2
    store.write_json(paths[0], KIND, found)


def test_figures_of_another_set_are_refused(files):
    sets, paths = files
    other = replace(sets["mine"], artifact=replace(sets["mine"].artifact, content="other"))
    with pytest.raises(ArtifactError, match=r"mine\.json: was measured on another set"):
        curves("toys", COLLECT, {**sets, "mine": other}, paths)


def test_the_table_has_a_row_per_set_and_a_column_per_step(files):
    found = curves("toys", COLLECT, *files)
    assert report.rows(found) == (
        ["classes seen", "5", "10", "mean", "kB per class"],
        [
            ["mine", "87.5 ± 3.5", "85.0 ± 7.1", "86.2 ± 5.3", "1.2"],
            ["random", "47.5 ± 3.5", "45.0 ± 7.1", "46.2 ± 5.3", "1.2"],
        ],
    )
    shown = report.table(found)
    assert shown.title == "toys, 4 images of each class in memory: test accuracy in %"
    assert [shown.row_count, len(shown.columns)] == [2, 5]


def test_the_figure_is_a_file_of_its_own_with_a_line_and_a_band_per_set(files, tmp_path):
    path = tmp_path / "figure.svg"
    with style.applied():
        drawn = chart.chart(curves("toys", COLLECT, *files))
        style.write(path, drawn)
    root = ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg" and root.find(f"{space}desc").text == drawn.text
    assert root.get("width") == f"{72 * style.WIDTH:g}pt"
    words = [one.text for one in root.iter(f"{space}text")]
    assert {"classes seen", "mine", "random"} <= set(words)
    assert root.get("aria-label").endswith("all classes seen: mine 85.0, random 45.0")
    bands = [g for g in root.iter(f"{space}g") if "FillBetween" in (g.get("id") or "")]
    assert len(bands) == 2


def test_a_line_is_of_means_and_its_band_one_deviation_to_each_side(files, monkeypatch):
    drawn = []
    monkeypatch.setattr(style, "svg", lambda figure, *_: drawn.append(figure) or "")
    chart.chart(curves("toys", COLLECT, *files))
    [axes] = drawn[0].axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[5.0, 87.5], [10.0, 85.0]],
        [[5.0, 47.5], [10.0, 45.0]],
    ]
    [path] = axes.collections[0].get_paths()
    for classes, mean, deviation in ((5.0, 87.5, 12.5**0.5), (10.0, 85.0, 50**0.5)):
        ys = [y for x, y in path.vertices.tolist() if x == classes]
        assert (min(ys), max(ys)) == pytest.approx((mean - deviation, mean + deviation))
