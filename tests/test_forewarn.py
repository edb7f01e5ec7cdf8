"""A long run says so before it starts, a short one does not, and nothing stops a run."""

import re
import subprocess
import sys
from pathlib import Path

import forewarn
import pytest
import yaml
from PIL import Image

REPO = Path(__file__).parents[1]
CPU = {"compute": {"device": "cpu"}}


def folder(root: Path) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (20, 30)).save(root / name / f"{number}.png")
    return root


def test_the_papers_run_takes_days_on_a_cpu():
    config = yaml.safe_load((REPO / "config.yaml").read_text()) | CPU
    text = forewarn.warning(config)
    assert re.search(r"about [\d,]+ d on two CPU cores .*, [\d.]+ h on a GPU", text)
    assert "apm plan" in text and "apm fit" in text and "\n" not in text


def test_a_gpu_is_asked_for_its_own_hours():
    config = yaml.safe_load((REPO / "presets/digits_ipc10.yaml").read_text())
    long = {**config, "evaluate": {**config["evaluate"], "epochs": 100_000}, "nas": {"networks": 0}}
    assert forewarn.line(long | {"compute": {"device": "cpu"}})
    assert forewarn.line(config | {"compute": {"device": "cuda"}}) is None


def test_a_short_run_says_nothing():
    config = yaml.safe_load((REPO / "presets/digits_ipc10.yaml").read_text())
    assert forewarn.warning(config | CPU) is None


def test_a_folder_is_looked_at(tmp_path):
    root = folder(tmp_path / "pets")
    dataset = {"name": "pets", "source": "folder", "data_dir": str(root), "resolution": 64}
    config = {"ipc": 1, "dataset": dataset, **CPU}
    assert "on two CPU cores" in forewarn.line(config)
    assert forewarn.line({**config, "dataset": {**dataset, "resolution": None}}) is None


def test_what_cannot_be_estimated_stops_nothing(tmp_path, monkeypatch):
    assert forewarn.warning({"ipcc": 1}) is None
    nowhere = {"name": "pets", "source": "folder", "data_dir": str(tmp_path / "none")}
    assert forewarn.warning({"dataset": nowhere, **CPU}) is None
    monkeypatch.setattr(forewarn, "LIMIT", 0.01)
    assert forewarn.warning({"dataset": {"name": "cifar10"}, **CPU}) is None


@pytest.mark.workflow
def test_the_line_comes_before_the_first_job(tmp_path):
    evaluate = {"epochs": 1_000_000, "architectures": ["convnet"]}
    long = {"dataset": {"name": "digits"}, "evaluate": evaluate, "nas": {"networks": 0}, **CPU}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(long))
    start = [sys.executable, "-m", "snakemake", "--snakefile", REPO / "Snakefile", "--cores", "1"]
    target = ["--configfile", "long.yaml", "--", "work/digits/data.zarr.zip"]
    done = subprocess.run([*start, *target], capture_output=True, text=True, cwd=tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert text.count("The whole run will take about") == 1
    assert text.index("The whole run will take about") < text.index("rule prepare")
