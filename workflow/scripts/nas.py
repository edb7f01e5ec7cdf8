"""Stage 6: the agreement of the two rankings."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.errors import ArtifactError
from apm_core.runtime.store import read_json, write_json
from apm_core.settings.stages import AgreementSettings
from apm_core.stages.nas import compare, table_reference

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, AgreementSettings) as this:
    proxies, inputs = read_json(snakemake.input.proxy, "ranking")
    source, ranking = this.settings.source, None
    if source == "table":
        column = this.settings.column
        reference = table_reference(snakemake.input.reference, column, proxies["architectures"])
    else:
        ranking, sources = read_json(snakemake.input.reference, "ranking")
        if sources["data"] != inputs["data"]:
            raise ArtifactError(
                f"{snakemake.input.reference}: was measured on other data: delete it and run again"
            )
        reference = ranking["accuracies"][0]
    scores = compare(proxies, reference, source, this.settings.seed, trained=ranking)
    write_json(snakemake.output.scores, "scores", scores, inputs)
