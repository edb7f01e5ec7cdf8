"""The table of class-incremental learning: accuracy after each step, and bytes of the memory."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from apm_core.report.table import drawn, marked, shown


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


def table(results: Mapping[str, Any]) -> Table:
    """The results as a table for the terminal."""
    run = results["run"]
    title = f"{run['dataset']}, {run['ipc']} images of each class in memory: test accuracy in %"
    return drawn(title, *rows(results))
