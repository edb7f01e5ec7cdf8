"""The results file, its table, the gallery and the summary of all results files in the folder."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from _job import job
from rich.console import Console

from apm_core.distilled import load
from apm_core.report import gallery, table
from apm_core.runtime.store import write_json
from apm_core.settings.stages import CollectSettings
from apm_core.stages.collect import collect, summarize_folder

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, CollectSettings) as this:
    sets = {s.artifact.info["entry"]: s for s in map(load, snakemake.input.distilled)}
    results = collect(snakemake.wildcards.dataset, this.settings, sets, snakemake.input.scores)
    gallery.write_gallery(snakemake.output.gallery, sets)
    table.write_html(snakemake.output.table, results)
    inputs = {name: distilled.artifact.content for name, distilled in sets.items()}
    write_json(snakemake.output.results, "results", results, inputs)
    summarize_folder(Path(snakemake.output.results).parent)
    Console(file=sys.stderr).print(table.table(results))
