"""The frame of every script: settings, device, log, progress, and errors of one line."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TextIO, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from apm_core.errors import ApmError, InterruptedRunError
from apm_core.runtime.device import choose, instructions, reserved
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.runtime.store import content_of
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import StageSettings
from workflow.takeover import at_work

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake as Snakemake

LOG_EVERY_S = 10.0
SAME_SIGNAL_S = 3.0
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
Settings = TypeVar("Settings", bound=StageSettings)


@dataclass(frozen=True)
class Started(Generic[Settings]):
    """A started Snakemake job: its settings and what its stage needs to run."""

    settings: Settings
    config: RunSettings  # for settings that do not change the result, and those of later stages
    run: Run
    log: Callable[[str], None]  # writes one line to the rule's log


class ShownProgress:
    """Progress with rate and remaining time: a bar on a terminal, plain lines in the log."""

    def __init__(self, title: str, log: TextIO, bar: Progress | None) -> None:
        self.log, self.bar, self.started, self.logged = log, bar, None, 0.0
        self.task = bar.add_task(title, total=None, figures="") if bar else None
        self.first = 0

    def __call__(self, done: int, total: int, figures: dict[str, float]) -> None:
        """Show that `done` of `total` steps are finished."""
        now = time.monotonic()
        if self.started is None:  # the first step pays for compilation, or follows a resume
            self.started, self.first = now, done
        rate = (done - self.first) / max(now - self.started, 1e-9)
        text = " ".join([f"{rate:.3g}/s", *(f"{k} {v:.4g}" for k, v in figures.items())])
        if self.bar:
            self.bar.update(self.task, completed=done, total=total, figures=text)
        if done == total or now - self.logged >= LOG_EVERY_S:
            self.logged = now
            remaining = f"{(total - done) / rate:.0f} s left" if rate else "no rate yet"
            self.line(f"{done}/{total} {remaining} {text}")

    def line(self, text: str) -> None:
        """Write one line with the time of day to the log; without room for it, to the terminal."""
        entry = f"{time.strftime('%H:%M:%S')} {text}"
        try:
            print(entry, file=self.log, flush=True)
        except OSError as error:
            print(f"{entry} (not in the log: {error.strerror})", file=sys.stderr)


@contextmanager
def job(snakemake: "Snakemake", kind: type[Settings]) -> Iterator[Started[Settings]]:
    """Run the body of a script with its stage's settings, of class `kind`.

    An ApmError or OSError ends the process with one line; a stop signal with EX_TEMPFAIL.
    """
    settings = kind.read(snakemake.params.settings)
    config = RunSettings.of(snakemake.config)
    options = config.compute
    torch.set_num_threads(snakemake.threads)
    compiled = Path("work/.compiled", instructions()).absolute()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))  # torch's, one for all jobs
    with ExitStack() as stack:
        log = stack.enter_context(Path(snakemake.log[0]).open("w", encoding="utf-8"))
        bar = stack.enter_context(_bar()) if sys.stderr.isatty() else None
        progress = ShownProgress(f"{snakemake.rule} {_wildcards(snakemake)}".strip(), log, bar)
        progress.line(f"settings {settings.text}")
        resources = snakemake.resources
        needs_gpu = resources.get("gpu", 0) or "gpu" in resources.get("gres", "")
        device = options.device if needs_gpu else "cpu"
        stack.enter_context(at_work(Path(".snakemake")))
        try:
            name = stack.enter_context(reserved(device))
            precision = getattr(settings, "precision", None) or "auto"
            compute = choose(
                name,
                precision,
                options.compile,
                progress.line,
                deterministic=options.deterministic,
                kernels=options.kernels,
                side_by_side=options.side_by_side,
            )
            progress.line(
                f"on {compute.device} in {compute.precision} with {snakemake.threads} threads"
            )
            _date_back(snakemake, progress.line)
            identity = [
                snakemake.rule,
                settings.to_dict(),
                dict(snakemake.wildcards.items()),
                _contents(snakemake),
                compute.side_by_side,
            ]
            resume = Resume("work/.resume", identity, every=options.resume_interval)
            progress.line(f"unfinished work is kept in {resume.path}")
            stack.enter_context(_saving_when_asked_to_stop(resume))
            yield Started(settings, config, Run(compute, resume, progress), progress.line)
            resume.clear()
            progress.line("done")
        except InterruptedRunError as error:
            progress.line(str(error))
            print(f"apm: {snakemake.rule}: {error}", file=sys.stderr)
            sys.exit(os.EX_TEMPFAIL)
        except (ApmError, OSError) as error:  # OSError: no space, no permission; it names the file
            progress.line(f"error: {error}")
            sys.exit(f"apm: {snakemake.rule}: {error}")
        except Exception:
            traceback.print_exc(file=log)
            raise


@contextmanager
def _saving_when_asked_to_stop(resume: Resume) -> Iterator[None]:
    """Make the job save and end at SIGTERM (scancel, preemption, a time limit), SIGUSR1 (the
    warning before one) or SIGINT. A second signal after `SAME_SIGNAL_S` ends it at once: SLURM
    sends the same one several times.
    """
    first: float | None = None  # time of the first signal

    def ask(number: int, _: object) -> None:
        nonlocal first
        if first is not None and time.monotonic() - first > SAME_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        first = first or time.monotonic()
        resume.stopping = number

    before = {number: signal.signal(number, ask) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _date_back(snakemake: "Snakemake", log: Callable[[str], None]) -> None:
    """Set the time of inputs from the future to now: after the clock was set back, Snakemake would
    find the output older than its inputs and delete it.
    """
    for path in _artifacts(snakemake.input):
        if path.stat().st_mtime > time.time():
            log(f"the clock was set back: {path}, from the future, is dated as made now")
            os.utime(path)


def _artifacts(paths: Iterable[str]) -> list[Path]:
    """The paths that the pipeline writes itself."""
    return [Path(path) for path in paths if path.endswith((".zarr.zip", ".json"))]


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        transient=True,
    )


def _contents(snakemake: "Snakemake") -> list[str]:
    """The content hashes of the inputs, so that a state is only resumed on the same data."""
    return [content_of(path) for path in _artifacts(snakemake.input) if path.suffix == ".zip"]


def _wildcards(snakemake: "Snakemake") -> str:
    return " ".join(snakemake.wildcards)
