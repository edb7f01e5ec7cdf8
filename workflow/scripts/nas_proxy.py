"""Stage 6: the ranking by a distilled set."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.distilled import load
from apm_core.nas import proxy
from apm_core.prepare import PreparedData
from apm_core.store import write_json

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as this:
    distilled = load(snakemake.input.distilled)
    data = PreparedData.open(snakemake.input.data)
    ranking = proxy(distilled, data, this.settings, this.run)
    inputs = {"data": data.artifact.content, "distilled": distilled.artifact.content}
    write_json(snakemake.output.ranking, "ranking", ranking, inputs)
