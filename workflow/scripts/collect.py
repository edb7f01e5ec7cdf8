"""The results file, its page, the gallery and the summary of all results files in the folder."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from _job import job
from rich.console import Console

from apm_core.data.prepared import PreparedData
from apm_core.distilled import load
from apm_core.methods.history import History
from apm_core.report import gallery, page, table
from apm_core.runtime import store
from apm_core.settings.stages import CollectSettings
from apm_core.stages.collect import collect, summarize_folder
from apm_core.stages.distill import KIND as SHARD

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, CollectSettings) as this:
    sets = {s.artifact.info["entry"]: s for s in map(load, snakemake.input.distilled)}
    shards = [store.read(path, SHARD, lazy=True) for path in snakemake.input.shards]
    histories = {
        entry: history
        for entry, shard in zip(sets, shards, strict=True)
        if (history := History.of(shard))
    }
    results = collect(snakemake.wildcards.dataset, this.settings, sets, snakemake.input.scores)
    gallery.write_gallery(snakemake.output.gallery, sets)
    data = PreparedData.open(snakemake.input.data)
    page.write_page(snakemake.output.page, results, sets, data, histories)
    inputs = {name: distilled.artifact.content for name, distilled in sets.items()}
    store.write_json(snakemake.output.results, "results", results, inputs)
    summarize_folder(Path(snakemake.output.results).parent)
    Console(file=sys.stderr).print(table.table(results))
