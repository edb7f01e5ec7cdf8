"""The results of class-incremental learning for all sets, with their figure."""

import sys
from typing import TYPE_CHECKING

from _job import job
from rich.console import Console

from apm_core.distilled import load
from apm_core.report import continual as report
from apm_core.report.charts import continual as chart
from apm_core.report.charts import style
from apm_core.runtime.store import write_json
from apm_core.settings.stages import CollectSettings
from apm_core.stages.continual import KIND, curves

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, CollectSettings) as this:
    sets = {s.artifact.info["entry"]: s for s in map(load, snakemake.input.distilled)}
    results = curves(snakemake.wildcards.dataset, this.settings, sets, snakemake.input.scores)
    with style.applied():
        style.write(snakemake.output.figure, chart.chart(results))
    inputs = {name: distilled.artifact.content for name, distilled in sets.items()}
    write_json(snakemake.output.results, KIND, results, inputs)
    Console(file=sys.stderr).print(report.table(results))
