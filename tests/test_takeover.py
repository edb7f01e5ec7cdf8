"""Locks of dead runs are removed, those of living ones are not."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from takeover import at_work, hold

HOLD = "from pathlib import Path; from takeover import hold; held = hold(Path('.')); print(held[1])"


@pytest.fixture
def folder(tmp_path):
    """Snakemake's folder with a lock file."""
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/0.output.lock").write_text("results/a.json\n")
    return tmp_path


def living(folder: Path) -> subprocess.Popen:
    """A run of another process, which lasts until its input ends."""
    code = f"{HOLD}; import sys; sys.stdout.flush(); sys.stdin.read()"
    paths = os.pathsep.join(map(str, (Path(__file__).parents[1] / "workflow",)))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() in (b"True\n", b"False\n")
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_lock_of_a_dead_run_is_taken_over(folder):
    end(living(folder))
    (folder / "locks").mkdir()
    (folder / "locks/0.input.lock").touch()
    file, found = hold(folder)
    assert found and not (folder / "locks").exists()
    file.close()


def test_without_stale_locks_nothing_is_said(tmp_path):
    file, found = hold(tmp_path / "new")
    assert not found
    file.close()


def test_the_lock_of_a_living_run_is_left_alone(folder):
    first = living(folder)
    (folder / "locks").mkdir()
    (folder / "locks/0.output.lock").touch()
    second = living(folder)
    assert (folder / "locks/0.output.lock").exists()
    end(first)
    file, found = hold(folder)  # the second still lives
    assert not found and (folder / "locks/0.output.lock").exists()
    file.close()
    end(second)
    file, found = hold(folder)
    assert found
    file.close()


def test_a_job_that_outlives_its_run_keeps_the_lock(folder):
    with at_work(folder):
        file, found = hold(folder)
        assert not found and (folder / "locks/0.output.lock").exists()
        file.close()
    file, found = hold(folder)
    assert found
    file.close()


def test_a_file_system_without_locks_keeps_those_of_snakemake(folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert hold(folder) == (None, False)
    assert (folder / "locks/0.output.lock").exists()
    with at_work(folder):
        pass
