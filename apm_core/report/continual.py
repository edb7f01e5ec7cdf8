"""The table of class-incremental learning: accuracy after each step, and bytes of the memory."""

from collections.abc import Mapping
from typing import Any

from apm_core.report.table import marked, shown


def rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: a row per set, a column per step."""
    methods = results["methods"]
    steps = next(iter(methods.values()))["steps"]
    header = ["classes seen", *(str(step["classes"]) for step in steps), "mean", "kB per class"]
    body = [
        [
            marked(name, one),
            *(shown(step["accuracy"]) for step in one["steps"]),
            shown(one["average"]),
            f"{sum(one['bytes_per_class'].values()) / 1000:.1f}",
        ]
        for name, one in methods.items()
    ]
    return header, body


def title(results: Mapping[str, Any]) -> str:
    """The title of the table."""
    run = results["run"]
    return (
        f"{run['dataset']}, classes that come in steps, {run['ipc']} images of each in memory:"
        " test accuracy in %"
    )
