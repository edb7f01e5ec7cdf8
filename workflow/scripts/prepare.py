"""Stage 1: images to the data artifact; what later stages ask of the data is checked now, before
they cost time.
"""

from typing import TYPE_CHECKING

from _job import job

from apm_core.stages.prepare import prepare

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as this:
    config = snakemake.config
    data = prepare(
        snakemake.output.data,
        this.settings,
        ipc=config["ipc"],
        architectures=[config["teachers"]["network"], *config["evaluate"]["architectures"]],
    )
    for warning in data.artifact.info["warnings"]:
        this.log(f"warning: {warning}")
