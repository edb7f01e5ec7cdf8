"""Accuracy while classes come, for every set as the memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from apm_core.report.charts import style
from apm_core.report.charts.style import Chart
from apm_core.report.table import marked

BAND = 0.15  # opacity


def chart(results: Mapping[str, Any]) -> Chart:
    """A line of means per set over the classes seen, with a band of one deviation."""
    methods = results["methods"]
    figure, axes = style.canvas(3.2)
    for look, (name, one) in zip(style.looks(methods).values(), methods.items(), strict=True):
        classes = [step["classes"] for step in one["steps"]]
        mean, deviation = (
            np.array([step["accuracy"][key] for step in one["steps"]]) for key in ("mean", "std")
        )
        axes.plot(
            classes,
            mean,
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            linewidth=1.3,
            label=marked(name, one),
        )
        axes.fill_between(
            classes, mean - deviation, mean + deviation, color=look.colour, alpha=BAND, linewidth=0
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("classes seen")
    axes.set_ylabel("accuracy on their test images, %")
    style.legend(figure, axes)
    ends = ", ".join(
        f"{name} {one['steps'][-1]['accuracy']['mean']:.1f}" for name, one in methods.items()
    )
    return Chart(
        "Classes that come in steps",
        f"Networks trained from scratch on the memory of the classes seen so far, over"
        f" {len(results['orders'])} orders of the classes; the band is one sample standard"
        " deviation.",
        style.svg(figure, "continual", f"Accuracy in percent with all classes seen: {ends}"),
    )
