"""The table of results, for the terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

SIDE_BY_SIDE = 4  # methods, at most, as columns
TILES = "\u25a6"  # the mark of a set whose images are tiles


def marked(name: str, method: Mapping[str, Any]) -> str:
    """The name of a set, with a mark and their number where it stores tiles."""
    tiles = _tiles(method.get("tiles", 1))  # results from before have none
    return f"{name} {TILES} {tiles}" if tiles else name


def rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: a column per method and one for the full data, a row per measure;
    transposed for more than `SIDE_BY_SIDE` methods.
    """
    methods = results["methods"]
    body = []
    for key, label in PROTOCOLS.items():
        scores = [method.get(key, {}) for method in methods.values()]  # older results lack some
        for network in dict.fromkeys(name for one in scores for name in one):
            cells = [shown(one.get(network)) for one in scores]
            full = shown(results["ceiling"].get(network)) if key == "accuracy" else ""
            body.append([network + label, *cells, full])
    for name, show in MEASURES.items():
        cells = [show(method) for method in methods.values()]
        if any(cells):
            body.append([name, *cells, ""])
    lines = [["", *methods, "full data"], *body]
    if not any(line[-1] for line in body):
        lines = [line[:-1] for line in lines]
    if len(methods) > SIDE_BY_SIDE:
        lines = [list(line) for line in zip(*lines, strict=True)]
    return lines[0], lines[1:]


def shown(score: Mapping[str, Any] | None) -> str:
    """Mean and deviation; empty where there is no score."""
    return f"{score['mean']:.1f} ± {score['std']:.1f}" if score else ""


def _correlation(nas: Mapping[str, Any] | None, name: str) -> str:
    if not nas or nas[name]["mean"] is None:
        return ""
    mean, interval = nas[name]["mean"], nas[name]["ci95"]
    return f"{mean:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _baseline(nas: Mapping[str, Any] | None, name: str) -> str:
    found = nas.get("baselines", {}) if nas else {}  # results from before have none
    return _correlation(found.get(name), "spearman")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _tiles(factor: int) -> str:
    return f"{factor} x {factor}" if factor > 1 else ""


BASELINES = {  # rankings of networks without a distilled set
    "short": "by short trainings on all data",
    "parameters": "by number of parameters",
}
PROTOCOLS = {
    "accuracy": "",
    "hard_label_accuracy": ", class labels",
    "plain_accuracy": ", no augmentation",
    "online_label_accuracy": ", online labels",
}
MEASURES = {
    "NAS, Spearman": lambda method: _correlation(method["nas"], "spearman"),
    **{
        f"{label}, Spearman": lambda method, name=name: _baseline(method["nas"], name)
        for name, label in BASELINES.items()
    },
    "NAS, Kendall": lambda method: _correlation(method["nas"], "kendall"),
    "label-robust score": lambda method: _number(method["lrs"], 3),
    "augmentation-robust score": lambda method: _number(method["ars"], 3),
    "distillation, s": lambda method: _number(method["cost"]["distill_seconds"], 0),
    "peak memory, MB": lambda method: _number(method["cost"]["peak_memory_bytes"] / 1e6, 0),
    "tiles": lambda method: _tiles(method.get("tiles", 1)),
    "images and labels, kB": lambda method: _number(
        (method["image_bytes"] + method["label_bytes"]) / 1000, 0
    ),
}


def title(results: Mapping[str, Any]) -> str:
    """The title of the table: data set and images per class."""
    run = results["run"]
    return f"{run['dataset']}, {run['ipc']} images per class: test accuracy in %"


def table(results: Mapping[str, Any]) -> Table:
    """The results as a table for the terminal."""
    return drawn(title(results), *rows(results))


def drawn(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    """Cells as a table for the terminal; all but the first column, of names, are figures."""
    grid = Table(title=title)
    for index, name in enumerate(header):
        grid.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for cells in body:
        grid.add_row(*cells)
    return grid


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    header, body = rows(results)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
