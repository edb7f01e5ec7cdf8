"""Where the time went, and how much memory each distillation took."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from apm_core.report.charts import style
from apm_core.report.charts.style import Chart

STAGES = {  # by the name of its seconds
    "teachers": "teachers, experts",
    "distill": "distillation",
    "evaluate": "evaluation",
    "ceiling": "full data",
    "nas": "NAS ranking",
}


def charts(results: Mapping[str, Any]) -> list[Chart]:
    """Time per stage and memory per set, of those that were measured."""
    seconds = {
        STAGES.get(stage, stage): value
        for stage, value in results["run"].get("seconds", {}).items()
        if value > 0
    }
    memory = {
        name: one["cost"]["peak_memory_bytes"] / 1e6
        for name, one in results["methods"].items()
        if one["cost"]["peak_memory_bytes"]
    }
    found = []
    if seconds:
        minutes = {stage: value / 60 for stage, value in seconds.items()}
        text = "Minutes of all jobs of a stage, one after the other; teachers count once."
        found.append(_bars("time", "Where the time went", text, minutes, "minutes", 1))
    if memory:
        text = "The most that the distillation of a set took: of the process on a CPU, PyTorch and"
        text += " data included; of the allocator on a GPU."
        found.append(_bars("memory", "Memory to distil", text, memory, "MB", 0))
    return found


def _bars(
    name: str, title: str, text: str, values: Mapping[str, float], unit: str, digits: int
) -> Chart:
    figure, axes = style.canvas(0.7 + 0.26 * len(values))
    places = range(len(values))
    axes.barh(places, list(values.values()), height=0.6, color=style.COLOURS[0])
    _numbers(axes, list(values.values()), digits)
    axes.set_yticks(places, list(values))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(unit)
    said = ", ".join(f"{key} {value:.{digits}f}" for key, value in values.items())
    return Chart(title, text, style.svg(figure, name, f"{title}, {unit}: {said}"))


def _numbers(axes: Axes, values: list[float], digits: int) -> None:
    axes.set_xlim(0, 1.18 * max(values))
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.{digits}f}", va="center")
