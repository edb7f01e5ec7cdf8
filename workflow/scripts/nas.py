"""Stage 6: the agreement of the two rankings."""

from typing import TYPE_CHECKING, Any

from _job import job

from apm_core.errors import ArtifactError
from apm_core.runtime.store import read_json, write_json
from apm_core.settings.stages import AgreementSettings
from apm_core.stages.nas import compare, table_reference

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def ranking_on(data: str, file: str) -> dict[str, Any]:
    """The ranking in `file`; raises ArtifactError when it was not measured on `data`."""
    ranking, sources = read_json(file, "ranking")
    if sources["data"] != data:
        raise ArtifactError(f"{file}: was measured on other data: delete it and run again")
    return ranking


with job(snakemake, AgreementSettings) as this:
    proxies, inputs = read_json(snakemake.input.proxy, "ranking")
    source, trained, short = this.settings.source, None, None
    if source == "table":
        column = this.settings.column
        reference = table_reference(snakemake.input.reference, column, proxies["architectures"])
    else:
        trained = ranking_on(inputs["data"], snakemake.input.reference)
        reference = trained["accuracies"][0]
    if snakemake.input.short:
        short = ranking_on(inputs["data"], snakemake.input.short)
    scores = compare(proxies, reference, source, this.settings.seed, short=short, trained=trained)
    write_json(snakemake.output.scores, "scores", scores, inputs)
