"""Stage 6: the ranking by short trainings on the full data."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.runtime.store import write_json
from apm_core.settings.stages import RankingSettings
from apm_core.stages.nas import train_short

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, RankingSettings) as this:
    data = PreparedData.open(snakemake.input.data)
    ranking = train_short(data, int(snakemake.wildcards.images_per_class), this.settings, this.run)
    write_json(snakemake.output.ranking, "ranking", ranking, {"data": data.artifact.content})
