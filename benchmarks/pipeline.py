"""Access of the benchmarks to the pipeline: merged configs, plans, runs, data and pools."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from apm_core.data.prepared import PreparedData
from apm_core.runtime.device import Compute
from apm_core.settings import config_files
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.section import laid_over
from apm_core.settings.training import PoolName
from apm_core.training.teacher_pool import TeacherPool
from benchmarks.measure import ROOT

Config = dict[str, Any]


def overlaid(base: Config, *changes: Config) -> Config:
    """`base` updated by `changes`, as Snakemake merges config files."""
    return functools.reduce(laid_over, changes, base)


def config_of(files: Iterable[Path], settings: Iterable[str] = ()) -> Config:
    """config.yaml updated by `files`, then by `settings`: KEY=VALUE such as teachers.epochs=4."""
    config = config_files.read(files)
    for setting in settings:
        key, text = setting.split("=", 1)
        value = yaml.safe_load(text)
        for name in reversed(key.split(".")):
            value = {name: value}
        config = overlaid(config, value)
    return config


def plan_of(config: Config) -> Plan:
    """The plan of a run of `config`; raises ConfigError for an invalid one."""
    return Plan(RunSettings.of(config))


def run_pipeline(folder: Path, config: Path, target: str, *, cores: str = "all") -> None:
    """Run the pipeline up to `target` in `folder`; raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--configfile", config, "--quiet", "all"]
    subprocess.run([*command, "--cores", cores, "--", target], check=True, cwd=ROOT)


def results_of(config: Config, folder: Path, *, cores: str = "all") -> Config:
    """The results file of a run of `config` in `folder`; what is there is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    target = f"results/{config['dataset']['name']}_ipc{config['ipc']}.json"
    file = folder / f"ipc{config['ipc']}.yaml"
    file.write_text(yaml.safe_dump(config))
    run_pipeline(folder, file, target, cores=cores)
    return json.loads((folder / target).read_text())


def data_of(config: Config, folder: Path) -> PreparedData:
    """The prepared data, made by the pipeline in `folder` where they are missing."""
    return PreparedData.open(_artifact(config, folder, "data"))


def pool_of(
    config: Config, folder: Path, name: PoolName, data: PreparedData, compute: Compute
) -> TeacherPool:
    """The pool `name`, made in `folder` where it is missing."""
    plan = plan_of(config)
    place = f"pools/{name}.{plan.pool_key(name)}"
    paths = [_artifact(config, folder, f"{place}/{group}") for group in plan.groups(name)]
    return TeacherPool.open(paths, data, compute)


def _artifact(config: Config, folder: Path, artifact: str) -> Path:
    target = f"work/{config['dataset']['name']}/{artifact}.zarr.zip"
    if not (folder / target).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        run_pipeline(folder, file, target)
    return folder / target
