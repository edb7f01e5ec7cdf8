"""Stage 1: the whitening of the data artifact as a file of its own, beside the distilled sets."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data import whitening_file
from apm_core.data.prepared import PreparedData
from apm_core.settings.stages import PrepareSettings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, PrepareSettings):
    whitening_file.write(snakemake.output.whitening, PreparedData.open(snakemake.input.data))
