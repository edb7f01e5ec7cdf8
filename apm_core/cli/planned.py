"""`apm plan`: the jobs of a run, its hours and its disk space, in words."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from apm_core.estimate.disk import disk_bytes
from apm_core.estimate.jobs import jobs
from apm_core.estimate.size import size_of
from apm_core.estimate.speed import busy, expected, fused_share, measured, reckoned, told
from apm_core.estimate.work import not_estimated, works
from apm_core.settings import config_files
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings


def lines(configs: Sequence[Path]) -> Iterator[str]:
    """The plan of a run in words; raises ConfigError for a config that is none, DataError for a
    folder of images that is none.
    """
    plan = Plan(RunSettings.of(config_files.read(configs)))
    counts = jobs(plan)
    yield f"{'stage':<14}{'jobs':>6}"
    yield from (f"{stage:<14}{count:>6}" for stage, count in counts.items() if count)
    yield f"{'in all':<14}{sum(counts.values()):>6}"
    size = size_of(plan)
    if size is None:
        dataset = plan.settings.dataset
        resolution = "" if dataset.resolution else "set dataset.resolution, or "
        yield (
            f"estimates: need number and size of the images: {resolution}run snakemake --configfile"
            f" {' '.join(map(str, configs))} -- work/{dataset.name}/data.zarr.zip first"
        )
        return
    cores = torch.get_num_threads()
    threads = min(plan.settings.compute.threads, cores)
    torch.set_num_threads(threads)
    work, note = list(works(plan, size)), busy()
    speed = measured()
    if any(map(speed.compiles, work)):
        speed = replace(speed, fused=fused_share(speed))
    cpu, gpu = (expected(own, plan, work) for own in (speed, reckoned("cuda")))
    yield (
        f"estimates: {threads} core{'s' * (threads > 1)} of this machine (measured for seconds), a"
        " GPU (reckoned, not measured)"
    )
    if cores // threads > 1:
        yield (
            f"  one job after the other; {cores} cores run {cores // threads} at once, where so"
            " many wait"
        )
    if note:
        yield f"  {note}"
    for stage in cpu:
        yield f"  {stage:<14}{told(cpu[stage]):>10}{told(gpu[stage]):>10}"
    yield f"  {'in all':<14}{told(sum(cpu.values())):>10}{told(sum(gpu.values())):>10}"
    yield f"  disk {disk_bytes(plan, size) / 1e9:.2g} GB, and resume files beside it"
    for entry in not_estimated(plan, size):
        yield f"  not estimated: {entry}, whose job logs the hours after two rounds"
