"""How sets fare on other architectures than the one they were made with."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from apm_core.report.charts import style
from apm_core.report.charts.style import Chart
from apm_core.report.table import marked

LIGHT = 0.55  # share of the colours on which black figures can be read


def charts(results: Mapping[str, Any]) -> list[Chart]:
    """A heat map of the accuracies, if there are two architectures and two sets."""
    methods = results["methods"]
    networks = list(dict.fromkeys(n for one in methods.values() for n in one["accuracy"]))
    if len(networks) < 2 or len(methods) < 2:
        return []
    means = np.array(
        [
            [one["accuracy"].get(network, {}).get("mean", np.nan) for network in networks]
            for one in methods.values()
        ]
    )
    figure, axes = style.canvas(0.8 + 0.28 * len(methods))
    axes.grid(visible=False)
    low, high = np.nanmin(means), np.nanmax(means)
    darkest = low + (high - low) / LIGHT or 1.0
    axes.imshow(means, cmap="Blues", aspect="auto", vmin=low, vmax=darkest)
    for (row, column), mean in np.ndenumerate(means):
        if not np.isnan(mean):
            axes.text(column, row, f"{mean:.1f}", ha="center", va="center")
    axes.set_xticks(range(len(networks)), networks)
    axes.set_yticks(range(len(methods)), [marked(name, one) for name, one in methods.items()])
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    best = [list(methods)[int(np.nanargmax(column))] for column in means.T]
    said = "; ".join(
        f"{network}: {name} first" for network, name in zip(networks, best, strict=True)
    )
    return [
        Chart(
            "One set, several architectures",
            f"Mean accuracy in percent; the darker, the higher. {said}.",
            style.svg(figure, "transfer", f"Heat map of accuracies. {said}"),
        )
    ]
