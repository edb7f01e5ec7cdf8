"""`apm plan`: the jobs of a run, its hours and its disk space, in words."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from apm_core.estimate.disk import disk_bytes
from apm_core.estimate.jobs import jobs
from apm_core.estimate.size import size_of
from apm_core.estimate.speed import JOB_S, measured, reckoned, told
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
    total = sum(counts.values())
    yield f"{'in all':<14}{total:>6}"
    size = size_of(plan)
    if size is None:
        name = plan.settings.dataset.name
        yield (
            "estimates: need number and size of the images: set dataset.resolution, or run"
            f" snakemake --configfile {' '.join(map(str, configs))} -- work/{name}/data.zarr.zip"
            " first"
        )
        return
    threads = min(plan.settings.compute.threads, torch.get_num_threads())
    torch.set_num_threads(threads)
    cores = f"{threads} core{'s' * (threads > 1)} of this machine"
    work = list(works(plan, size))
    cpu, gpu = measured().stages(work), reckoned("cuda").stages(work)
    yield f"estimates: {cores} (measured for seconds), a GPU (reckoned, not measured)"
    own = {"start of jobs": total * JOB_S}
    for stage in [*cpu, *own]:
        here, there = cpu.get(stage, own.get(stage)), gpu.get(stage, own.get(stage))
        yield f"  {stage:<14}{told(here):>10}{told(there):>10}"
    whole = [told(sum({**one, **own}.values())) for one in (cpu, gpu)]
    yield f"  {'in all':<14}{whole[0]:>10}{whole[1]:>10}"
    yield f"  disk {disk_bytes(plan, size) / 1e9:.2g} GB, and resume files beside it"
    for entry in not_estimated(plan, size):
        yield f"  not estimated: {entry}, whose job logs the hours after two rounds"
