"""Stage 6: the ranking by a distilled set."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.distilled import load
from apm_core.runtime.store import write_json
from apm_core.settings.stages import RankingSettings
from apm_core.stages.nas import proxy

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, RankingSettings) as this:
    distilled = load(snakemake.input.distilled)
    data = PreparedData.open(snakemake.input.data)
    ranking = proxy(distilled, data, this.settings, this.run)
    inputs = {"data": data.artifact.content, "distilled": distilled.artifact.content}
    write_json(snakemake.output.ranking, "ranking", ranking, inputs)
