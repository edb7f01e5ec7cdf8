"""The results file and the summary, from score files made by hand."""

import csv
import json
from datetime import UTC, date, datetime

import pytest
import torch

from apm_core import scores
from apm_core.distilled import DistilledSet
from apm_core.errors import ArtifactError
from apm_core.runtime import store
from apm_core.settings.text import fingerprint
from apm_core.stages.collect import collect, summarize_folder
from apm_core.training.recipe import Recipe

SETTINGS = {"ipc": 2, "seed": 4, "dataset": {"name": "toys"}}
COSTS = {
    "apm": {"teacher_seconds": 100.0, "distill_seconds": 50.0, "peak_memory_bytes": 7},
    "random": {"teacher_seconds": 100.0, "distill_seconds": 0.5, "peak_memory_bytes": 3},
}
# (method, network, protocol) -> runs
RUNS = {
    ("apm", "convnet", "own"): [60.0, 64.0],
    ("apm", "vgg11", "own"): [50.0, 50.0],
    ("apm", "convnet", "hard"): [40.0],
    ("apm", "convnet", "plain"): [55.0, 57.0],
    ("random", "convnet", "own"): [30.0, 32.0],
    ("random", "vgg11", "own"): [20.0, 24.0],
    ("random", "convnet", "hard"): [22.0],
    ("random", "convnet", "plain"): [25.0, 27.0],
}
NAS = {
    "networks": 8,
    "spearman": {"mean": 0.5, "std": 0.0, "ci95": [0.1, 0.9]},
    "kendall": {"mean": None, "std": None, "ci95": None},
    "top10_recall": 1.0,
    "reference": {"source": "train", "pick": 1.0, "best": 2.0, "mean": 1.0},
    "seconds": 11.0,
}


DATA = "d" * 64


def measured(method: str) -> dict[str, str]:
    """What the networks of a method were trained and tested on."""
    return {"data": DATA, "distilled": method * 9}


def distilled_set(method: str) -> DistilledSet:
    """Two grey images of each of three classes."""
    info = {**COSTS[method], "device": "cpu", "precision": "float32", "real_bytes": 6000}
    artifact = store.Artifact("distilled set", {}, {}, {"data": DATA}, info, method * 9)
    return DistilledSet(
        images=torch.zeros(6, 1, 4, 4),
        classes=torch.arange(3).repeat(2),
        targets=torch.zeros(6, 3),
        recipe=Recipe(passes=1, lr=0.1),
        pixels=torch.zeros(6, 1, 4, 4, dtype=torch.uint8),
        whitening_file=None,
        class_names=("car", "doll", "kite"),
        artifact=artifact,
    )


def score(runs: list[float]) -> dict:
    return {**scores.summarize(runs), "seconds": 2.0 * len(runs), "recipe": {"lr": 0.1}}


@pytest.fixture
def files(tmp_path):
    """Score files as the workflow lays them down."""
    work = tmp_path / "work" / "toys"
    found = [work / "ceiling" / "convnet.json", work / "nas" / "ipc2.apm.json"]
    store.write_json(found[0], "ceiling", score([80.0, 84.0]), {"data": DATA})
    store.write_json(found[1], "agreement", NAS, measured("apm"))
    for (method, network, protocol), runs in RUNS.items():
        found.append(work / "evaluate" / f"ipc2.{method}" / f"{network}.{protocol}.json")
        store.write_json(found[-1], "evaluation", score(runs), measured(method))
    return found


def results(files, *methods: str) -> dict:
    sets = {method: distilled_set(method) for method in methods or ("apm", "random")}
    return collect("toys", SETTINGS, sets, files)


def test_the_run_describes_itself(files):
    run = results(files)["run"]
    assert date.fromisoformat(run.pop("date")) <= datetime.now(UTC).date()
    assert run == {
        "dataset": "toys",
        "ipc": 2,
        "seed": 4,
        "settings": SETTINGS,
        "fingerprint": fingerprint(SETTINGS),
        "data_fingerprint": "d" * 64,
        "versions": store.versions(),
        "device": "cpu",
        "seconds": {
            "teachers": 100.0,
            "distill": 50.5,
            "evaluate": 2.0 * sum(map(len, RUNS.values())),
            "ceiling": 4.0,
            "nas": 11.0,
        },
    }


def test_accuracies_are_where_they_belong(files):
    found = results(files)
    ceiling = {"mean": 82.0, "std": pytest.approx(8**0.5), "n": 2, "runs": [80.0, 84.0]}
    ceiling["lr"] = 0.1
    assert found["ceiling"] == {"convnet": ceiling}
    apm = found["methods"]["apm"]
    assert set(apm["accuracy"]) == {"convnet", "vgg11"}
    assert apm["accuracy"]["convnet"] == {
        **scores.summarize([60.0, 64.0]),
        "lr": 0.1,
        "recovery": pytest.approx(62 / 82),
    }
    assert apm["accuracy"]["vgg11"]["recovery"] is None
    assert apm["hard_label_accuracy"] == {"convnet": {**scores.summarize([40.0]), "lr": 0.1}}
    plain = {**scores.summarize([55.0, 57.0]), "lr": 0.1}
    assert apm["plain_accuracy"] == {"convnet": plain}
    assert found["methods"]["random"]["accuracy"]["vgg11"]["mean"] == 22.0


def test_every_documented_key_is_there(files):
    found = results(files)
    assert set(found) == {"run", "ceiling", "methods"}
    keys = {"images", "image_bytes", "label_bytes", "compression", "accuracy", "plain_accuracy"}
    keys |= {"hard_label_accuracy", "lrs", "ars", "nas", "cost"}
    for method in found["methods"].values():
        assert set(method) == keys
        cost = {"teacher_seconds", "distill_seconds", "peak_memory_bytes", "device", "precision"}
        assert set(method["cost"]) == cost
    assert found["methods"]["apm"]["nas"] == NAS
    assert found["methods"]["random"]["nas"] is None
    json.dumps(found, allow_nan=False)


def test_storage_and_costs_are_those_of_the_set(files):
    apm = results(files)["methods"]["apm"]
    assert (apm["images"], apm["image_bytes"], apm["label_bytes"]) == (6, 6 * 16 * 4, 6 * 3 * 4)
    assert apm["compression"] == pytest.approx(6000 / (384 + 72))
    assert apm["cost"] == {**COSTS["apm"], "device": "cpu", "precision": "float32"}


def test_robust_scores_are_made_of_the_right_accuracies(files):
    found = results(files)["methods"]
    expected = scores.lrs(real_hard=82.0, syn_hard=40.0, syn_any=62.0, random_any=31.0)
    assert found["apm"]["lrs"] == pytest.approx(expected)
    expected = scores.ars(syn_aug=62.0, random_aug=31.0, syn_plain=56.0, random_plain=26.0)
    assert found["apm"]["ars"] == pytest.approx(expected)
    assert found["random"]["lrs"] is None and found["random"]["ars"] is None


def test_robust_scores_need_all_their_accuracies(files):
    def without(*parts: str) -> dict:
        kept = [file for file in files if not any(part in str(file) for part in parts)]
        return results(kept)["methods"]["apm"]

    assert without(".hard.json")["lrs"] is None and without(".hard.json")["ars"] is not None
    assert without("ceiling")["lrs"] is None and without("ceiling")["ars"] is not None
    assert without(".plain.json")["ars"] is None and without(".plain.json")["lrs"] is not None
    alone = results(files, "apm")["methods"]["apm"]
    assert alone["lrs"] is None and alone["ars"] is None


def test_files_of_other_sets_are_left_alone(files, tmp_path):
    other = tmp_path / "work/toys/evaluate/ipc20.apm/convnet.own.json"
    store.write_json(other, "evaluation", score([1.0]), measured("other"))
    assert results([*files, other])["methods"] == results(files)["methods"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_score_files_of_another_run_are_refused(files, number):
    kind = ("ceiling", "agreement", "evaluation")[number]
    figures, inputs = store.read_json(files[number], kind)
    for role in inputs:
        store.write_json(files[number], kind, figures, {**inputs, role: "f" * 64})
        with pytest.raises(ArtifactError, match="json: was measured on another set or other data"):
            results(files)
    store.write_json(files[number], "results", figures, inputs)
    with pytest.raises(ArtifactError, match=f"its kind is 'results', expected '{kind}'"):
        results(files)


def test_damaged_score_files_are_refused(files):
    files[0].write_text("{")
    with pytest.raises(ArtifactError, match=r"convnet\.json: cannot be read .*: delete "):
        results(files)


def test_the_summary_has_one_line_per_method_of_every_run(files, tmp_path):
    folder = tmp_path / "results"
    store.write_json(folder / "toys_ipc2.json", "results", results(files))
    kept = [file for file in files if "vgg11" not in file.name]
    store.write_json(folder / "toys_ipc1.json", "results", results(kept, "random"))
    summarize_folder(folder)
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["method"]) for row in rows] == [
        ("toys", "random"),
        ("toys", "apm"),
        ("toys", "random"),
    ]
    assert rows[1] == {
        "dataset": "toys",
        "ipc": "2",
        "method": "apm",
        "images": "6",
        "bytes": "456",
        "compression": "13.16",
        "teacher_seconds": "100.0",
        "distill_seconds": "50.0",
        "spearman": "0.5",
        "convnet_mean": "62.0",
        "convnet_std": "2.828",
        "convnet_hard_mean": "40.0",
        "convnet_hard_std": "0.0",
        "vgg11_mean": "50.0",
        "vgg11_std": "0.0",
    }
    assert rows[0]["vgg11_mean"] == "" and rows[2]["spearman"] == ""
    summarize_folder(folder)
    with (folder / "summary.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows


def test_a_stray_file_in_the_results_folder_is_named(tmp_path):
    (tmp_path / "toys_ipc2.json").write_text('{"run": {}}')
    message = r"toys_ipc2\.json: has no checksum, so apm did not write it: move it away"
    with pytest.raises(ArtifactError, match=message):
        summarize_folder(tmp_path)
    assert not (tmp_path / "summary.csv").exists()
