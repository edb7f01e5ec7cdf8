"""Whether a set ranks networks as the full data do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from apm_core.report.charts import style
from apm_core.report.charts.style import Chart, Look


def charts(results: Mapping[str, Any]) -> list[Chart]:
    """A scatter of ranks for every set that ranked networks."""
    looks = style.looks(results["methods"])
    return [
        _chart(name, one["nas"], looks[name])
        for name, one in results["methods"].items()
        if one["nas"] and "accuracies" in one["nas"]  # results from before have none
    ]


def _chart(name: str, nas: Mapping[str, Any], look: Look) -> Chart:
    reference, proxy = (_ranks(nas["accuracies"][key]) for key in ("reference", "proxy"))
    figure, axes = style.canvas(3.6)
    axes.plot([1, len(reference)], [1, len(reference)], color=style.GREY, linewidth=0.8)
    axes.plot(reference, proxy, look.marker, color=look.colour)
    axes.set_xlabel("rank by the full data (1: best)")
    axes.set_ylabel(f"rank by {name}")
    axes.set_aspect("equal")
    ends = len(reference) + 0.7, 0.3  # the best is at the top right
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True))
    spearman = nas["spearman"]
    said = "no rank correlation: all are equal"
    if spearman["mean"] is not None:
        said = f"Spearman's rank correlation {spearman['mean']:.2f}"
        if spearman["ci95"]:
            low, high = spearman["ci95"]
            said += f", 95 % interval {low:.2f} to {high:.2f}"
            said += "" if low > 0 or high < 0 else ", which includes zero"
    return Chart(
        f"Networks ranked by {name}",
        f"{nas['networks']} networks of NAS-Bench-201, {said}. On the line both ranks are equal;"
        " the interval comes from drawing networks anew.",
        style.svg(figure, f"ranking-{name}", f"Ranks by {name}: {said}"),
    )


def _ranks(accuracies: list[float]) -> np.ndarray:
    """Ranks (n,), 1 for the best; equal ones share their mean rank."""
    values = np.array(accuracies)
    better = (values[None] > values[:, None]).sum(axis=1)
    return better + (1 + (values[None] == values[:, None]).sum(axis=1)) / 2
