"""Class-incremental learning with one distilled set as the memory."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.distilled import load
from apm_core.runtime.store import write_json
from apm_core.settings.stages import ContinualSettings
from apm_core.stages.continual import continual

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, ContinualSettings) as this:
    distilled = load(snakemake.input.distilled)
    data = PreparedData.open(snakemake.input.data)
    scores = continual(distilled, data, this.settings, this.run)
    inputs = {"data": data.artifact.content, "distilled": distilled.artifact.content}
    write_json(snakemake.output.scores, "scores", scores, inputs)
