"""Does anything get lost? The digits pipeline, killed, continued, and given damaged files.

    python -m benchmarks.chaos --kills 60 --minutes 30
    python -m benchmarks.chaos --damages 600
    python -m benchmarks.chaos --saves

Kills: SIGKILL to the whole process group at random moments, a third of them while a file is being
written; the same command goes on. After every kill each file that is there must be whole, and after
every run that ends all contents must be those of a run that was left alone. Damages: files of a
finished run truncated, with a flipped bit, emptied, replaced by one of another kind, of another run
or of a newer format; what reads them must refuse them in one line. The figures go to
benchmarks/results/chaos_cpu.json, each part beside the other.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from apm_core import distilled
from apm_core.data.prepared import PreparedData
from apm_core.errors import ApmError, ArtifactError
from apm_core.runtime import store
from apm_core.runtime.device import choose
from apm_core.runtime.resume import MOST, Resume
from apm_core.settings.run import RunSettings
from apm_core.stages.collect import collect, summarize_folder
from apm_core.stages.merge import merge
from apm_core.training.teacher_pool import TeacherPool
from benchmarks.measure import RESULTS, ROOT, machine, parser_of, write
from benchmarks.pipeline import config_of, overlaid, plan_of

CONFIG = ROOT / "benchmarks/chaos.yaml"
TARGET = "results/digits_ipc4.json"
OUT = RESULTS / "chaos_cpu.json"
KINDS = ("data", "teachers", "shard", "distilled set")
TIMES = ("seconds", "date", "peak_memory_bytes")  # keys of what two equal runs do not share


# Files and their contents


def files_of(folder: Path) -> list[Path]:
    """The artifacts and score files under `folder`, temporary ones left out."""
    files = [*folder.glob("work/digits/**/*"), *folder.glob("results/digits*")]
    return sorted(f for f in files if f.suffix in (".zip", ".json") and f.name[0] != ".")


def kind_of(path: Path) -> str:
    """The kind of artifact that the workflow lays down at `path`."""
    if path.suffix == ".zip":
        if path.parent.name == "results":
            return "whitening" if ".whitening." in path.name else "distilled set"
        place = path.parts[path.parts.index("digits") + 1]
        return {"data.zarr.zip": "data", "distill": "shard", "pools": "teachers"}[place]
    place = path.parent.name
    if place == "nas":
        return "ranking" if path.stem == "reference" or "proxy" in path.name else "scores"
    return "results" if place == "results" else "scores"


def content_of(path: Path) -> str:
    """The content of a file, without times; raises ArtifactError when it is not whole."""
    if path.suffix == ".zip":
        return store.read(path, kind_of(path)).content
    figures, _ = store.read_json(path, kind_of(path))
    return json.dumps(_timeless(figures), sort_keys=True)


def _timeless(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.endswith(TIMES)}
    return value


# Kills


@dataclass
class KillReport:
    """Counts and failures over all kills."""

    kills: Counter = field(default_factory=Counter)  # by stage that was running
    lost: dict[str, list[float]] = field(default_factory=dict)  # seconds of work, by stage
    while_writing: int = 0
    runs: int = 0  # that ended
    different: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    leftovers: int = 0  # temporary files in a folder whose run ended


def started(folder: Path) -> subprocess.Popen:
    """Start the plain command in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--configfile", CONFIG, "--cores", "2", "--", TARGET]
    with (folder.parent / "run.log").open("w") as log:
        return subprocess.Popen(
            command, cwd=folder, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )


def ended(process: subprocess.Popen, folder: Path, seconds: float, *, writing: bool) -> bool:
    """Whether the run ended by itself within `seconds`; with `writing`, wait on for a file that is
    being written.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds) is not None
    deadline = time.monotonic() + 10 * writing
    places = [folder, folder / "work/.resume", folder / "results", *folder.glob("work/digits/**/")]
    while time.monotonic() < deadline and process.poll() is None:
        if any(name.endswith(".tmp") for place in places for name in names_in(place)):
            break
    return process.poll() is not None


def names_in(folder: Path) -> list[str]:
    """The names in a folder, none if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return [path.name for path in folder.iterdir()]
    return []


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to all of the process group, and wait until it is gone."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.01)


def unfinished(folder: Path, since: float) -> Iterator[tuple[str, float]]:
    """Stage and seconds of work lost of each job that had begun after `since` and was killed now.

    What is lost began with the last save or, where there was none, with the job.
    """
    now = time.time()
    for log in folder.glob("logs/digits/*.log"):
        lines = log.read_text().splitlines()
        if log.stat().st_mtime < since or not lines or lines[-1].endswith(" done"):
            continue
        clock = datetime.strptime(lines[0].split()[0], "%H:%M:%S").time()
        began = datetime.combine(datetime.now(), clock).timestamp()
        named = [line.split(" kept in ", 1)[1] for line in lines if " kept in " in line]
        saves = [folder / name for name in named if (folder / name).is_file()]
        times = [save.stat().st_mtime for save in saves]
        yield log.name.split(".")[0], now - max([began, *times])


def kills(count: int, minutes: float, seed: int) -> dict[str, Any]:
    """Kill runs until `count` kills or `minutes` have passed; returns the figures."""
    generator, report = random.Random(seed), KillReport()
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "whole")
        expected = whole_run(folder)
        while report.kills.total() < count and time.monotonic() < deadline:
            folder = Path(place, "killed")
            folder.mkdir()
            while True:
                since, process = time.time(), started(folder)
                writing = generator.random() < 1 / 3
                over = report.kills.total() >= count or time.monotonic() > deadline
                wait = 600 if over else generator.uniform(2, 25)
                if ended(process, folder, wait, writing=writing and not over):
                    break
                kill(process)
                look(report, folder, since)
            report.runs += 1
            if process.returncode:
                report.failed.append(Path(place, "run.log").read_text()[-2000:])
            compare(report, folder, expected)
            shutil.rmtree(folder)
    lost = {stage: report.lost[stage] for stage in sorted(report.lost)}
    return {
        "kills": report.kills.total(),
        "by stage": dict(report.kills.most_common()),
        "while a file was being written": report.while_writing,
        "runs ended": report.runs,
        "contents unlike those of the unbroken run": report.different,
        "files not whole after a kill": report.broken,
        "runs that did not go on": report.failed,
        "temporary files left in the end": report.leftovers,
        "resume interval, s": config_of([CONFIG])["compute"]["resume_interval"],
        "work lost, s": {
            stage: {"median": statistics.median(all_), "max": max(all_), "n": len(all_)}
            for stage, all_ in lost.items()
        },
    }


def whole_run(folder: Path) -> dict[str, str]:
    """Run the pipeline without a kill; returns the contents of its files by path."""
    folder.mkdir(parents=True)
    process = started(folder)
    if process.wait():
        sys.exit((folder.parent / "run.log").read_text())
    return {str(path.relative_to(folder)): content_of(path) for path in files_of(folder)}


def look(report: KillReport, folder: Path, since: float) -> None:
    """Record the jobs that a kill hit, and the files that are not whole."""
    running = list(unfinished(folder, since))
    for stage, seconds in running:
        report.lost.setdefault(stage, []).append(seconds)
    report.kills[" + ".join(sorted(stage for stage, _ in running)) or "between jobs"] += 1
    report.while_writing += any(folder.rglob("*.tmp"))
    for path in files_of(folder):
        try:
            content_of(path)
        except ArtifactError as error:
            report.broken.append(str(error))


def compare(report: KillReport, folder: Path, expected: dict[str, str]) -> None:
    """Record the files that differ from those of the unbroken run."""
    for name, content in expected.items():
        path = folder / name
        if not path.is_file() or content_of(path) != content:
            report.different.append(name)
    report.leftovers += len(list(folder.rglob("*.tmp"))) + len(list(folder.glob("work/.resume/*")))


# Damages


def truncated(data: bytes, generator: random.Random) -> bytes:
    """The beginning of a file."""
    return data[: generator.randrange(1, len(data))]


def flipped(data: bytes, generator: random.Random) -> bytes:
    """The file with one other bit."""
    bit, flipped_data = generator.randrange(8 * len(data)), bytearray(data)
    flipped_data[bit // 8] ^= 1 << bit % 8
    return bytes(flipped_data)


def newer(path: Path) -> None:
    """Rewrite the file as one of a later format, sound in all else."""
    if path.suffix == ".json":
        text = path.read_text().replace(
            f'"format": {store.FORMAT}', f'"format": {store.FORMAT + 1}'
        )
        value = json.loads(text)
        value.pop("content")
        value["content"] = store.checksum(value)
        path.write_text(json.dumps(value))
    elif path.suffix == ".pt":
        saved = torch.load(path, weights_only=True)
        torch.save({**saved, "format": saved["format"] + 1}, path)
    else:
        with zipfile.ZipFile(path) as old:
            members = {name: old.read(name) for name in old.namelist()}
        root = json.loads(members["zarr.json"])
        root["attributes"]["format"] += 1
        members["zarr.json"] = json.dumps(root).encode()
        with zipfile.ZipFile(path, "w") as new:
            for name, content in members.items():
                new.writestr(name, content)


class Reader:
    """Reads the files of a finished run in `folder` as the stages read them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan = folder, plan_of(config_of([CONFIG]))
        self.compute = choose("cpu")
        self.resume = Resume(folder / "work/.resume", "chaos")

    def read(self, path: Path) -> str:
        """Read `path` by every stage that uses it; returns its content."""
        if path.suffix == ".pt":
            return json.dumps(self.resume.load())
        content, kind = content_of(path), kind_of(path)
        work, results = self.folder / "work/digits", self.folder / "results"
        data = PreparedData.open(work / "data.zarr.zip")
        if kind in ("data", "teachers"):
            for folder in sorted(work.glob("pools/*")):
                TeacherPool.open(sorted(folder.glob("*.zip")), data, self.compute)
        if kind in ("data", "shard"):
            entry = path.parent.name.split(".")[0] if kind == "shard" else "random"
            shards = sorted(work.glob(f"distill/{entry}.*/*.zip"))
            groups = sorted(work.glob("pools/teachers.*/*.zip"))
            teachers, settings = (
                TeacherPool.open(groups, data, self.compute),
                self.plan.merge(entry),
            )
            merge(self.folder / "merged.zip", settings, shards, data, teachers, self.compute)
        if kind == "results":
            summarize_folder(results)
        elif kind != "shard":
            files = results.glob("*_ipc*.zarr.zip")
            sets = {file.name.split(".")[1]: distilled.load(file) for file in files}
            if kind == "whitening":
                for distilled_set in sets.values():
                    distilled_set.whitening  # noqa: B018 - reads its file
            scores = [*work.glob("ceiling/*"), *work.glob("evaluate/*/*")]
            scores += [file for file in work.glob("nas/ipc*") if "proxy" not in file.name]
            collect("digits", self.plan.collect(), sets, scores)
        return content


def damages(count: int, seed: int) -> dict[str, Any]:
    """Damage files of a finished run one at a time, `count` times, and read them."""
    generator, tally = random.Random(seed), Counter()
    missed, messages = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder, other = Path(place, "one/run"), Path(place, "two/run")
        whole_run(folder)
        other_run(other)
        reader = Reader(folder)
        reader.resume.save({"round": 3, "rates": [0.1] * 200})
        Resume(other / "work/.resume", "other").save({"round": 4, "rates": [0.2] * 200})
        files = [*files_of(folder), reader.resume.path]
        before = {path: (path.read_bytes(), reader.read(path)) for path in files}
        for _ in range(count):
            path = generator.choice(files)
            data, content = before[path]
            ways = ways_to_damage(path, data, other, files, generator)
            name, damage = generator.choice(list(ways.items()))
            damage()
            outcome, message = result_of(reader, path, content)
            tally[f"{name}: {outcome}"] += 1
            messages.setdefault(
                f"{kind_of(path) if path.suffix != '.pt' else 'resume'}, {name}", message
            )
            if outcome in ("missed", "not one line"):
                missed.append(f"{path.relative_to(folder)}, {name}: {message}")
            path.write_bytes(data)
    return {
        "damages": count,
        "outcomes": dict(sorted(tally.items())),
        "missed": missed,
        "messages": {
            what: message.replace(place, "")
            for what, message in sorted(messages.items())
            if message
        },
    }


def other_run(folder: Path) -> None:
    """A finished run under another seed."""
    config = folder.parent / "other.yaml"
    folder.mkdir(parents=True)
    config.write_text(yaml.safe_dump(overlaid(yaml.safe_load(CONFIG.read_text()), {"seed": 1})))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--configfile", config, "--cores", "2", "--quiet", "all"]
    subprocess.run([*command, "--", TARGET], cwd=folder, check=True, capture_output=True)


def ways_to_damage(
    path: Path, data: bytes, other: Path, files: list[Path], generator: random.Random
) -> dict[str, Callable[[], object]]:
    """Functions that damage the file at `path`, by the name of the damage."""
    strangers = [f for f in files if f.suffix != path.suffix or kind_of(f) != kind_of(path)]
    root = files[0]
    while root.name != "run":
        root = root.parent
    # a pool's folder is called by its settings, the seed among them
    same = re.sub(r"(pools/\w+)\.\w+/", r"\1.*/", path.relative_to(root).as_posix())
    twin = next(other.glob("work/.resume/*.pt" if path.suffix == ".pt" else same))
    ways = {
        "truncated": lambda: path.write_bytes(truncated(data, generator)),
        "bit flipped": lambda: path.write_bytes(flipped(data, generator)),
        "emptied": lambda: path.write_bytes(b""),
        "of another kind": lambda: path.write_bytes(generator.choice(strangers).read_bytes()),
        "of a newer format": lambda: newer(path),
    }
    if path.suffix == ".pt" or kind_of(path) not in ("results", "ranking"):  # `nas` reads rankings
        ways["of another run"] = lambda: path.write_bytes(twin.read_bytes())
    return ways


def result_of(reader: Reader, path: Path, content: str) -> tuple[str, str]:
    """The outcome of reading a damaged file, and the message of its error."""
    try:
        read = reader.read(path)
    except ApmError as error:
        message = str(error)
        named = ": " in message and "\n" not in message
        return ("refused" if named else "not one line"), message
    return ("harmless" if read == content else "missed"), ""


# Saves


def saves() -> dict[str, Any]:
    """Seconds to save a state, and their share of the time at the default interval."""
    every, rows = RunSettings().compute.resume_interval, []
    with tempfile.TemporaryDirectory() as place:
        for megabytes in (10, 100, 1000):
            state = {"images": torch.randn(megabytes * 250_000)}
            resume, times = Resume(place, megabytes, every=every), []
            for _ in range(3):
                began = time.perf_counter()
                resume.save(state)
                times.append(time.perf_counter() - began)
            seconds = statistics.median(times)
            wait = max(every, seconds / MOST)
            rows.append(
                {"MB": megabytes, "seconds": seconds, "interval": wait, "share": seconds / wait}
            )
    return {"saves": rows}


def main() -> None:
    """Run the part that is asked for, and write it beside the other."""
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="at most, for the kills")
    parser.add_argument("--damages", type=int, default=0)
    parser.add_argument("--saves", action="store_true", help="time the saving of a state")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(OUT.read_text()) if OUT.is_file() else {}
    if options.kills:
        report["killed"] = {**machine(), **kills(options.kills, options.minutes, options.seed)}
    if options.damages:
        report["damaged"] = {**machine(), **damages(options.damages, options.seed)}
    if options.saves:
        report["saved"] = {**machine(), **saves()}
    print(json.dumps(report, indent=1))
    write(OUT, report)


if __name__ == "__main__":
    main()
