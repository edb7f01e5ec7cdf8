"""Stage 2: one group of the teacher pool."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.stages.teachers import train_group

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as this:
    first = int(snakemake.wildcards.group) * this.settings["per_job"]
    train_group(
        snakemake.output.pool,
        this.settings,
        range(first, first + this.settings["per_job"]),
        PreparedData.open(snakemake.input.data),
        this.run,
    )
