"""The first figures of a GPU, on a CPU at tiny sizes: each part, the record, what fails."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from apm_core.errors import ApmError
from apm_core.runtime.device import Compute
from benchmarks import measure, tables
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import kernels, repeat, smoke
from benchmarks.gpu.record import Record, failures, forget, load
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.step import paths

TINY = Setup("cpu", "off", quick=True)
HEAD = {"device": "a GPU", "date": "2000-01-01"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gpu_cpu.json"


def numbered(calls: list[str], *broken: str):
    """Entries a, b and c, of which `broken` fail."""

    def entry(name: str):
        calls.append(name)
        if name in broken:
            raise ApmError(f"{name} is broken")
        return {"figure": 1}

    return {name: lambda name=name: entry(name) for name in "abc"}


@pytest.mark.parametrize(
    "part", [name for name in command.PARTS if name not in ("smoke", "repeat")]
)
def test_each_part_is_measured(path, part):
    assert Record(path, HEAD, "1").measure(part, command.PARTS[part](TINY))
    report = load(path)
    assert report["device"] == "a GPU" and report["parts"][part] and not failures(report)


def test_a_path_that_trains_otherwise_is_seen():
    case, size = smoke.cases(smoke.TINY)["gsam"], smoke.TINY
    exact = replace(TINY.compute, precision="float32")
    found = smoke.compared(case, size, exact)
    assert found["network 1"]["difference"] == found["again"]["difference"] == 0
    honest = smoke.movements

    def other(case, size, compute, networks):  # the compiled path has another learning rate
        changes = case.changes if compute.compile == "off" else {**case.changes, "lr": 0.03}
        return honest(replace(case, changes=changes), size, compute.exact(), networks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoke, "movements", other)
        found = smoke.compared(case, size, replace(exact, compile="on"))
    assert found["error"]["message"] == "too far away: network 0, network 1"


def test_the_smoke_test_has_every_case_in_each_precision():
    names = list(smoke.entries(TINY))
    assert len(names) == len(set(names)) and {"color, float32", "vit, float32"} <= set(names)
    both = replace(TINY.compute, precision="bf16")
    setup = Setup("cpu")
    setup.__dict__["compute"] = both
    assert {"rotate, bf16", "rotate, float32"} <= set(smoke.entries(setup))


def test_a_gpus_step_has_every_variant():
    gpu = Compute(torch.device("cpu"), "bf16", "on", graphs=True)  # only asked what it would do
    ways = {name: (w.precision, w.compile, w.graphs, w.kernels) for name, w in paths(gpu).items()}
    assert ways == {
        "float32": ("float32", "off", False, False),
        "float32, compiled": ("float32", "on", True, False),
        "bf16": ("bf16", "off", False, False),
        "bf16, compiled": ("bf16", "on", True, False),
        "float32, captured": ("float32", "off", True, False),
        "bf16, captured": ("bf16", "off", True, False),
        "own kernels": ("bf16", "on", True, True),
    }


def test_a_fallback_is_an_error():
    with pytest.raises(ApmError, match="running uncompiled"):
        TINY.compute.report("compilation failed, running uncompiled")


def test_two_runs_of_a_seed_are_compared(monkeypatch):
    runs = iter(
        [[{"training": repeat.np.array([1.0, 2.0])}] * 2, [{"training": repeat.np.ones(2)}]]
    )
    monkeypatch.setattr(repeat, "elsewhere", lambda *_: next(runs))
    found = repeat.compared(TINY)["training"]
    assert found["one process"] == {"equal": True, "largest difference": 0.0}
    assert found["two processes"] == {"equal": False, "largest difference": 1.0}


def test_kernels_are_listed_by_their_time(cpu):
    product, _ = measure.matrix_product(cpu)
    found = kernels.table(product, cpu)
    assert found["kernels"][0]["name"] == "aten::mm" and found["busy, us"] > 0


def test_a_failing_entry_is_recorded_and_the_next_call_tries_it_again(path):
    calls = []
    assert not Record(path, HEAD, "1").measure("part", numbered(calls, "b"))
    assert Record(path, HEAD, "1").measure("part", numbered(calls, "b"))  # the rest, elsewhere
    assert calls == ["a", "b", "c"]
    (line,) = failures(load(path))
    assert line == "part, b: ApmError: b is broken"
    error = load(path)["parts"]["part"]["b"]["error"]
    assert any("b is broken" in text for text in error["traceback"])
    assert Record(path, HEAD, "2").measure("part", numbered(calls))
    assert calls == ["a", "b", "c", "b"] and not failures(load(path))


def test_a_stopped_entry_says_so_and_is_done_again(path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Record(path, HEAD, "1").measure("part", {"a": lambda: {}, "b": stopped})
    assert failures(load(path)) == ["part, b: Unfinished: stopped, killed or crashed"]
    calls = []
    Record(path, HEAD, "2").measure("part", numbered(calls))
    assert calls == ["b", "c"]


def test_figures_that_are_no_numbers_are_an_error(path):
    Record(path, HEAD, "1").measure("part", {"a": lambda: {"figure": float("nan")}})
    assert "ValueError" in failures(load(path))[0]


def test_figures_of_another_device_are_dropped_and_parts_can_be_forgotten(path):
    calls = []
    for part in ("one", "two"):
        Record(path, HEAD, "1").measure(part, numbered(calls))
    forget(path, ["one"])
    assert list(Record(path, {**HEAD, "date": "2000-01-02"}, "2").report["parts"]) == ["two"]
    assert not Record(path, {**HEAD, "device": "another"}, "2").report["parts"]


def test_what_was_asked_stands_beside_what_was_measured():
    figures = {"images/s": 700_000.0, "asked": {"images/s": {"at least": 650_000}}}
    report = {"parts": {"step": {"bf16": figures, "kernels": {}}}}
    assert tables.asked(report).splitlines()[-1] == (
        "| step, bf16: images/s | at least 650,000 | 7e+05 |"
    )


def run(path, *options: str, **more) -> subprocess.Popen:
    told = ["--device", "cpu", "--quick", "--compile", "off", "--out", path.parent]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, told), *options],
        cwd=measure.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


@pytest.mark.workflow
def test_a_stopped_command_goes_on_and_says_what_failed(path):
    def machine_done() -> bool:
        entries = load(path).get("parts", {}).get("machine")
        return bool(entries) and not failures({"parts": {"machine": entries}})

    def heed() -> None:  # a shell has its jobs in the background ignore interrupts
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    first = run(path, "machine", "rounds", start_new_session=True, preexec_fn=heed)
    while not machine_done() and first.poll() is None:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGINT)
    first.communicate()
    machine = load(path)["parts"]["machine"]
    assert first.returncode and not failures({"parts": {"machine": machine}})
    output, _ = run(path, "machine", "rounds").communicate()
    assert "0 failed" in output and "asked and measured" in output
    assert load(path)["parts"]["machine"] == machine
    slow = run(path, "machine", "--again", "--limit", "0.001")
    output, _ = slow.communicate()
    assert slow.returncode == 1 and "1 failed" in output, output
    report = json.loads(path.read_text())
    assert failures(report) == ["machine, machine: Unfinished: stopped, killed or crashed"]
    assert set(report["parts"]["rounds"]) == {"headline", "imagenet"}
