"""What surrounds every script: log, progress, one-line errors, resume."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from _job import LOG_EVERY_S, STOPPING, ShownProgress, job
from torch._inductor.runtime.cache_dir_utils import cache_dir

from apm_core.errors import DataError
from apm_core.runtime.device import instructions
from apm_core.runtime.resume import each
from apm_core.settings.dataset import Images
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import CeilingSettings, PrepareSettings
from apm_core.settings.training import Network, PoolTraining

CACHE = "TORCHINDUCTOR_CACHE_DIR"
SETTINGS = CeilingSettings(
    training=PoolTraining(), networks=2, network=Network(), precision="float32", seed=1
)


class Named(dict):
    """Stands in for Snakemake's lists with names: iterates over values."""

    def __iter__(self):
        return iter(self.values())


@pytest.fixture
def snakemake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    monkeypatch.setenv(CACHE, "")  # so that it is put back
    monkeypatch.delenv(CACHE)
    compute = {"device": "cpu", "compile": "off", "resume_interval": 0}
    yield SimpleNamespace(
        rule="evaluate",
        params=SimpleNamespace(settings=SETTINGS.text),
        config={"compute": compute},
        resources={},
        wildcards=Named(dataset="digits", ipc="10"),
        input=Named(),
        log=[str(tmp_path / "job.log")],
        threads=1,
    )
    torch.set_num_threads(threads)


def log_of(snakemake) -> str:
    return Path(snakemake.log[0]).read_text()


def test_a_job_logs_its_settings_and_its_end(snakemake):
    with job(snakemake, CeilingSettings) as this:
        assert this.settings == SETTINGS
        assert this.config == RunSettings.of(snakemake.config)
        assert this.config.compute.resume_interval == 0
        assert this.run.compute.precision == "float32"
        this.log("a note")
    lines = log_of(snakemake).splitlines()
    assert lines[0].endswith(f" settings {SETTINGS.text}") and '"seed": 1' in lines[0]
    assert "on cpu in float32 with 1 threads" in lines[1]
    assert "unfinished work is kept in work/.resume/" in lines[2]
    assert [line.split(" ", 1)[1] for line in lines[3:]] == ["a note", "done"]


def test_a_job_that_computes_in_no_precision_of_its_own_has_the_machines(snakemake):
    settings = PrepareSettings(images=Images(source="digits"))
    snakemake.params.settings = settings.text
    with job(snakemake, PrepareSettings) as this:
        assert this.settings == settings and this.run.compute.device.type == "cpu"


def test_the_jobs_of_a_run_share_what_they_compile(snakemake, tmp_path):
    with job(snakemake, CeilingSettings):
        assert cache_dir() == str(tmp_path / "work/.compiled" / instructions())


def test_the_users_own_folder_for_what_is_compiled_is_kept(snakemake, monkeypatch):
    monkeypatch.setenv(CACHE, "/elsewhere")
    with job(snakemake, CeilingSettings):
        assert os.environ[CACHE] == "/elsewhere"


@pytest.mark.parametrize(
    "error",
    [
        DataError("class 'eel' is empty: add images"),
        OSError(28, "No space left on device", "x.zarr.zip"),
    ],
)
def test_an_error_that_the_user_can_repair_is_one_line(snakemake, error):
    with pytest.raises(SystemExit) as exit_, job(snakemake, CeilingSettings):
        raise error
    assert exit_.value.code == f"apm: evaluate: {error}"
    assert log_of(snakemake).splitlines()[-1].endswith(f"error: {error}")


def test_a_defect_leaves_its_traceback_in_the_log(snakemake):
    with pytest.raises(ZeroDivisionError), job(snakemake, CeilingSettings):
        raise ZeroDivisionError("in a stage")
    assert "Traceback" in log_of(snakemake)
    assert "in a stage" in log_of(snakemake)


def test_unfinished_work_is_kept_until_the_job_succeeds(snakemake):
    def work(done, item, part):
        if item == fatal:
            raise DataError("stopped")
        return item

    fatal = 2
    with pytest.raises(SystemExit), job(snakemake, CeilingSettings) as this:
        each([0, 1, 2], work, this.run.resume)
    assert len(list(Path("work/.resume").iterdir())) == 1
    fatal = None
    with job(snakemake, CeilingSettings) as this:
        assert this.run.resume.load() == {"done": [0, 1]}
        assert each([0, 1, 2], work, this.run.resume) == [0, 1, 2]
    assert not list(Path("work/.resume").iterdir())


def test_inputs_from_the_future_are_dated_as_made_now(snakemake, tmp_path):
    scores, table = tmp_path / "scores.json", tmp_path / "table.csv"
    snakemake.input, tomorrow = Named(scores=str(scores), table=str(table)), time.time() + 86400
    for file in (scores, table):
        file.touch()
        os.utime(file, (tomorrow, tomorrow))
    with job(snakemake, CeilingSettings):
        pass
    assert time.time() - 60 < scores.stat().st_mtime <= time.time()
    assert table.stat().st_mtime == pytest.approx(tomorrow)  # the user's own
    assert f"the clock was set back: {scores}, from the future" in log_of(snakemake)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_job_that_is_asked_to_stop_saves_and_ends_with_a_code_to_retry(snakemake, name, capsys):
    snakemake.config["compute"]["resume_interval"] = 1000

    def work(done, item, part):
        if item == 1:
            signal.raise_signal(getattr(signal, name))
        return item

    before = [signal.getsignal(number) for number in STOPPING]
    with pytest.raises(SystemExit) as exit_, job(snakemake, CeilingSettings) as this:
        each([0, 1, 2], work, this.run.resume)
    assert exit_.value.code == os.EX_TEMPFAIL == 75
    shown = capsys.readouterr().err
    assert f"apm: evaluate: stopped by {name}: what is done so far is kept" in shown
    assert f"stopped by {name}" in log_of(snakemake).splitlines()[-1]
    assert [signal.getsignal(number) for number in STOPPING] == before
    with job(snakemake, CeilingSettings) as this:
        assert this.run.resume.load() == {"done": [0, 1]}


def test_a_later_signal_ends_the_job_at_once(tmp_path):
    script = (
        "import signal, time\n"
        "import _job\n"
        "from _job import _saving_when_asked_to_stop\n"
        "from apm_core.runtime.resume import Resume\n"
        "with _saving_when_asked_to_stop(Resume('.', 0)):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('goes on', flush=True)\n"
        "    _job.SAME_SIGNAL_S = 0\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('never')\n"
    )
    repo = Path(__file__).parents[1]
    paths = os.pathsep.join([str(repo), str(repo / "workflow/scripts")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "goes on\n"), done.stderr


def test_a_log_without_room_does_not_end_the_job(capsys):
    with Path("/dev/full").open("w") as full:
        ShownProgress("distill", full, None).line("a note")
        full.buffer.raw.close()
    assert "a note (not in the log: No space left on device)" in capsys.readouterr().err


def test_progress_shows_rate_and_time_left_at_intervals(monkeypatch):
    now, log = [100.0], io.StringIO()
    monkeypatch.setattr("_job.time.monotonic", lambda: now[0])
    progress = ShownProgress("distill", log, None)
    progress(1, 101, {"loss": 2.0})  # compiles, or follows a resume: no rate from it
    for done in range(2, 102):
        now[0] += 0.5
        progress(done, 101, {"loss": 1.0})
    lines = [line.split(" ", 1)[1] for line in log.getvalue().splitlines()]
    assert lines[0] == "1/101 no rate yet 0/s loss 2"
    assert lines[1] == "21/101 40 s left 2/s loss 1"
    assert lines[-1] == "101/101 0 s left 2/s loss 1"
    assert len(lines) == 1 + int(100 * 0.5 / LOG_EVERY_S)
