"""The pipeline as a user runs it: whole, again, after edits, killed, damaged, misconfigured."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

from apm_core import load
from apm_core.data.prepared import PreparedData
from apm_core.runtime import store
from apm_core.runtime.device import Compute
from apm_core.training.teacher_pool import TeacherPool

REPO = Path(__file__).parents[1]
TINY = REPO / "tests" / "tiny.yaml"
CPU = Compute(torch.device("cpu"), compile="off")
RESULTS = "results/digits_ipc10.json"
pytestmark = pytest.mark.workflow


def command(folder: Path, *arguments: str, settings: dict | None = None) -> list[str]:
    configs = [str(TINY)]
    if settings is not None:
        edit = folder / "edit.yaml"
        edit.write_text(yaml.safe_dump(settings))
        configs.append(str(edit))
    start = [sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile")]
    start += ["--directory", str(folder), "--cores", "2", "--configfile", *configs]
    return [*start, *arguments]


def run(folder: Path, *arguments: str, settings: dict | None = None) -> str:
    done = subprocess.run(
        command(folder, *arguments, settings=settings), capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def failure(folder: Path, *arguments: str, settings: dict | None = None) -> str:
    done = subprocess.run(
        command(folder, *arguments, settings=settings), capture_output=True, text=True, cwd=folder
    )
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def planned(folder: Path, settings: dict | None = None) -> dict[str, int]:
    """Rules that a dry run would execute, with the number of their jobs."""
    text = run(folder, "-n", "--", RESULTS, settings=settings)
    table = text.rpartition("Job stats:")[2]
    rows = re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule != "total"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    yield folder


def test_a_run_makes_the_results_and_the_distilled_sets(finished):
    results = json.loads((finished / RESULTS).read_text())
    assert list(results["methods"]) == ["apm", "random"]
    apm = results["methods"]["apm"]
    assert apm["images"] == 100
    assert apm["accuracy"]["convnet"]["n"] == 2
    assert apm["nas"]["networks"] == 3
    assert len((finished / "results/summary.csv").read_text().splitlines()) == 3
    assert load(finished / "results/digits_ipc10.apm.zarr.zip").images.shape == (100, 1, 8, 8)
    logs = {path.name for path in (finished / "logs/digits").iterdir()}
    expected = {"prepare.log", "distill.apm.ipc10.0.log", "evaluate.ipc10.apm.convnet.log"}
    assert expected <= logs
    assert any(re.fullmatch(r"teachers\.[0-9a-f]+\.0\.log", name) for name in logs)


def test_a_second_run_does_nothing(finished):
    assert planned(finished) == {}


def test_deleted_results_are_made_again_without_training_networks_again(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)
    whitening = folder / "results/digits.whitening.zarr.zip"
    before = store.read(whitening, "whitening").content
    whitening.unlink()
    run(folder, "--", "results/digits.whitening.zarr.zip")
    assert store.read(whitening, "whitening").content == before
    assert planned(folder) == {}
    shutil.rmtree(folder / "results")
    plan = planned(folder)
    assert plan["whitening"] == 1 and plan["merge"] == 2
    assert not plan.keys() & {"prepare", "teachers", "distill", "ceiling", "nas_reference"}
    run(folder, "--", "results/digits_ipc10.apm.zarr.zip")
    assert store.read(whitening, "whitening").content == before
    found = load(folder / "results/digits_ipc10.apm.zarr.zip")
    pixels = torch.from_numpy(found.images_rgb()[..., :1]).permute(0, 3, 1, 2)
    assert torch.equal(found.whitening.to_uint8(found.images), pixels)


DISTILLED = {"merge": 1, "evaluate": 1, "nas_proxy": 1, "nas": 1, "collect": 1}
LABELLED = {"merge": 2, "evaluate": 2, "nas_proxy": 2, "nas": 2, "collect": 1}
# what each key changes is the matter of test_plan.py: here, that Snakemake follows it
EDITS = {
    "a number spelled otherwise, threads": (
        {"distill": {"rounds": 3.0}, "compute": {"threads": 2}},
        {},
    ),
    "an architecture more": (
        {"evaluate": {"architectures": ["convnet", "vit"]}},
        {"evaluate": 2, "collect": 1},
    ),
    "a protocol more": ({"evaluate": {"plain": ["convnet"]}}, {"evaluate": 2, "collect": 1}),
    "online labels": (
        {"evaluate": {"kd": {"architectures": ["convnet"]}}},
        {"evaluate": 2, "collect": 1},
    ),
    "distill.rounds": ({"distill": {"rounds": 4}}, {"distill": 1, **DISTILLED}),
    "teachers.epochs": ({"teachers": {"epochs": 2}}, {"teachers": 1, "distill": 1, **LABELLED}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_exactly_the_stages_that_depend_on_it(finished, name):
    settings, expected = EDITS[name]
    assert planned(finished, settings) == expected


def test_a_comment_reruns_nothing(finished):
    text = "# another comment\n" + TINY.read_text()
    edited = finished / "commented.yaml"
    edited.write_text(text)
    arguments = command(finished, "-n", "--", RESULTS)
    arguments[arguments.index(str(TINY))] = str(edited)
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=finished)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_entries_of_ones_own_share_pools_and_have_files_and_columns(finished):
    names = ["apm", "apm_2", "start"]
    settings = {
        "distill": {
            "methods": [
                "apm",
                {"name": "apm_2", "method": "apm", "rounds": 1},
                {"name": "start", "method": "apm_2", "start_only": True},
            ]
        },
        "nas": {"networks": 0},
    }
    run(finished, "--", RESULTS, settings=settings)
    results = json.loads((finished / RESULTS).read_text())["methods"]
    assert list(results) == names
    sets = [load(finished / f"results/digits_ipc10.{name}.zarr.zip") for name in names]
    assert [one.artifact.info["method"] for one in sets] == ["apm"] * 3
    assert len(list((finished / "work/digits/pools").glob("teachers.*/"))) == 1
    data = PreparedData.open(finished / "work/digits/data.zarr.zip")
    assert torch.equal(sets[2].images, data.shard(10, 0)[0])  # where the rounds began
    assert not torch.equal(sets[1].images, sets[2].images)


def test_settings_nested_in_the_command_are_read(tmp_path):
    text = failure(tmp_path, "-n", "--config", 'distill={"rounds": "many"}', "--", RESULTS)
    assert "config: distill.rounds: 'many' is not of type 'integer'" in text
    arguments = ["-n", "--config", 'distill={"rounds": 5}', "--", RESULTS]
    assert "distill" in run(tmp_path, *arguments)


def test_more_images_per_class_compute_the_new_shards_only(finished):
    settings = {"ipc": 20, "distill": {"shards": 2}}
    arguments = command(finished, "-n", "--", "results/digits_ipc20.json", settings=settings)
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=finished)
    text = done.stdout + done.stderr
    assert re.search(r"^distill +2$", text, re.MULTILINE)
    for rule in ("prepare", "teachers", "ceiling", "nas_reference"):
        assert not re.search(rf"^{rule} +\d+$", text, re.MULTILINE)


def test_the_readme_lines_train_on_the_distilled_set(finished, example):
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    code = next(block for block in blocks if "digits_ipc10.apm.zarr.zip" in block)
    assert len(code.strip().splitlines()) <= 15
    assert re.search(r"\d+\.\d %", example(code, finished))


def test_the_report_is_one_file_with_table_and_gallery(finished):
    run(finished, "--report", "report.html")
    page = (finished / "report.html").read_text()
    assert "digits_ipc10.png" in page
    assert "digits_ipc10.html" in page


def test_apm_plus_and_its_control_have_teachers_of_their_own(finished):
    settings = {
        "distill": {"methods": ["apm_plus", "random_plus"]},
        "aligned_teachers": {"n": 4, "per_job": 2, "epochs": 2, "snapshots": True},
        "methods": {"apm_plus": {"checkpoints": 2, "teacher_epochs": [1, 2], "label_epoch": 1}},
    }
    sets = {name: f"results/digits_ipc10.{name}.zarr.zip" for name in ("apm_plus", "random_plus")}
    run(finished, "--", *sets.values(), settings=settings)
    files = sorted((finished / "work/digits/pools").glob("aligned_teachers.*/*.zarr.zip"))
    pool = TeacherPool.open(files, PreparedData.open(finished / "work/digits/data.zarr.zip"), CPU)
    assert len(pool) == 4
    for path in sets.values():
        found = load(finished / path)
        given = pool.logits(None, found.images, CPU, epoch=1)
        torch.testing.assert_close(found.targets, given, rtol=1e-4, atol=1e-4)


def test_methods_that_match_flat_experts_bring_their_own_labels_and_rate(finished):
    few = {"steps": 2, "expert_epochs": 1, "start_below": 2, "rounds": 3}
    settings = {
        "distill": {"methods": ["ftd", "datm"]},
        "flat_experts": {"n": 2, "per_job": 2, "epochs": 2, "snapshot_type": "float16"},
        "methods": {"ftd": few, "datm": {**few, "start_below_first": 1}},
    }
    sets = {name: f"results/digits_ipc10.{name}.zarr.zip" for name in ("ftd", "datm")}
    run(finished, "--", *sets.values(), settings=settings)
    ftd, datm = (load(finished / path) for path in sets.values())
    assert torch.equal(ftd.targets, ftd.classes) and datm.targets.shape == (100, 10)
    assert (ftd.recipe.loss, datm.recipe.loss) == ("ce", "soft_ce")
    for found in (ftd, datm):
        assert found.recipe.lr != 0.01 and found.recipe.lr > 0


def test_ordered_experts_and_windows_that_adapt_run_in_the_pipeline(finished):
    settings = {
        "distill": {"methods": ["pad", "at_bptt"]},
        "ordered_experts": {
            **{"n": 2, "per_job": 1, "epochs": 2},
            "curriculum": {"networks": 1, "epochs": 1, "all_from": 1},
        },
        "methods": {
            "pad": {
                **{"steps": 2, "expert_epochs": 1, "start_below_first": 1, "start_below": 2},
                "rounds": 3,
            },
            "at_bptt": {"rounds": 3, "before": 3, "window": 2, "spread": 1, "period": 2},
        },
    }
    sets = {name: f"results/digits_ipc10.{name}.zarr.zip" for name in ("pad", "at_bptt")}
    run(finished, "--", *sets.values(), settings=settings)
    for path in sets.values():
        found = load(finished / path)
        assert found.targets.shape == (100, 10) and found.recipe.loss == "soft_ce"
        assert found.recipe.lr != 0.01 and found.recipe.lr > 0


def copy_inputs(finished: Path, folder: Path) -> None:
    """What a shard is distilled from, made by the finished run."""
    work = finished / "work/digits"
    for source in (work / "data.zarr.zip", *work.glob("pools/*/0.zarr.zip")):
        copy = folder / "work/digits" / source.relative_to(work)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)


def test_a_killed_shard_goes_on_with_the_same_bits(finished, tmp_path):
    settings = {"distill": {"rounds": 60}, "compute": {"resume_interval": 0}}
    shard = "work/digits/distill/apm.ipc10/0.zarr.zip"
    contents = {}
    for name, kill in (("unbroken", False), ("killed", True)):
        folder = tmp_path / name
        copy_inputs(finished, folder)
        if kill:
            process = subprocess.Popen(
                command(folder, "--", shard, settings=settings),
                cwd=folder,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            log = folder / "logs/digits/distill.apm.ipc10.0.log"
            deadline = time.monotonic() + 120
            resume = folder / "work/.resume"
            # the shard's job has begun, and has saved some rounds but not all
            while not (log.is_file() and resume.is_dir() and any(resume.glob("*.pt"))):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert not (folder / shard).exists()
            saved = torch.load(next(resume.glob("*.pt")), weights_only=True)
            assert 0 < saved["state"]["round"] < 61
        run(folder, "--", shard, settings=settings)
        contents[name] = store.read(folder / shard, "shard").content
        assert not any((folder / "work/.resume").glob("*.pt"))
    assert contents["killed"] == contents["unbroken"]


def started(folder: Path, settings: dict, target: str) -> subprocess.Popen:
    """A run that goes on beside the test."""
    return subprocess.Popen(
        command(folder, "--", target, settings=settings),
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def until(there: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    shard = "work/digits/distill/apm.ipc10/0.zarr.zip"
    settings = {"distill": {"rounds": 4}}
    process = started(tmp_path, settings, shard)
    until((tmp_path / "logs/digits/prepare.log").is_file, process)
    os.killpg(process.pid, signal.SIGSTOP)  # or it would be done too soon
    text = failure(tmp_path, "--", shard, settings=settings)
    assert "Directory cannot be locked" in text and "Traceback" not in text
    os.killpg(process.pid, signal.SIGCONT)
    assert process.wait(120) == 0 and (tmp_path / shard).is_file()
    assert "Nothing to be done" in run(tmp_path, "--", shard, settings=settings)


def test_a_job_that_outlives_its_run_is_not_repeated_beside_it(tmp_path):
    shard = "work/digits/distill/apm.ipc10/0.zarr.zip"
    settings = {"distill": {"rounds": 300}}
    process = started(tmp_path, settings, shard)
    log = tmp_path / "logs/digits/distill.apm.ipc10.0.log"
    until(lambda: log.is_file() and "1/301" in log.read_text(), process)
    jobs = psutil.Process(process.pid).children(recursive=True)
    [job] = [one for one in jobs if one.cmdline()[-1].endswith("distill.py")]
    job.suspend()  # or it would be done too soon
    process.kill()  # it alone, as a machine does that is short of memory
    process.wait()
    assert "Directory cannot be locked" in failure(tmp_path, "--", shard, settings=settings)
    job.resume()
    deadline = time.monotonic() + 120
    while not log.read_text().endswith("done\n"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    whole = store.read(tmp_path / shard, "shard").content
    run(tmp_path, "--", shard, settings=settings)
    assert store.read(tmp_path / shard, "shard").content == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_saves_says_so_and_is_continued(finished, tmp_path, number):
    shard = "work/digits/distill/apm.ipc10/0.zarr.zip"
    copy_inputs(finished, tmp_path)
    settings = {"distill": {"rounds": 100}, "compute": {"resume_interval": 1000}}
    process = started(tmp_path, settings, shard)
    log = tmp_path / "logs/digits/distill.apm.ipc10.0.log"
    until(lambda: log.is_file() and "1/101" in log.read_text(), process)
    os.killpg(process.pid, number)  # as SLURM does to all of a job, and a terminal
    assert process.wait(120) != 0
    assert log.read_text().splitlines()[-1].endswith("the same command goes on from there")
    [saved] = (tmp_path / "work/.resume").glob("*.pt")
    done = torch.load(saved, weights_only=True)["state"]["round"]
    run(tmp_path, "--", shard, settings=settings)
    assert f"going on from round {done} of 101" in log.read_text()


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(small_disk):
    (small_disk / "filling").write_bytes(b"x" * (1 << 20))
    (small_disk / "filling").write_bytes(b"x" * (960 << 10))
    data = "work/digits/data.zarr.zip"
    text = failure(small_disk, "--", data)
    assert "No space left on device" in text
    (small_disk / "filling").unlink()
    run(small_disk, "--", data)
    assert store.read(small_disk / data, "data").arrays["train_images"].size


def test_hostile_names_are_names(tmp_path):
    pets = tmp_path / "$(touch pwned); touch pwned; `touch pwned` & 'pets\""
    random = np.random.default_rng(0)
    for part, name, k in product(("train", "test"), ("$(touch pwned)", "a;b", "-rf"), range(3)):
        file = pets / part / name / f"{k} $(touch pwned).png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(file)
    dataset = {"name": "pets", "source": "folder", "data_dir": str(pets), "resolution": 8}
    run(tmp_path, "--", "work/pets/data.zarr.zip", settings={"dataset": dataset, "ipc": 2})
    data = PreparedData.open(tmp_path / "work/pets/data.zarr.zip")
    assert list(data.class_names) == sorted(["$(touch pwned)", "a;b", "-rf"])
    assert not list(tmp_path.rglob("pwned")) and not (REPO / "pwned").exists()


def test_a_damaged_artifact_is_refused_in_one_line(finished, tmp_path):
    data = tmp_path / "work/digits/data.zarr.zip"
    data.parent.mkdir(parents=True)
    whole = (finished / "work/digits/data.zarr.zip").read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    shard = "work/digits/distill/random.ipc10/0.zarr.zip"
    text = failure(tmp_path, "--rerun-triggers", "mtime", "--", shard)
    assert "apm: distill: work/digits/data.zarr.zip: the file is damaged" in text
    assert "delete work/digits/data.zarr.zip and run snakemake again" in text
    assert "Traceback" not in text


# the messages are the matter of test_settings.py: here, that Snakemake shows them
BAD = {
    "unknown key": (
        {"distill": {"ruonds": 3}},
        "config: distill.ruonds: there is no such key; did you mean rounds?",
    ),
    "another target": (
        {"ipc": 20},
        "results/digits_ipc10.json: the config in use makes results/digits_ipc20.json",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_is_refused_before_anything_runs(tmp_path, name):
    settings, message = BAD[name]
    assert message in failure(tmp_path, "-n", "--", RESULTS, settings=settings)


def test_the_data_of_another_set_are_not_made_from_this_config(tmp_path):
    text = failure(tmp_path, "-n", "--", "results/cifar10.whitening.zarr.zip")
    assert "cifar10: the config in use is for digits: add --configfile with a preset" in text


BAD_DATA = {
    "no folder": (
        {"dataset": {"source": "folder", "data_dir": "nowhere"}},
        "apm: prepare: .*nowhere",
    ),
    "too few images": (
        {"ipc": 1000},
        r"apm: prepare: .*1000.*",
    ),
    "architecture that does not fit": (
        {"evaluate": {"architectures": ["convnet", "vgg11"]}},
        r"apm: prepare: vgg11 cannot read 8x8 images.*these can: alexnet, convnet, frepo_conv, vit",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_unusable_data_are_refused_by_the_first_job(tmp_path, name):
    settings, pattern = BAD_DATA[name]
    text = failure(tmp_path, "--", "work/digits/data.zarr.zip", settings=settings)
    assert re.search(pattern, text), text
    assert "Traceback" not in text
