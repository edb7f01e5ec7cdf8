"""The pipeline as benchmarks use it: configs laid over each other, targets made, results opened."""

import copy
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import update_config

from apm_core.data.prepared import PreparedData
from apm_core.runtime.device import Compute
from apm_core.training.teacher_pool import TeacherPool
from benchmarks.measure import ROOT

sys.path.insert(0, str(ROOT / "workflow"))
from plan import Plan as Plan

Config = dict[str, Any]


def overlaid(base: Config, *changes: Config) -> Config:
    """A copy of `base` under `changes`, as Snakemake lays config files over each other."""
    result = copy.deepcopy(base)
    for change in changes:
        update_config(result, copy.deepcopy(change))
    return result


def config_of(files: Iterable[Path], settings: Iterable[str] = ()) -> Config:
    """config.yaml under `files` and under `settings`, each KEY=VALUE such as teachers.epochs=4."""
    config = overlaid(
        yaml.safe_load((ROOT / "config.yaml").read_text()),
        *(yaml.safe_load(file.read_text()) for file in files),
    )
    for setting in settings:
        key, value = setting.split("=", 1)
        *path, last = key.split(".")
        section = config
        for name in path:
            section = section[name]
        section[last] = yaml.safe_load(value)
    return config


def run_pipeline(folder: Path, config: Path, target: str, *, cores: str = "all") -> None:
    """The pipeline as a user runs it, with its files in `folder`; raises when it fails."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--configfile", config, "--quiet", "all"]
    subprocess.run([*command, "--cores", cores, "--", target], check=True, cwd=ROOT)


def data_of(config: Config, folder: Path) -> PreparedData:
    """The prepared data, made by the pipeline in `folder` where they are missing."""
    return PreparedData.open(_made(config, folder, "data"))


def pool_of(
    config: Config, folder: Path, name: str, data: PreparedData, compute: Compute
) -> TeacherPool:
    """The pool `name` (one of the plan's POOLS), made in `folder` where it is missing."""
    groups = Plan(config).groups(name)
    paths = [_made(config, folder, f"{name}/{group}") for group in groups]
    return TeacherPool.open(paths, data, compute)


def _made(config: Config, folder: Path, artifact: str) -> Path:
    target = f"work/{config['dataset']['name']}/{artifact}.zarr.zip"
    if not (folder / target).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        run_pipeline(folder, file, target)
    return folder / target
