"""Stage 1: images to the data artifact, with early checks of what later stages need of the data."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.settings.plan import Plan
from apm_core.settings.stages import PrepareSettings
from apm_core.stages.prepare import prepare

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, PrepareSettings) as this:
    data = prepare(snakemake.output.data, this.settings, demands=Plan(this.config).demands)
    for warning in data.artifact.info["warnings"]:
        this.log(f"warning: {warning}")
