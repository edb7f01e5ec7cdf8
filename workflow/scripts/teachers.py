"""Stage 2: one group of the teacher pool."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.settings.stages import PoolSettings
from apm_core.stages.teachers import train_group

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, PoolSettings) as this:
    count = this.settings.training.per_job
    first = int(snakemake.wildcards.group) * count
    train_group(
        snakemake.output.pool,
        this.settings,
        range(first, first + count),
        PreparedData.open(snakemake.input.data),
        this.run,
    )
