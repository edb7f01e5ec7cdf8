"""What a run is for, from a folder of images: a network to take, and a memory of classes."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from apm_core import load
from apm_core.nets.nasbench201 import network, parse
from apm_core.runtime import store

REPO = Path(__file__).parents[1]
RESULTS, CONTINUAL = "results/signs_ipc2.json", "results/signs_ipc2.continual.json"
SETTINGS = {
    "ipc": 2,
    "dataset": {"name": "signs", "source": "folder", "data_dir": "signs", "resolution": 8},
    "distill": {"methods": ["apm"]},
    "evaluate": {"ceiling": {"architectures": []}},
    "continual": {"steps": 2, "orders": 2, "epochs": 3},
}
pytestmark = pytest.mark.workflow


def snakemake(folder: Path, *arguments: str, **changes: dict) -> subprocess.CompletedProcess:
    (folder / "signs.yaml").write_text(yaml.safe_dump({**SETTINGS, **changes}))
    command = [sys.executable, "-m", "snakemake", "-s", REPO / "Snakefile", "--cores", "1"]
    command += ["--configfile", REPO / "tests/tiny.yaml", "signs.yaml", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder where both were made of three digits as files."""
    folder = tmp_path_factory.mktemp("uses")
    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        if label < 3 and number < 200:
            path = folder / "signs" / ("zero", "one", "two")[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).save(path)
    done = snakemake(folder, "--", RESULTS, CONTINUAL)
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder


def test_a_search_on_a_folder_says_which_network_to_take(finished):
    results, _ = store.read_json(finished / RESULTS, "results")
    reference, _ = store.read_json(finished / "work/signs/nas/reference.json", "ranking")
    by_name = dict(zip(reference["architectures"], reference["accuracies"][0], strict=True))
    page = (finished / RESULTS).with_suffix(".html").read_text()
    nas = results["methods"]["apm"]["nas"]
    found, accuracies = nas["search"], nas["reference"]
    picked = [by_name[arch] for arch in found["pick"]]
    assert accuracies["pick"] == pytest.approx(sum(picked) / len(picked))
    assert {by_name[arch] for arch in found["best"]} == {accuracies["best"]}
    assert accuracies["mean"] == pytest.approx(sum(by_name.values()) / 3)
    for cost in (found["by_set"], found["by_full_data"]):
        assert cost["core_seconds"] == cost["seconds"] > 0  # on one thread
    assert all(f"<code>{arch}</code>" in page for arch in found["pick"])


def test_the_chosen_network_can_be_built_as_the_docs_say(finished, example):
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "docs/uses.md").read_text(), re.DOTALL)
    [code] = [block for block in blocks if "search" in block]
    code = code.replace("pets_ipc10", "signs_ipc2")
    results, _ = store.read_json(finished / RESULTS, "results")
    arch = results["methods"]["apm"]["nas"]["search"]["pick"][0]
    shape = load(finished / "results/signs_ipc2.apm.zarr.zip").shape
    size = sum(p.numel() for p in network(parse(arch), shape, stem=2, cells=1).parameters())
    text = example(code, finished)
    assert text.split()[-2:] == [f"{size:,}", "parameters"] and arch in text


def test_a_memory_of_classes_on_a_folder(finished):
    results = json.loads((finished / CONTINUAL).read_text())
    assert sorted(results["orders"][0]) == ["one", "two", "zero"]
    steps = results["methods"]["apm"]["steps"]
    assert [step["classes"] for step in steps] == [2, 3]
    assert [step["accuracy"]["n"] for step in steps] == [2, 2]
    figure = (finished / "results/signs_ipc2.continual.svg").read_text()
    assert figure.startswith("<svg") and ">apm<" in figure
    # a results file of another kind is no line of the summary
    assert len((finished / "results/summary.csv").read_text().splitlines()) == 2


def test_only_what_depends_on_it_is_measured_again(finished):
    assert "Nothing to be done" in snakemake(finished, "-n", "--", RESULTS, CONTINUAL).stdout
    changed = {"steps": 3, "orders": 2, "epochs": 3}
    plan = snakemake(finished, "-n", "--", CONTINUAL, continual=changed).stdout
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", plan.rpartition("Job stats:")[2], re.MULTILINE))
    assert jobs == {"continual": "1", "continual_curves": "1", "total": "2"}


def test_more_steps_than_classes_are_refused_in_one_line(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)
    done = snakemake(folder, "--", CONTINUAL, continual={"steps": 4})
    text = done.stdout + done.stderr
    assert done.returncode and "Traceback" not in text
    assert "apm: continual: config: continual.steps: 4 steps need as many classes" in text


def test_a_set_is_the_memory_of_avalanche(finished):
    pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
    files = ["results/signs_ipc2.apm.zarr.zip", "work/signs/data.zarr.zip"]
    command = [sys.executable, REPO / "docs/avalanche_replay.py", *files, "--epochs", "1"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"accuracy \d+\.\d %", done.stdout.splitlines()[-1])
