"""Stage 5: networks of one architecture, trained on a distilled set under its protocols."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.distilled import load
from apm_core.runtime.store import write_json
from apm_core.settings.stages import EvaluateSettings
from apm_core.stages.evaluate import evaluate

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, EvaluateSettings) as this:
    distilled = load(snakemake.input.distilled)
    data = PreparedData.open(snakemake.input.data)
    scores = evaluate(distilled, data, this.settings, this.run)
    inputs = {"data": data.artifact.content, "distilled": distilled.artifact.content}
    write_json(snakemake.output.scores, "scores", scores, inputs)
