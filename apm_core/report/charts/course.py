"""The learning curves of the distillation."""

from collections.abc import Mapping

import numpy as np

from apm_core.methods.history import History
from apm_core.report.charts import style
from apm_core.report.charts.style import Chart

MOST = 5  # curves of a chart: as many as there are patterns of lines


def charts(histories: Mapping[str, History]) -> list[Chart]:
    """A chart for each history that has figures which change."""
    return [chart for name, one in histories.items() if (chart := _chart(name, one))]


def _chart(name: str, history: History) -> Chart | None:
    curves = {key: values for key, values in history.figures.items() if _changes(key, values)}
    curves = dict(list(curves.items())[:MOST])
    if not curves:
        return None
    figure, axes = style.canvas(2.6)
    for look, (key, values) in zip(style.looks(curves).values(), curves.items(), strict=True):
        there = ~np.isnan(values)
        axes.plot(
            history.noted[there],
            values[there],
            linestyle=look.line,
            color=look.colour,
            linewidth=1.3,
            label=key,
        )
    positive = all(np.nanmin(values) > 0 for values in curves.values())
    if positive:
        style.logarithmic(axes, "y")
    axes.set_xlabel("rounds done")
    style.legend(figure, axes)
    ends = ", ".join(
        f"{key} from {values[~np.isnan(values)][0]:.3g} to {values[~np.isnan(values)][-1]:.3g}"
        for key, values in curves.items()
    )
    shape = "logarithmic" if positive else "linear"
    return Chart(
        f"How {name} was distilled",
        f"Figures of the rounds of the first shard, single rounds at equal distances, {shape}"
        " scale.",
        style.svg(figure, f"course-{name}", f"Learning curves of {name}: {ends}"),
    )


def _changes(key: str, values: np.ndarray) -> bool:
    """Whether figures are worth a curve: no rate, and not the same in all rounds."""
    known = values[~np.isnan(values)]
    return not key.startswith("lr_") and len(known) > 1 and float(np.ptp(known)) > 0
