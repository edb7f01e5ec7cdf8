"""Each set against its control."""

from collections.abc import Mapping
from typing import Any

from apm_core.report.charts import style
from apm_core.report.charts.style import Chart
from apm_core.report.differences import SIGNS, WORDS, difference
from apm_core.report.table import marked

FILLED = {"gain", "loss"}  # real differences are filled, others hollow


def charts(results: Mapping[str, Any]) -> list[Chart]:
    """A chart for each network on which at least one set has a control."""
    networks = dict.fromkeys(n for one in results["methods"].values() for n in one["accuracy"])
    return [chart for network in networks if (chart := _chart(results, network))]


def _chart(results: Mapping[str, Any], network: str) -> Chart | None:
    found = {
        name: one
        for name in results["methods"]
        if (one := difference(results, name, "accuracy", network))
    }
    if not found:
        return None
    rows = sorted(found, key=lambda name: found[name].mean)
    looks = style.looks(results["methods"])
    figure, axes = style.canvas(0.9 + 0.26 * len(rows))
    for place, name in enumerate(rows):
        one, look = found[name], looks[name]
        face = look.colour if one.verdict in FILLED else "white"
        if one.interval:
            axes.plot(one.interval, [place, place], color=look.colour, linewidth=1.5)
        axes.plot(one.mean, place, look.marker, color=look.colour, markerfacecolor=face)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [marked(name, results["methods"][name]) for name in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"points above the control, {network}")
    said = "; ".join(f"{n}: {found[n]} ({WORDS[found[n].verdict]})" for n in reversed(rows))
    return Chart(
        f"What distillation adds on {network}",
        "Accuracy above that of each set's control, in percentage points, with the 95 % interval."
        f" Filled: real ({SIGNS['gain']} or {SIGNS['loss']}); hollow: noise, or one network only.",
        style.svg(figure, f"differences-{network}", f"Points above the control. {said}"),
    )
