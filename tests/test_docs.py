"""The commands that README, docs and presets state: each is planned, or asked whether it exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from apm_core.cli.commands import main
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from benchmarks.pipeline import config_of

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
PRESETS = sorted((REPO / "presets").glob("*.yaml"))
TARGET = re.compile(r"results/(?P<dataset>\w+)_ipc(?P<ipc>\d+)(\.continual)?\.json")


def stated(page: Path) -> list[str]:
    """The commands in the `sh` blocks of a page, and of a preset in its first line."""
    text = page.read_text()
    if page.suffix == ".yaml":
        first = text.splitlines()[0]
        return [first.removeprefix("# ")] if re.match(r"# (snakemake|python) ", first) else []
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    return [part.strip() for line in lines if line for part in line.split("&&")]


def commands(program: str, pages: list[Path]) -> list[pytest.param]:
    """The arguments of each command that calls `program`."""
    found = [(page, shlex.split(line)) for page in pages for line in stated(page)]
    return [
        pytest.param(words[1:], id=f"{page.name}: {' '.join(words[1:])}")
        for page, words in found
        if Path(words[0]).name == program
    ]


def test_pages_and_presets_state_commands():
    assert commands("snakemake", PAGES) and commands("snakemake", PRESETS)
    assert commands("apm", PAGES) and measuring()


@pytest.mark.workflow
@pytest.mark.parametrize("words", commands("snakemake", PAGES))
def test_a_run_of_the_docs_can_be_planned(words, tmp_path):
    (tmp_path / "data").mkdir()  # and in it what a preset tells people to put there
    (tmp_path / "data/nasbench201_accuracy.csv.gz").touch()
    own = {"ipc": 10, "dataset": {"name": "pets", "source": "folder", "data_dir": "pets"}}
    (tmp_path / "pets.yaml").write_text(yaml.safe_dump(own))  # as people write it, or `apm fit`
    ours = ("presets/", "profiles/")  # a target stays as it is, also where it was made before
    files = [str(REPO / word) if word.startswith(ours) else word for word in words]
    command = [sys.executable, "-m", "snakemake", "-n", "--directory", tmp_path]
    done = subprocess.run(
        [*command, "-s", REPO / "Snakefile", *files],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This was a dry-run" in done.stdout + done.stderr


@pytest.mark.parametrize("words", commands("snakemake", PRESETS))
def test_the_run_of_a_preset_makes_its_target(words):
    configs = [REPO / word for word in words if word.startswith("presets/")]
    target = TARGET.fullmatch(words[-1])
    Plan(RunSettings.of(config_of(configs, []))).require_target(target["dataset"], target["ipc"])


@pytest.mark.parametrize("words", commands("apm", PAGES))
def test_a_command_of_the_docs_is_one_that_apm_takes(words):
    verb, *arguments = words
    command = main.commands[verb]
    assert isinstance(command.make_context(verb, arguments), click.Context)


def measuring() -> list[pytest.param]:
    """The arguments of each command that runs a module of `benchmarks`."""
    found = commands("python", [*PAGES, *PRESETS])
    return [param for param in found if param.values[0][1].startswith("benchmarks.")]


@pytest.mark.parametrize("words", measuring())
def test_a_module_of_the_docs_takes_the_options(words):
    command = [sys.executable, "-m", words[1], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    for option in (word for word in words[2:] if word.startswith("--")):
        assert option in done.stdout
