"""What docs/extend.md says: its files, added to a copy of the project, run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

REPO = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)
FILES = dict(BLOCK.findall((REPO / "docs/extend.md").read_text()))
SETTINGS = {
    "ipc": 4,
    "dataset": {"name": "stripes"},
    "teachers": {"network": "mlp", "width": 16, "depth": None},
    "recipe": {"loss": "huber"},
    "distill": {"methods": ["class_mean", "typical"]},
    "methods": {"class_mean": {"rounds": 40}},
    "evaluate": {"architectures": ["mlp"], "ceiling": {"architectures": []}},
    "nas": {"networks": 0},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project with one more of everything."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("apm_core", "workflow", "profiles", "envs"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(REPO / name, folder / name)
    for path, text in FILES.items():
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    (folder / "mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def in_project(project, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=project, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_one_of_each():
    folders = {str(Path(path).parent) for path in FILES}
    assert folders == {
        *("apm_core/settings/methods", "apm_core/methods", "apm_core/methods/selection"),
        *("apm_core/nets/architectures", "apm_core/training/losses", "apm_core/training/metrics"),
        *("apm_core/exports", "apm_core/data/sources"),
    }


@pytest.mark.workflow
def test_one_more_of_everything_runs(project):
    configs = [str(REPO / "tests/tiny.yaml"), "mine.yaml"]
    run = ["-m", "snakemake", "--cores", "2", "--configfile", *configs]
    in_project(project, *run, "--", "results/stripes_ipc4.json")
    results = json.loads((project / "results/stripes_ipc4.json").read_text())
    assert results["run"]["settings"]["recipe"]["loss"] == "huber"
    assert list(results["methods"]) == ["class_mean", "typical"]
    for entry in results["methods"].values():
        assert entry["top3"]["mlp"]["mean"] >= entry["accuracy"]["mlp"]["mean"]
    code = (
        "import apm_core; s = apm_core.load('results/stripes_ipc4.class_mean.zarr.zip');"
        " s.export('sheet', 's.png'); s.export('npz', 's.npz')"
    )
    in_project(project, "-c", code)
    with Image.open(project / "s.png") as sheet:
        assert sheet.size == (4 * 8, 4 * 8)
    found = np.load(project / "s.npz")
    assert found["images"].shape == (16, 1, 8, 8)
    # after 40 rounds all images of a class are its mean, and those of `typical` differ
    assert np.abs(found["images"][0] - found["images"][1]).max() < 0.05


def test_the_reference_and_the_messages_know_them(project):
    (project / "docs").mkdir()
    in_project(project, "-m", "workflow.reference")
    page = (project / "docs/settings.md").read_text()
    for name in ("class_mean", "typical", "mlp", "huber", "stripes"):
        assert name in page
    code = (
        "from apm_core.settings.run import RunSettings\n"
        "try: RunSettings.of({'teachers': {'network': 'mlpp'}})\n"
        "except ValueError as error: print(error)"
    )
    assert "'mlp'" in in_project(project, "-c", code)


def test_the_files_are_as_clean_as_the_project(project):
    paths = [str(project / path) for path in FILES]
    config = ["--config", str(REPO / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config, *paths],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
