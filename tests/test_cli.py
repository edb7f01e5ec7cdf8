"""The command `apm`, as a person types it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from apm_core import distilled
from apm_core.cli import planned, training
from apm_core.cli.commands import main
from apm_core.estimate.speed import Speed
from apm_core.runtime import store
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings

REPO = Path(__file__).parents[1]
VERBS = {"doctor", "export", "fit", "import", "inspect", "plan", "train"}
TINY = {
    "dataset": {"name": "digits"},
    "ipc": 10,
    "teachers": {"width": 4, "depth": 1, "n": 4, "per_job": 2, "epochs": 1},
    "distill": {"methods": ["apm", "random_hard", "dm"], "shards": 2},
    "evaluate": {"architectures": ["convnet", "vit"], "hard_labels": ["convnet"]},
}


def call(*arguments, code=0):
    """The output of the command, which ends with `code`."""
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


def refused(*arguments):
    """The one line in which the command refuses."""
    (line,) = call(*arguments, code=1).splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


@pytest.fixture
def file(real_set):
    return Path(real_set.artifact.path)


def python(*arguments, folder):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


def test_help_fits_a_screen_and_needs_no_torch(tmp_path):
    code = (
        "import sys; from apm_core.cli.commands import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'numpy', 'rich', 'zarr'} & set(sys.modules)))"
    )
    done = python("-c", code, folder=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 24 and lines[-1] == "[]"
    assert {line.split()[0] for line in lines[-len(VERBS) - 1 : -1]} == VERBS


def test_the_module_is_the_command(file, tmp_path):
    run = ("-m", "apm_core.cli")
    done = python(*run, "inspect", str(file), folder=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"{file}: distilled set, made by random (entry random)\n")
    assert "▀" not in done.stdout  # no terminal, no pictures
    done = python(*run, "inspect", "missing.zarr.zip", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: missing.zarr.zip: there is no such file")
    assert len(done.stderr.splitlines()) == 1


def test_the_entry_point_is_declared():
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"apm": f"{main.callback.__module__}:main"}


def test_a_set_is_inspected_with_its_images(real_set, file):
    text = call("inspect", file)
    assert "40 of 10 classes, 8x8 images with 1 channels" in text
    assert "logits for the loss l1" in text and "digits.whitening.zarr.zip" in text
    assert "2,560" not in text and "10,240 of images, 1,600 of labels" in text
    assert f"made from data {real_set.artifact.inputs['data'][:12]}" in text
    shown = call("inspect", file, "--gallery")
    rows = [line for line in shown.splitlines() if "▀" in line]
    assert len(rows) == 10 * 4  # two pixels to a line
    assert "\x1b[38;2;" in rows[0]


def test_other_files_are_inspected(digits, teacher_files, random_files, file, tmp_path):
    text = call("inspect", digits.artifact.path)
    assert text.splitlines()[0].endswith(": data") and "train     1438 images" in text
    text = call("inspect", teacher_files[0])
    assert "2 of convnet" in text and "snapshots 2 epochs" in text and "training:" in text
    assert "shard 0 of random" in call("inspect", random_files[0])
    assert "whitening zca" in call("inspect", file.with_name("digits.whitening.zarr.zip"))
    score = {"mean": 50.0, "std": 1.0, "n": 2, "runs": [49, 51]}
    figures = {"measured": {"stage": "ceiling", "network": "vit"}, "metrics": {"accuracy": score}}
    store.write_json(tmp_path / "s.json", "scores", figures)
    text = call("inspect", tmp_path / "s.json")
    assert "ceiling, vit" in text and "50.0 ± 1.0 %, 2 networks" in text
    results = REPO / "benchmarks/results/compare_digits_ipc10.json"
    if results.is_file():
        assert "apm_plus" in call("inspect", results)
    classes = REPO / "benchmarks/results/continual_digits.json"
    assert "apm_plus" in call("inspect", classes) and "classes seen" in call("inspect", classes)


def test_what_is_no_file_of_ours_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    assert "a.json: cannot be read" in refused("inspect", tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{}")
    assert "does not say what it is" in refused("inspect", tmp_path / "a.json")
    (tmp_path / "a.zip").write_text("x")
    assert "a.zip: the file is damaged" in refused("inspect", tmp_path / "a.zip")


def test_out_and_in_again(real_set, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        call("export", file, "--to", "tensors", "out")
        == "out: tensors, described in out/set.json\n"
    )
    assert refused("export", file, "--to", "pt", "out").startswith("out: pt is one file: name it")
    *_, line = call("import", "out", "--as", "theirs").splitlines()
    (entry,) = yaml.safe_load(line)
    assert entry["file"] == "sets/theirs.zarr.zip" and entry["method"] == "imported"
    assert Plan(RunSettings.of({"distill": {"methods": [entry]}})).files("theirs") == [
        entry["file"]
    ]
    found = distilled.load(entry["file"])
    assert np.array_equal(found.images, real_set.select().images)
    assert found.recipe == real_set.recipe


def test_an_import_asks_for_what_nobody_says(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("export", file, "--to", "pt", "a.pt")
    Path("a.pt.json").unlink()
    assert "a.pt: nothing says what space its images are in" in refused(
        "import", "a.pt", "--as", "a"
    )
    given = (
        "import",
        "a.pt",
        "--as",
        "a",
        "--space",
        "normalised",
        "--mean",
        "0.5",
        "--std",
        "0.2",
    )
    assert "what loss its soft labels are for" in refused(*given)
    assert "made by imported" in call(*given, "--loss", "l1")
    assert refused("import", "a.pt", "--as", "A b").startswith("--as A b: not the name of an entry")
    assert "numbers with commas" in call(*given, "--mean", "x", code=2)
    assert {path.name for path in Path("sets").iterdir()} == {"a.zarr.zip", "a.whitening.zarr.zip"}


@pytest.fixture
def test_folder(digits, tmp_path):
    """The test images as a person has them."""
    arrays = digits.artifact.arrays
    for number, c in enumerate(arrays["test_labels"]):
        path = tmp_path / f"test/{c}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrays["test_images"][number, 0]).save(path)
    return tmp_path / "test"


def test_networks_are_trained_and_measured(file, test_folder):
    run = ("train", file, "--arch", "convnet", "--width", 8, "--depth", 1, "--epochs", 3)
    text = call(*run, "--test", test_folder, "--networks", 2, "--device", "cpu")
    assert "convnet on 40 images" in text and "4 epochs, lr 0.05, loss l1, on cpu" in text
    losses = [float(one) for one in re.findall(r"network 0: epoch \d/4, loss ([\d.]+)", text)]
    assert len(losses) == 4 and losses[-1] < losses[0]
    scores = re.findall(r"network \d: ([\d.]+) % of 359 test images", text)
    assert len(scores) == 2 and re.search(r"accuracy: .* % \(2 networks\)", text)
    assert call(*run, "--seed", 1) != call(*run, "--seed", 2)


def test_test_images_go_through_the_sets_whitening(real_set, digits, test_folder, cpu):
    found, expected = training.test_examples(real_set, test_folder), digits.examples("test", cpu)
    order = torch.argsort(found.images.flatten(1)[:, 35])
    wanted = torch.argsort(expected.images.flatten(1)[:, 35])
    torch.testing.assert_close(found.images[order], expected.images[wanted])
    assert torch.equal(found.targets[order], expected.targets[wanted])


def test_training_refuses_what_does_not_fit(file, test_folder, tmp_path):
    run = ("train", file, "--arch", "convnet", "--epochs", 1)
    (test_folder / "0").rename(test_folder / "zero")
    assert "'zero' is no class of the set: name" in refused(*run, "--test", test_folder)
    assert "there is no such folder" in refused(*run, "--test", tmp_path / "none")
    assert "width=9 is a setting of" in refused("train", file, "--arch", "alexnet", "--width", 9)
    alone = Path(shutil.copy(file, tmp_path / "alone.zarr.zip"))
    call("train", alone, "--arch", "convnet", "--epochs", 1, "--width", 4)
    (test_folder / "zero").rename(test_folder / "0")
    assert "there is no such file" in refused("train", alone, *run[2:], "--test", test_folder)


def test_the_doctor_examines_a_folder(test_folder, tmp_path):
    text = call("doctor", test_folder)
    assert "train 289 images of 10 classes, 8x8x1" in text and "can be distilled, with" in text
    *_, line = call("doctor", test_folder, "--ipc", 500, code=1).splitlines()
    assert line.startswith("Error: 500 images per class are asked for")
    (test_folder / "0/bad.png").write_bytes(b"x")
    assert "bad.png" in refused("doctor", test_folder)
    assert "none does not exist" in refused("doctor", tmp_path / "none")


def write(folder, config):
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def counted(text):
    return {stage: int(n) for stage, n in re.findall(r"^([a-z_]+) +(\d+)$", text, re.MULTILINE)}


@pytest.mark.workflow
def test_the_plan_counts_the_jobs_that_snakemake_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = call("plan", write(tmp_path, TINY))
    done = python(
        *("-m", "snakemake", "-s", str(REPO / "Snakefile"), "--cores", "1", "-n"),
        *("--configfile", "run.yaml", "--", "results/digits_ipc10.json"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    stats = (done.stdout + done.stderr).rpartition("Job stats:")[2]
    expected = {
        stage: int(n) for stage, n in re.findall(r"^([a-z_]+) +(\d+)$", stats, re.MULTILINE)
    }
    assert counted(text) == {k: n for k, n in expected.items() if k not in ("total", "all")}


def test_a_plan_compiles_a_network_where_jobs_will(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, asked = Speed("cpu", 1e-11, 1e-9, 1e-3), []
    monkeypatch.setattr(planned, "measured", lambda: plain)
    monkeypatch.setattr(planned, "fused_share", lambda speed: asked.append(speed) or 0.0)
    evaluate = {"architectures": ["convnet"], "epochs": 2, "ceiling": {"architectures": []}}
    short = {
        **TINY,
        "distill": {"methods": ["random"]},
        "evaluate": evaluate,
        "nas": {"networks": 0},
    }
    call("plan", write(tmp_path, short))
    assert not asked
    long = {**short, "teachers": {**TINY["teachers"], "width": 128, "depth": 3, "epochs": 500}}
    call("plan", write(tmp_path, long))
    assert asked == [plain]


def test_a_plan_says_how_many_jobs_run_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planned, "measured", lambda: Speed("cpu", 1e-11, 1e-9, 1e-3))
    monkeypatch.setattr(planned.torch, "get_num_threads", lambda: 5)
    two = {**TINY, "compute": {"threads": 2}}
    assert "5 cores run 2 at once" in call("plan", write(tmp_path, two))


def test_the_plan_says_what_is_estimated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planned, "busy", lambda: "other programs run")
    text = call("plan", write(tmp_path, TINY))
    assert "reckoned, not measured" in text and "GB" in text
    assert "\n  other programs run\n" in text
    for stage in ("teachers", "distill", "evaluate", "ceiling", "nas_proxy", "nas_reference"):
        assert re.search(rf"^  {stage} +[\d.]+ (s|min|h|d) ", text, re.MULTILINE), stage
    assert "not estimated" not in text
    rcig = {**TINY, "distill": {"methods": ["rcig"], "rounds": 3}, "methods": {}}
    assert "not estimated: rcig" in call("plan", write(tmp_path, rcig))
    pets = {**TINY, "dataset": {"name": "pets", "source": "folder", "data_dir": "pets.zip"}}
    text = call("plan", write(tmp_path, pets))
    assert "need number and size" in text and "GB" not in text
    assert "there is no such key" in refused("plan", write(tmp_path, {"ipcc": 1}))
    (tmp_path / "run.yaml").write_text("a: [")
    assert "run.yaml: is not YAML" in refused("plan", tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("- a")
    assert "holds list" in refused("plan", tmp_path / "run.yaml")
    assert "there is no such file" in refused("plan", tmp_path / "none.yaml")
    (tmp_path / "over.yaml").write_text("distill: {methods: [dm]}")
    over = call("plan", write(tmp_path, TINY), tmp_path / "over.yaml")
    assert counted(over)["merge"] == 1 and "teachers" not in counted(over)


def test_a_whitening_that_is_not_there_is_told(real_set, tmp_path):
    alone = shutil.copy(real_set.artifact.path, tmp_path)
    assert "digits.whitening.zarr.zip, which is not there\n" in call("inspect", alone)
