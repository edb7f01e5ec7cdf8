"""Stage 4: the distilled set, merged from its shards, with its final labels."""

from pathlib import Path
from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.settings.stages import MergeSettings
from apm_core.stages.merge import merge
from apm_core.training.teacher_pool import TeacherPool

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, MergeSettings) as this:
    data = PreparedData.open(snakemake.input.data)
    teachers = snakemake.input.get("teachers")
    merge(
        snakemake.output.distilled,
        this.settings,
        snakemake.input.shards,
        data,
        TeacherPool.open(teachers, data, this.run.compute) if teachers else None,
        this.run.compute,
        Path(snakemake.input.whitening).name,
    )
