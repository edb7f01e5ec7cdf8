"""The pipeline on a real SLURM, disturbed: it ends with the contents of a run on this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from apm_core.runtime import store
from tests.slurm.cluster import Cluster, wait_for

REPO = Path(__file__).parents[2]
CONFIG = REPO / "tests/slurm/shards.yaml"
SET = "results/digits_ipc4.apm.zarr.zip"
PATIENCE = 400  # seconds that a run may take
pytestmark = [pytest.mark.workflow, pytest.mark.slurm]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := Cluster.why_not():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's profile with the lines of this site: no database, and short waits."""
    settings = yaml.safe_load((REPO / "profiles/slurm/profile.yaml").read_text())
    settings |= {
        "slurm-status-command": "squeue",
        "slurm-init-seconds-before-status-checks": 1,
        "latency-wait": 5,
    }
    settings["default-resources"] |= {"slurm_partition": "gpu"}
    folder = tmp_path_factory.mktemp("profiles") / "site"
    folder.mkdir()
    (folder / "profile.yaml").write_text(yaml.safe_dump(settings))
    return folder


def contents(folder: Path) -> dict[str, str]:
    """The content of every artifact of a run."""
    files = [*folder.glob("work/digits/**/*.zip"), *folder.glob("results/*.zip")]
    return {str(f.relative_to(folder)): store.content_of(f) for f in files if f.name[0] != "."}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on this machine without SLURM."""
    folder = tmp_path_factory.mktemp("local")
    done = subprocess.run(
        command(folder, "--cores", "2"), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def expected(local: Path) -> dict[str, str]:
    """The contents of the run on this machine."""
    found = contents(local)
    assert len(found) == 6  # data, teachers, two shards, the set and its whitening
    return found


@pytest.fixture
def prepared(local: Path, tmp_path: Path) -> Path:
    """A folder in which data and teachers are there already."""
    work = local / "work/digits"
    [teachers] = work.glob("pools/teachers.*/0.zarr.zip")
    for source in (work / "data.zarr.zip", teachers):
        file = tmp_path / source.relative_to(local)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, file)
    return tmp_path


def command(folder: Path, *options: str, settings: dict | None = None) -> list[str]:
    configs = [str(CONFIG)]
    if settings:
        (folder / "edit.yaml").write_text(yaml.safe_dump(settings))
        configs.append(str(folder / "edit.yaml"))
    start = [sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile")]
    start += ["--directory", str(folder), *options, "--configfile", *configs]
    return [*start, "--", SET]


@pytest.fixture
def submit(cluster: Cluster, profile: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the pipeline on the cluster; what still runs in the end is ended."""
    started = []

    def start(folder: Path, *more: str, settings: dict | None = None) -> subprocess.Popen:
        options = ["--workflow-profile", str(profile), *more]
        with (folder / "log").open("a") as log:
            process = subprocess.Popen(
                command(folder, *options, settings=settings),
                cwd=folder,
                env=cluster.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def ends_well(process: subprocess.Popen, folder: Path, expected: dict[str, str]) -> None:
    assert process.wait(PATIENCE) == 0, (folder / "log").read_text()
    assert contents(folder) == expected
    assert not list(folder.rglob("*.tmp")) and not list(folder.glob("work/.resume/*"))


def distilling(cluster: Cluster, folder: Path, count: int) -> list[str]:
    """Wait until `count` shards are being distilled and have saved something; their jobs."""

    def running() -> list[str]:
        return cluster.jobs("running", "rule_distill")

    wait_for(lambda: len(running()) == count, PATIENCE, f"{count} jobs that distil")
    saved = folder / "work/.resume"
    wait_for(lambda: len(list(saved.glob("*.pt"))) >= count, 60, "saved rounds")
    return running()


def test_jobs_that_are_cancelled_or_preempted_and_a_controller_that_restarts(
    cluster, submit, expected, tmp_path
):
    process = submit(tmp_path)
    first, second = distilling(cluster, tmp_path, 2)
    shown = [cluster.shown(job) for job in (first, second)]
    assert {one["NodeList"] for one in shown} == {"n1", "n2"}
    assert [one["JOB_GRES"] for one in shown] == ["gpu:1", "gpu:1"]
    cluster.call("scancel", first)
    cluster.call("scontrol", "requeue", second)  # what preemption does
    wait_for(lambda: cluster.shown(second)["JobState"] == "PENDING", 30, "the requeued job")
    cluster.call("scontrol", "update", f"JobId={second}", "StartTime=now")  # not in two minutes
    cluster.stop("slurmctld", signal.SIGTERM)  # killed, it would forget the last seconds
    cluster.start_controller()
    ends_well(process, tmp_path, expected)
    log = (tmp_path / "log").read_text()
    assert "CANCELLED" in log and len(re.findall("Trying to restart job", log)) == 1
    assert int(cluster.shown(second)["Restarts"]) == 1
    going_on = [file.read_text() for file in tmp_path.glob("logs/digits/distill.*.log")]
    assert all("going on from round" in text for text in going_on)


def test_a_killed_snakemake_leaves_jobs_that_one_line_cancels(cluster, submit, expected, prepared):
    by_gres = ["--set-resources", "distill:gpu=0", "distill:gres=gpu:1"]
    process = submit(prepared, *by_gres)
    orphans = distilling(cluster, prepared, 2)
    assert [cluster.shown(job)["JOB_GRES"] for job in orphans] == ["gpu:1", "gpu:1"]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert cluster.jobs("running", "rule_distill") == orphans
    again = submit(prepared)
    assert again.wait(60) != 0
    assert "Directory cannot be locked" in (prepared / "log").read_text()
    page = (REPO / "docs/troubleshooting.md").read_text()
    [line] = re.findall(r"^squeue .*scancel$", page, re.MULTILINE)
    subprocess.run(
        line, shell=True, cwd=prepared, env=cluster.environment, check=True, executable="/bin/bash"
    )
    wait_for(lambda: not cluster.jobs(), 30, "the end of the orphans")
    ends_well(submit(prepared), prepared, expected)


@pytest.mark.slow
def test_a_lost_node_and_a_time_limit(cluster, submit, prepared, tmp_path_factory):
    longer = {"distill": {"rounds": 1500}}
    alone = tmp_path_factory.mktemp("alone")
    shutil.copytree(prepared / "work", alone / "work")
    process = submit(prepared, settings=longer)
    lost, late = distilling(cluster, prepared, 2)
    cluster.call("scontrol", "update", f"JobId={late}", "TimeLimit=1")
    node = cluster.shown(lost)["NodeList"]
    cluster.stop(node)
    for number in job_processes(lost):
        os.kill(number, signal.SIGKILL)
    wait_for(lambda: cluster.shown(lost)["JobState"] != "RUNNING", 120, "a lost node")
    cluster.start_node(node)
    wait_for(lambda: cluster.shown(late)["JobState"] == "TIMEOUT", 180, "a time limit")
    outputs = [file.read_text() for file in prepared.glob(".snakemake/slurm_logs/**/*.log")]
    assert any(
        "apm: distill: stopped by SIGTERM: what is done so far is kept" in o for o in outputs
    )
    run = subprocess.run(command(alone, "--cores", "2", settings=longer), cwd=alone)
    assert run.returncode == 0
    ends_well(process, prepared, contents(alone))


def job_processes(job: str) -> list[int]:
    """The processes of a job, its step daemons included."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            environment = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        step = words[0].startswith(f"slurmstepd: [{job}.".encode())
        if step or f"SLURM_JOB_ID={job}".encode() in environment:
            found.append(int(place.name))
    return found
