"""Stage 5, ceiling: networks of one architecture trained on the full data."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.runtime.store import write_json
from apm_core.settings.stages import CeilingSettings
from apm_core.stages.evaluate import ceiling

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, CeilingSettings) as this:
    data = PreparedData.open(snakemake.input.data)
    scores = ceiling(data, this.settings, this.run)
    write_json(snakemake.output.scores, "scores", scores, {"data": data.artifact.content})
