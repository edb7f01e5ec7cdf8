"""Data, teachers and distilled sets small enough for a test, each made once per run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apm_core import distilled
from apm_core.data import whitening_file
from apm_core.runtime.device import Compute
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.dataset import Images
from apm_core.settings.stages import (
    Demands,
    DistillSettings,
    MergeSettings,
    PoolSettings,
    PrepareSettings,
)
from apm_core.settings.training import Network, PoolTraining, RecipeSettings
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge
from apm_core.stages.prepare import prepare
from apm_core.stages.teachers import train_group
from apm_core.training.teacher_pool import TeacherPool

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Several tests at a time (-n) have, each, and each job that it starts, one core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Each test has the number of threads that the first had: sums depend on it in a last bit."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that wait for minutes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="waits for minutes: needs --slow"))


@pytest.fixture(scope="session")
def cifar10_dir(tmp_path_factory):
    """A folder with the official CIFAR-10 files, if a copy of them lies beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("CIFAR-10 is not at hand: no folder ../shared/data")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run(
        [sys.executable, SHARED_DATA / "unpack.py", folder, "cifar10"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own with room for 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root and CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def cpu():
    return Compute(torch.device("cpu"), compile="off")


@pytest.fixture
def ran(monkeypatch):
    """The compiled graphs that ran so far, in order: each "forward" or "backward".

    What runs plain, as a fallback would, is not among them.
    """
    from torch._inductor.output_code import CompiledFxGraph  # takes seconds

    call, graphs = CompiledFxGraph.__call__, []

    def noted(graph, inputs):
        outputs = call(graph, inputs)
        graphs.append("backward" if graph.fx_kwargs["is_backward"] else "forward")
        return outputs

    monkeypatch.setattr(CompiledFxGraph, "__call__", noted)
    return graphs


@pytest.fixture
def example():
    """Runs code of the docs in a folder, with the library at hand, and returns what it printed."""

    def call(code, folder):
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture
def resumed(tmp_path):
    """Calls `work(resume, progress)` twice, as two jobs, and returns what the second makes.

    The first is stopped when `after` rounds are done; the second goes on there.
    """

    def call(work, *, after):
        def stop(done, total, figures):
            if done == after:
                raise KeyboardInterrupt

        folder, rounds = tmp_path / "resume", []
        with pytest.raises(KeyboardInterrupt):
            work(Resume(folder, str(after), every=0), stop)
        made = work(Resume(folder, str(after)), lambda done, *_: rounds.append(done))
        assert rounds[0] == after + 1
        return made

    return call


@pytest.fixture(scope="session")
def digits_settings():
    return PrepareSettings(images=Images(source="digits", data_dir=None))


@pytest.fixture(scope="session")
def digits(tmp_path_factory, digits_settings):
    """Whitened digits: 1,438 training and 359 test images, about, of 8 x 8 pixels."""
    path = tmp_path_factory.mktemp("digits") / "data.zarr.zip"
    return prepare(path, digits_settings, demands=Demands(2, [Network()]))


@pytest.fixture(scope="session")
def teacher_settings():
    training = PoolTraining(per_job=2, epochs=2, augment="crop_scale", snapshots=True)
    network = Network(width=6, depth=1)
    return PoolSettings(training=training, network=network, precision="float32")


@pytest.fixture(scope="session")
def teacher_files(tmp_path_factory, teacher_settings, digits, cpu):
    """Teachers 0 and 1 in one file, 2 and 3 in another."""
    folder = tmp_path_factory.mktemp("teachers")
    files = [folder / "0.zarr.zip", folder / "1.zarr.zip"]
    for number, path in enumerate(files):
        train_group(path, teacher_settings, [2 * number, 2 * number + 1], digits, Run(cpu))
    return files


@pytest.fixture
def teachers(teacher_files, digits, cpu):
    """The pool of four."""
    return TeacherPool.open(teacher_files, digits, cpu)


@pytest.fixture(scope="session")
def recipe_settings():
    return RecipeSettings(epochs=6, lr=0.05, batch=16, augment="crop_scale")


@pytest.fixture(scope="session")
def random_files(tmp_path_factory, digits, cpu):
    """Two shards of two real images per class."""
    folder = tmp_path_factory.mktemp("random")
    settings = DistillSettings(method="random", options={}, ipc=2)
    files = [folder / "0.zarr.zip", folder / "1.zarr.zip"]
    for number, path in enumerate(files):
        distill_shard(path, settings, number, digits, None, Run(cpu))
    return files


@pytest.fixture(scope="session")
def merge_settings(recipe_settings):
    return MergeSettings(entry="random", labels="teacher", recipe=recipe_settings)


@pytest.fixture(scope="session")
def real_set(
    tmp_path_factory, merge_settings, random_files, teacher_files, recipe_settings, digits, cpu
):
    """Four real digits per class with the logits of one teacher, read from its file."""
    path = tmp_path_factory.mktemp("results") / "digits_ipc4.random.zarr.zip"
    pool = TeacherPool.open(teacher_files, digits, cpu)
    merge(path, merge_settings, random_files, digits, pool, cpu, "digits.whitening.zarr.zip")
    whitening_file.write(path.with_name("digits.whitening.zarr.zip"), digits)
    return distilled.load(path)
