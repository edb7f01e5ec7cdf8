"""Stage 5: networks of one architecture, trained on a distilled set under its protocols."""

from typing import TYPE_CHECKING

from _job import job

from apm_core.data.prepared import PreparedData
from apm_core.distilled import load
from apm_core.runtime.store import write_json
from apm_core.settings.stages import EvaluateSettings
from apm_core.stages.evaluate import evaluate
from apm_core.training.teacher_pool import TeacherPool

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake, EvaluateSettings) as this:
    distilled = load(snakemake.input.distilled)
    data = PreparedData.open(snakemake.input.data)
    files = snakemake.input.get("teacher")
    teachers = TeacherPool.open(files, data, this.run.compute) if files else None
    scores = evaluate(distilled, data, this.settings, this.run, teachers)
    inputs = {"data": data.artifact.content, "distilled": distilled.artifact.content}
    if teachers:
        inputs["teacher"] = teachers.artifacts[0].content
    write_json(snakemake.output.scores, "scores", scores, inputs)
