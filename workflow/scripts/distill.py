"""Stage 3: one shard of a distilled set."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.settings.stages import DistillSettings
from apm_core.stages.distill import Budget, distill_shard
from apm_core.training.teacher_pool import TeacherPool

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, DistillSettings) as this:
    compute = this.config.compute
    data = PreparedData.open(snakemake.input.data)
    teachers = snakemake.input.get("teachers")
    distill_shard(
        snakemake.output.shard,
        this.settings,
        int(snakemake.wildcards.shard),
        data,
        TeacherPool.open(teachers, data, this.run.compute) if teachers else None,
        this.run,
        shards=this.config.distill.shards,
        segment=compute.segment,
        budget=Budget.of(compute, this.run.compute),
    )
