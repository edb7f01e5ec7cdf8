"""What a search for a network by each set comes to, as a table of the page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from apm_core.report.comparison import html_table
from apm_core.report.table import BASELINES, marked
from apm_core.runtime.device import threads_of

HEADER = [
    "search by",
    "its choice",
    "its accuracy on all data, %",
    "accuracy of the best, %",
    "mean accuracy, %",
    "core seconds to rank",
    "to make the set",
    "to rank on all data",
]
NOTE = """
The choice is the network that comes first when all are trained on the set. Its accuracy, that of
the best and the mean of all, which a random choice comes to, are of networks trained on all data.
All are measured on the same test images, those that the choice was made by too. The seconds to make
a set are those of its teachers, which the sets of a run share, and of its distillation.
"""
BASELINE_NOTES = {  # searches that need no set
    "short": "Short trainings are on all data, with as many images as those on a set see.",
    "parameters": "By the number of parameters, the largest network is chosen.",
}


def table(results: Mapping[str, Any]) -> str:
    """A row for each set that ranked networks, and how to read it; empty without any."""
    found = {
        name: one
        for name, one in results["methods"].items()
        if one["nas"] and "search" in one["nas"]  # results from before have none
    }
    rows = [_row(marked(name, one), one["nas"], one["cost"]) for name, one in found.items()]
    notes = [NOTE]
    for baseline, label in BASELINES.items():
        shown = [_without_a_set(label, one["nas"], baseline) for one in found.values()]
        if any(shown):
            notes.append(BASELINE_NOTES[baseline])
        for row in shown:
            if row and row not in rows:  # sets of equal size have equal baselines
                rows.append(row)
    return html_table(HEADER, rows) + f"<p>{escape(' '.join(notes))}</p>" if rows else ""


def _row(name: str, nas: Mapping[str, Any], cost: Mapping[str, Any]) -> list[str]:
    reference, found = nas["reference"], nas["search"]
    made, cores = cost["teacher_seconds"] + cost["distill_seconds"], threads_of(cost["device"])
    return [
        escape(name),
        _choice(found["pick"]),
        *(f"{reference[key]:.1f}" for key in ("pick", "best", "mean")),
        _seconds(found["by_set"]),
        _seconds({"seconds": made, "core_seconds": cores and cores * made}),
        _seconds(found["by_full_data"]),
    ]


def _without_a_set(label: str, nas: Mapping[str, Any], baseline: str) -> list[str]:
    """The row of a baseline; empty where it was not ranked by."""
    found, reference = nas.get("baselines", {}).get(baseline), nas["reference"]
    if not found:
        return []
    images = found.get("images_per_class")  # of the sets whose trainings are as long
    if images:
        label = f"{label}, as on {images} images per class"
    accuracies = (found["accuracy"], reference["best"], reference["mean"])
    return [
        label,
        _choice(found["pick"]),
        *(f"{accuracy:.1f}" for accuracy in accuracies),
        _seconds(found["cost"]),
        "",
        _seconds(nas["search"]["by_full_data"]),
    ]


def _choice(architectures: Sequence[str]) -> str:
    return "<br>".join(f"<code>{escape(one)}</code>" for one in architectures)


def _seconds(cost: Mapping[str, Any] | None) -> str:
    """Core seconds, or seconds where no cores are known; empty for what was not run."""
    if not cost:
        return ""
    cores = cost["core_seconds"]
    return f"{cost['seconds']:,.0f} s" if cores is None else f"{cores:,.0f}"
