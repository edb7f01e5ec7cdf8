"""Segments that fit a budget, and what happens when memory runs out all the same."""

import math
import os
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from apm_core.errors import ConfigError, OutOfMemoryError
from apm_core.methods import dm
from apm_core.methods.apm import apm as module
from apm_core.runtime import memory
from apm_core.runtime.device import Compute
from apm_core.runtime.memory import GB, largest_segment
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.compute import ComputeSettings
from apm_core.settings.stages import DistillSettings
from apm_core.settings.training import Network
from apm_core.stages.distill import Budget, distill_shard, home_of

CPU = Compute(torch.device("cpu"), compile="off")


@pytest.mark.parametrize("seed", range(200))
def test_a_segment_fits_and_is_as_large_as_it_can_be(seed):
    draw = random.Random(seed)
    fixed, each, images, limit = (int(10 ** draw.uniform(0, top)) for top in (9, 8, 3.7, 11))

    def need(segment: int) -> int:
        asked.append(segment)
        return fixed + each * segment

    asked: list[int] = []
    if need(1) > limit:
        with pytest.raises(ConfigError, match=r"compute\.memory_gb: .* is less than the"):
            largest_segment(need, images, limit, "compute.memory_gb")
        return
    segment, needed = largest_segment(need, images, limit, "compute.memory_gb")
    possible = min(images, (limit - fixed) // each)
    assert need(segment) <= needed <= limit
    assert math.ceil(images / segment) == math.ceil(images / possible)
    assert len(asked) <= 12 and max(asked) <= images


def test_a_budget_below_one_image_says_how_much_is_needed():
    message = (
        "compute.gpu_memory_gb: 0.5 GB is less than the 1.5 GB that one image at a time needs:"
        " raise it, or remove it"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        largest_segment(lambda _: int(1.5 * GB), 10, int(0.5 * GB), "compute.gpu_memory_gb")


def test_a_probe_that_runs_out_of_memory_only_lowers_the_guess():
    def need(segment: int) -> int:
        if segment > 20:
            raise torch.OutOfMemoryError("no")
        return segment

    segment, needed = largest_segment(need, 100, 10**9, "key", probes=20)
    assert (segment, needed) == (20, 20)


def test_other_errors_of_a_probe_are_not_swallowed():
    def need(segment: int) -> int:
        if segment > 1:
            raise RuntimeError("mine")
        return 1

    with pytest.raises(RuntimeError, match="mine"):
        largest_segment(need, 100, 10**9, "key")


def test_the_allocators_refusal_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert memory.is_exhausted(caught.value)
    assert memory.is_exhausted(torch.OutOfMemoryError("CUDA out of memory"))
    assert not memory.is_exhausted(RuntimeError("shapes differ"))
    assert not memory.is_exhausted(MemoryError("python's own"))


def test_an_error_while_running_out_is_running_out():
    with pytest.raises(RuntimeError) as caught:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:  # as the end of a capture does
            raise RuntimeError("operation failed due to a previous error during capture")
    assert memory.is_exhausted(caught.value)


def test_the_allocator_of_a_gpu_gets_the_limit(monkeypatch):
    total = SimpleNamespace(total_memory=8 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: total)
    asked = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *of: asked.append(of))
    gpu = Compute(torch.device("cuda", 1))
    for size in (2 * 10**9, 10**10):
        memory.limit(size, gpu)
    memory.limit(10, CPU)
    assert asked == [(0.25, gpu.device), (1.0, gpu.device)]


def test_the_peak_grows_with_what_is_held_and_starts_anew():
    memory.reset_peak(CPU)
    before = memory.peak(CPU)
    block = torch.ones(100_000_000)
    after = memory.peak(CPU)
    assert 3.9e8 < after - before < 6e8
    del block
    if memory.RESET_PEAK.exists():
        memory.reset_peak(CPU)
        assert memory.peak(CPU) < after - 3e8


@pytest.fixture
def settings(recipe_settings):
    options = {
        "checkpoints": 2,
        "period": 2,
        "ce": 0.1,
        "logarithm": True,
        "augment_images": True,
        "start": "real",
        "teacher_epochs": None,
    }
    return DistillSettings(
        method="apm_plus",
        options=options,
        ipc=2,
        rounds=4,
        recipe=recipe_settings,
        precision="float32",
    )


def shard(path, settings, digits, teachers, **more):
    """A shard and the lines of its log."""
    lines: list[str] = []
    run = Run(replace(CPU, report=lines.append))
    return distill_shard(path, settings, 0, digits, teachers, run, **more), lines


def test_after_running_out_of_memory_a_round_is_done_again_in_halves(
    settings, digits, teachers, tmp_path, monkeypatch
):
    whole, _ = shard(tmp_path / "a", settings, digits, teachers)
    small, _ = shard(tmp_path / "b", settings, digits, teachers, segment=5)
    original = module.APM.segment_gradient
    sizes: list[int] = []

    def limited(self, images, *rest):
        if self.job.compute.compile == "off" and len(sizes) >= 3 and len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        sizes.append(len(images))
        return original(self, images, *rest)

    monkeypatch.setattr(module.APM, "segment_gradient", limited)
    cut, lines = shard(tmp_path / "c", settings, digits, teachers)
    assert [line for line in lines if line.startswith("out of memory")] == [
        "out of memory with 20 images at a time: going on with 10",
        "out of memory with 10 images at a time: going on with 5",
    ]
    assert sizes[:3] == [20, 20, 20] and set(sizes[3:]) == {5}
    for found in (whole, small):
        assert found.arrays["images"] == pytest.approx(cut.arrays["images"], abs=1e-5)


def test_memory_that_runs_out_in_the_rehearsal_halves_the_segment_too(
    settings, digits, teachers, tmp_path, monkeypatch
):
    original = module.APM.segment_gradient

    def limited(self, images, *rest):
        if len(images) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, images, *rest)

    whole, _ = shard(tmp_path / "a", settings, digits, teachers)
    monkeypatch.setattr(module.APM, "segment_gradient", limited)
    cut, lines = shard(tmp_path / "b", settings, digits, teachers)
    assert lines[0] == "out of memory with 20 images at a time: going on with 10"
    assert lines[1].startswith("expected: ") and len(lines) == 3
    assert cut.arrays["images"] == pytest.approx(whole.arrays["images"], abs=1e-5)


def test_another_error_of_a_round_is_raised_as_it_is(
    settings, digits, teachers, tmp_path, monkeypatch
):
    def wrong(self, *_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(module.APM, "segment_gradient", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        shard(tmp_path / "a", settings, digits, teachers)


def test_one_image_that_does_not_fit_ends_with_one_line(
    settings, digits, teachers, tmp_path, monkeypatch
):
    calls = []

    def full(self, images, *_):
        calls.append(len(images))
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
        return torch.zeros_like(images), torch.zeros(2)

    monkeypatch.setattr(module.APM, "segment_gradient", full)
    message = r"out of memory with one image at a time: lower recipe\.batch or teachers\.width, or"
    with pytest.raises(OutOfMemoryError, match=message) as caught:
        shard(tmp_path / "a", settings, digits, teachers)
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()
    assert calls[2:] == [20, 10, 5, 2, 1]


@pytest.fixture
def whole_rounds(recipe_settings):
    """Settings of a method that has no segments."""
    options = {"batch_real": 9}
    recipe = recipe_settings.changed({"loss": "ce"})
    network = Network(width=4, depth=1)
    return DistillSettings(
        method="dm", options=options, ipc=1, rounds=2, recipe=recipe, network=network
    )


def test_a_method_without_segments_ends_when_memory_runs_out(
    whole_rounds, digits, tmp_path, monkeypatch
):
    calls = []

    def full(*_):
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dm.DM, "step", full)
    message = (
        r"^distillation: out of memory: lower the batches of the method or teachers\.width, or"
    )
    with pytest.raises(OutOfMemoryError, match=message):
        shard(tmp_path / "a", whole_rounds, digits, None)
    assert len(calls) == 1


def test_a_budget_below_a_round_is_refused_where_a_method_has_no_segments(
    whole_rounds, digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "peak", lambda _: 2 * 10**9)
    message = r"^compute\.memory_gb: 1 GB is less than the 2 GB of a round: raise it, or lower the"
    with pytest.raises(ConfigError, match=message):
        shard(tmp_path / "a", whole_rounds, digits, None, budget=Budget(10**9, "compute.memory_gb"))
    budget = Budget(3 * 10**9, "compute.memory_gb")
    _, lines = shard(tmp_path / "a", whole_rounds, digits, None, budget=budget)
    assert not any("at a time" in line for line in lines)


def test_a_budget_picks_the_segment_and_leaves_the_result(
    settings, digits, teachers, tmp_path, monkeypatch
):
    held = [0]
    original = module.APM.segment_gradient

    def noted(self, images, *rest):
        held[0] = 1000 + 100 * len(images)
        return original(self, images, *rest)

    monkeypatch.setattr(module.APM, "segment_gradient", noted)
    monkeypatch.setattr(memory, "peak", lambda _: held[0])
    whole, lines = shard(tmp_path / "a", settings, digits, teachers)
    assert not any("allow" in line for line in lines)
    cut, lines = shard(
        tmp_path / "b", settings, digits, teachers, budget=Budget(1_750, "compute.memory_gb")
    )
    assert "compute.memory_gb: 1.75e-06 GB allow 7 images at a time, which take 1.7e-06 GB" in lines
    expected = next(line for line in lines if line.startswith("expected: "))
    assert re.fullmatch(r"expected: \S+ h for 5 rounds of \S+ s, and 1.7e-06 GB", expected)
    assert cut.info["peak_memory_bytes"] == 1600  # the last of the parts of 7, 7 and 6
    assert cut.arrays["images"] == pytest.approx(whole.arrays["images"], abs=1e-5)


def test_a_budget_set_for_a_killed_run_is_kept_by_its_rest(
    settings, digits, teachers, tmp_path, monkeypatch
):
    sizes: list[int] = []
    original = module.APM.segment_gradient

    def noted(self, images, *rest):
        sizes.append(len(images))
        return original(self, images, *rest)

    def until(number: int):
        def stop(done: int, *_) -> None:
            if done == number:
                raise KeyboardInterrupt

        return stop

    def part(name: str, stop: int, budget: Budget | None, segment: int | None = None) -> list[str]:
        lines: list[str] = []
        resume = Resume(tmp_path, "shard", every=0)
        run = Run(replace(CPU, report=lines.append), resume, until(stop))
        sizes.clear()
        try:
            options = {"budget": budget, "segment": segment}
            distill_shard(tmp_path / name, settings, 0, digits, teachers, run, **options)
        except KeyboardInterrupt:
            return lines
        raise AssertionError("was not stopped")

    monkeypatch.setattr(module.APM, "segment_gradient", noted)
    monkeypatch.setattr(memory, "peak", lambda _: 1000 + 100 * (sizes or [0])[-1])
    budget = Budget(1_750, "compute.memory_gb")
    assert part("a", 1, None) and set(sizes) == {20}
    lines = part("b", 2, budget)
    assert any("allow 7 images at a time" in line for line in lines) and sizes[-3:] == [7, 7, 6]
    lines = part("c", 3, budget)
    assert lines[-1].startswith("going on from round 2") and sizes == [7, 7, 6]
    part("d", 4, budget, segment=4)
    assert sizes == [4] * 5


def test_a_machine_that_may_kill_the_job_is_named(
    settings, digits, teachers, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "peak", lambda _: 5 * 10**9)
    for name, there, warned in (
        ("a", 6 * 10**9, True),
        ("b", 9 * 10**9, False),
        ("c", None, False),
    ):
        monkeypatch.setattr(memory, "obtainable", lambda _, there=there: there)
        _, lines = shard(tmp_path / name, settings, digits, teachers)
        warning = "warning: the machine has 6 GB for this job and may kill it: if it does, set"
        assert any(line.startswith(warning) for line in lines) == warned


@pytest.mark.skipif(not memory.SYSTEM.is_file(), reason="of Linux")
def test_obtainable_memory_is_less_than_the_machine_has_and_more_than_is_taken():
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    assert memory.peak(CPU) / 2 < memory.obtainable(CPU) < 1.5 * pages * size
    assert memory.obtainable(Compute(torch.device("cuda"))) is None


def test_rehearsals_leave_no_trace(settings, digits, teachers, tmp_path, monkeypatch):
    found, _ = shard(tmp_path / "a", settings, digits, teachers)
    monkeypatch.setattr("apm_core.stages.distill.predict", lambda *_: None)
    without, _ = shard(tmp_path / "b", settings, digits, teachers)
    assert found.content == without.content


def test_large_shards_live_in_host_memory(digits):
    gpu = Compute(torch.device("cuda"))
    taken = 2 * 4 * 10 * 3 * 8 * 8  # 3 images per class of 8 x 8, and their momentum
    for limit, device in ((4 * taken, "cuda"), (4 * taken - 1, "cpu")):
        assert home_of(digits, 3, gpu, Budget(limit, "key")) == torch.device(device)
    assert home_of(digits, 10**6, CPU, Budget(1, "key")) == CPU.device


def test_what_stays_is_on_the_device_while_it_takes_a_quarter_of_it(monkeypatch):
    gpu = Compute(torch.device("cuda"))
    properties = SimpleNamespace(total_memory=400)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert [memory.home(n, gpu, None).type for n in (100, 101)] == ["cuda", "cpu"]
    assert [memory.home(n, gpu, 40).type for n in (10, 11)] == ["cuda", "cpu"]
    assert memory.home(101, CPU, 40) == CPU.device


def test_the_section_of_the_device_gives_the_budget():
    settings = ComputeSettings(memory_gb=1.5)
    assert Budget.of(settings, CPU) == Budget(1_500_000_000, "compute.memory_gb")
    gpu = Compute(torch.device("cuda"))
    assert Budget.of(settings, gpu) is None
    settings = ComputeSettings(gpu_memory_gb=8)
    assert Budget.of(settings, gpu) == Budget(8_000_000_000, "compute.gpu_memory_gb")
