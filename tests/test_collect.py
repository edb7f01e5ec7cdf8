"""The results file and the summary, from score files made by hand."""

import csv
import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import torch

from apm_core import scores
from apm_core.data.labels import Labels
from apm_core.distilled import DistilledSet
from apm_core.errors import ArtifactError
from apm_core.runtime import store
from apm_core.settings.stages import CollectSettings
from apm_core.settings.text import fingerprint
from apm_core.stages.collect import collect, summarize_folder
from apm_core.training.recipe import Recipe

RECORD = {"ipc": 2, "seed": 4, "dataset": {"name": "toys"}}
CONTROLS = {"apm": {"entry": "random", "recipe": ["lr"]}}
SETTINGS = CollectSettings(ipc=2, seed=4, controls=CONTROLS, record=RECORD)
COSTS = {
    "apm": {"teacher_seconds": 100.0, "distill_seconds": 50.0, "peak_memory_bytes": 7},
    "random": {"teacher_seconds": 100.0, "distill_seconds": 0.5, "peak_memory_bytes": 3},
}
# (entry, network) -> runs by protocol
RUNS = {
    ("apm", "convnet"): {"own": [60.0, 64.0], "hard": [40.0], "plain": [55.0, 57.0]},
    ("apm", "vgg11"): {"own": [50.0, 50.0]},
    ("random", "convnet"): {"own": [30.0, 32.0], "hard": [22.0], "plain": [25.0, 27.0]},
    ("random", "vgg11"): {"own": [20.0, 24.0]},
}
NAS = {
    "networks": 8,
    "spearman": {"mean": 0.5, "std": 0.0, "ci95": [0.1, 0.9]},
    "kendall": {"mean": None, "std": None, "ci95": None},
    "top10_recall": 1.0,
    "reference": {"source": "train", "pick": 1.0, "best": 2.0, "mean": 1.0},
    "search": {"by_full_data": {"seconds": 30.0}},
    "baselines": {"parameters": {"cost": {"seconds": 0.0}}, "short": {"cost": {"seconds": 9.0}}},
    "seconds": 11.0,
}


DATA = "d" * 64
TEACHER = {"network": "convnet", "accuracy": 81.0, "content": "t" * 64}


def made_from(entry: str) -> dict[str, str]:
    """What the networks of an entry were trained and tested on."""
    return {"data": DATA, "distilled": entry * 9}


def distilled_set(entry: str) -> DistilledSet:
    """Two grey images of each of three classes."""
    info = {**COSTS[entry], "device": "cpu", "precision": "float32", "real_bytes": 6000}
    artifact = store.Artifact("distilled set", {}, {}, {"data": DATA}, info, entry * 9)
    return DistilledSet(
        stored=torch.zeros(6, 1, 4, 4),
        classes=torch.arange(3).repeat(2),
        labels=Labels.of(torch.zeros(6, 3)),
        recipe=Recipe(passes=1, lr=0.1),
        pixels=torch.zeros(6, 1, 4, 4, dtype=torch.uint8),
        whitening_file=None,
        class_names=("car", "doll", "kite"),
        artifact=artifact,
    )


def trained(runs: list[float]) -> dict:
    """The scores of networks that were trained alike."""
    metrics = {"accuracy": scores.summarize(runs)}
    return {"metrics": metrics, "recipe": {"lr": 0.1}, "rates": []}


def figures(entry: str, network: str, **runs: list[float]) -> dict:
    """The figures of a score file of the evaluation, from the runs of each protocol."""
    return {
        "measured": {"stage": "evaluate", "entry": entry, "network": network},
        "protocols": {protocol: trained(of_it) for protocol, of_it in runs.items()},
        "seconds": 2.0 * sum(map(len, runs.values())),
    }


@pytest.fixture
def files(tmp_path):
    """Score files as the workflow lays them down."""
    work = tmp_path / "work" / "toys"
    found = [work / "ceiling" / "convnet.json", work / "nas" / "ipc2.apm.json"]
    full = {"measured": {"stage": "ceiling", "network": "convnet"}, "seconds": 4.0}
    full |= trained([80.0, 84.0])
    store.write_json(found[0], "scores", full, {"data": DATA})
    agreement = {"measured": {"stage": "nas", "entry": "apm"}, **NAS}
    store.write_json(found[1], "scores", agreement, made_from("apm"))
    for (entry, network), runs in RUNS.items():
        found.append(work / "evaluate" / f"ipc2.{entry}" / f"{network}.json")
        store.write_json(found[-1], "scores", figures(entry, network, **runs), made_from(entry))
    return found


def evaluation(files, network: str, entry: str = "apm") -> Path:
    """The score file of `network` on the set of an entry."""
    [file] = [one for one in files if one.match(f"ipc2.{entry}/{network}.json")]
    return file


def label_online(files, entry: str, teacher: str = "t") -> None:
    """Evaluate the ConvNet on the set of an entry under the labels of a teacher too."""
    file = evaluation(files, "convnet", entry)
    what, inputs = store.read_json(file, "scores")
    online = trained([66.0, 70.0]) | {"teacher": {**TEACHER, "content": teacher * 64}}
    what["protocols"]["kd"] = online
    store.write_json(file, "scores", what, {**inputs, "teacher": teacher * 64})


def results(files, *entries: str) -> dict:
    sets = {entry: distilled_set(entry) for entry in entries or ("apm", "random")}
    return collect("toys", SETTINGS, sets, files)


def test_the_run_describes_itself(files):
    run = results(files)["run"]
    assert date.fromisoformat(run.pop("date")) <= datetime.now(UTC).date()
    assert run == {
        "dataset": "toys",
        "ipc": 2,
        "seed": 4,
        "settings": RECORD,
        "fingerprint": fingerprint(RECORD),
        "data_fingerprint": "d" * 64,
        "versions": store.versions(),
        "device": "cpu",
        "seconds": {
            "teachers": 100.0,
            "distill": 50.5,
            "evaluate": 28.0,  # two a run
            "ceiling": 4.0,
            "nas": 50.0,  # by the set, by short and by long trainings on all data
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
    keys = {
        "images",
        "tiles",
        "image_bytes",
        "label_bytes",
        "compression",
        "accuracy",
        "plain_accuracy",
        "online_label_accuracy",
    }
    keys |= {"hard_label_accuracy", "lrs", "ars", "nas", "cost", "control"}
    for method in found["methods"].values():
        assert set(method) == keys
        cost = {"teacher_seconds", "distill_seconds", "peak_memory_bytes", "device", "precision"}
        assert set(method["cost"]) == cost
    assert found["methods"]["apm"]["nas"] == NAS
    assert found["methods"]["random"]["nas"] is None
    assert found["methods"]["apm"]["control"] == CONTROLS["apm"]
    assert found["methods"]["random"]["control"] is None
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
    def scored(files) -> set[str]:
        apm = results(files)["methods"]["apm"]
        return {name for name in ("lrs", "ars") if apm[name] is not None}

    def without(protocol: str) -> set[str]:
        file = evaluation(files, "convnet")
        what, inputs = store.read_json(file, "scores")
        kept = {name: one for name, one in what["protocols"].items() if name != protocol}
        store.write_json(file, "scores", {**what, "protocols": kept}, inputs)
        found = scored(files)
        store.write_json(file, "scores", what, inputs)
        return found

    assert scored(files) == {"lrs", "ars"}
    assert without("hard") == {"ars"} and without("plain") == {"lrs"}
    assert scored([file for file in files if "ceiling" not in str(file)]) == {"ars"}
    own = [file for file in files if "random" not in str(file)]
    alone = results(own, "apm")["methods"]["apm"]
    assert alone["lrs"] is None and alone["ars"] is None


def test_accuracies_under_online_labels_stand_alone_and_name_their_teacher(files):
    before = results(files)["methods"]["apm"]
    label_online(files, "apm")
    found = results(files)["methods"]["apm"]
    online = {**scores.summarize([66.0, 70.0]), "lr": 0.1, "teacher": TEACHER}
    assert found.pop("online_label_accuracy") == {"convnet": online}
    assert before.pop("online_label_accuracy") == {} and found == before


def test_online_labels_of_two_teachers_are_not_compared(files):
    label_online(files, "apm")
    label_online(files, "random")
    assert results(files)["methods"]["random"]["online_label_accuracy"]["convnet"]["mean"] == 68.0
    label_online(files, "random", "u")
    other, first = (evaluation(files, "convnet", entry) for entry in ("random", "apm"))
    message = f"{other}: another teacher labelled than for {first}: delete both and run again"
    with pytest.raises(ArtifactError, match=message):
        results(files)


def test_files_say_themselves_what_they_measured(files, tmp_path):
    expected = results(files)
    misplaced = [
        file.rename(tmp_path / f"ceiling.{number}") for number, file in enumerate(reversed(files))
    ]
    assert results(misplaced) == expected
    assert expected["methods"]["apm"]["accuracy"]["convnet"]["mean"] == 62.0


@pytest.mark.parametrize(
    ("protocol", "prefix"),
    [("own", ""), ("hard", "hard_label_"), ("plain", "plain_"), ("kd", "online_label_")],
)
def test_a_metric_that_nothing_here_knows_is_passed_on(files, protocol, prefix):
    label_online(files, "apm")
    file = evaluation(files, "convnet")
    what, inputs = store.read_json(file, "scores")
    what["protocols"][protocol]["metrics"]["top5"] = scores.summarize([90.0, 94.0])
    before = results(files)
    store.write_json(file, "scores", what, inputs)
    found = results(files)
    score = {**scores.summarize([90.0, 94.0]), "lr": 0.1}
    if protocol == "kd":
        score["teacher"] = TEACHER
    assert found["methods"]["apm"].pop(f"{prefix}top5") == {"convnet": score}
    assert found == before


def test_a_network_and_an_entry_that_nothing_here_knows_are_passed_on(files, tmp_path):
    what = figures("apm", "mixer", own=[70.0])
    store.write_json(tmp_path / "one.json", "scores", what, made_from("apm"))
    found = results([*files, tmp_path / "one.json"])["methods"]["apm"]["accuracy"]["mixer"]
    assert found == {**scores.summarize([70.0]), "lr": 0.1, "recovery": None}
    sets = {"wide_apm": distilled_set("apm"), "random": distilled_set("random")}
    what = figures("wide_apm", "convnet", own=[71.0])
    store.write_json(tmp_path / "two.json", "scores", what, made_from("apm"))
    kept = [file for file in files if "apm" not in str(file.relative_to(tmp_path))]
    found = collect("toys", SETTINGS, sets, [*kept, tmp_path / "two.json"])["methods"]
    assert list(found) == ["wide_apm", "random"]
    assert found["wide_apm"]["accuracy"]["convnet"]["mean"] == 71.0


def test_files_of_other_sets_are_refused(files, tmp_path):
    other = tmp_path / "work/toys/evaluate/ipc20.apm/convnet.json"
    for entry in ("apm", "other"):
        what = figures(entry, "convnet", own=[1.0])
        store.write_json(other, "scores", what, made_from("other"))
        message = f"{other}: was measured on another set or other data: delete {other} and run"
        with pytest.raises(ArtifactError, match=message):
            results([*files, other])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_score_files_of_another_run_are_refused(files, number):
    label_online(files, "apm")
    what, inputs = store.read_json(files[number], "scores")
    for role in inputs:
        store.write_json(files[number], "scores", what, {**inputs, role: "f" * 64})
        with pytest.raises(ArtifactError, match="json: was measured on another set or other data"):
            results(files)
    store.write_json(files[number], "results", what, inputs)
    with pytest.raises(ArtifactError, match="its kind is 'results', expected 'scores'"):
        results(files)


def test_damaged_score_files_are_refused(files):
    files[0].write_text("{")
    with pytest.raises(ArtifactError, match=r"convnet\.json: cannot be read .*: delete "):
        results(files)


def test_the_summary_has_one_line_per_method_of_every_run(files, tmp_path):
    folder = tmp_path / "results"
    label_online(files, "apm")
    store.write_json(folder / "toys_ipc2.json", "results", results(files))
    of_apm = [one for one in files if "apm" in str(one.relative_to(tmp_path))]
    kept = [one for one in files if one not in of_apm and "vgg11" not in one.name]
    older = results(kept, "random")
    del older["methods"]["random"]["online_label_accuracy"]  # which these did not have
    store.write_json(folder / "toys_ipc1.json", "results", older)
    store.write_json(folder / "toys_ipc2.continual.json", "continual results", {})  # no run's
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
        "convnet_online_mean": "68.0",
        "convnet_online_std": "2.828",
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
