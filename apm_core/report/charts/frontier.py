"""Accuracy against what it costs: stored bytes, and core seconds."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apm_core.data import public_size
from apm_core.report.charts import style
from apm_core.report.charts.style import Chart
from apm_core.report.published import Published, published
from apm_core.report.table import marked
from apm_core.runtime.device import threads_of

LEAST_SECONDS = 0.1  # a logarithmic axis has no zero
ALIKE = 1.05  # the largest ratio of bytes at which a chart of them says nothing
Methods = Mapping[str, Mapping[str, Any]]


def charts(results: Mapping[str, Any]) -> list[Chart]:
    """Both charts, on the network that most sets were measured with. The one of bytes is left out
    where all sets are of one size and no paper says more.
    """
    networks = [n for one in results["methods"].values() for n in one["accuracy"]]
    if not networks:
        return []
    network = max(dict.fromkeys(networks), key=networks.count)
    methods = {n: one for n, one in results["methods"].items() if network in one["accuracy"]}
    stored = {n: one["image_bytes"] + one["label_bytes"] for n, one in methods.items()}
    known = _published(results, methods) if network == "convnet" else []
    found = [_seconds(results, methods, network)]
    if known or max(stored.values()) > ALIKE * min(stored.values()):
        found.insert(0, _bytes(results, methods, network, stored, known))
    return found


def _bytes(
    results: Mapping[str, Any],
    methods: Methods,
    network: str,
    stored: Mapping[str, int],
    known: list[Published],
) -> Chart:
    figure, axes = style.canvas(4.0)
    looks = style.looks(results["methods"])
    for point in known:
        axes.plot(
            point.bytes / 1000,
            point.accuracy,
            looks[point.method].marker,
            color=style.GREY,
            markerfacecolor="none",
            markeredgewidth=0.8,
            label="_",
        )
        if point.accuracy == max(one.accuracy for one in known if one.ipc == point.ipc):
            at = (point.bytes / 1000, point.accuracy)
            axes.annotate(
                point.method, at, (0, 5), textcoords="offset points", color=style.GREY, ha="center"
            )
    for name, one in methods.items():
        _point(axes, one, network, stored[name] / 1000, looks[name], marked(name, one))
    style.logarithmic(axes, "x")
    axes.set_xlabel("images and labels, kB")
    axes.set_ylabel(f"accuracy on {network}, %")
    _ceiling(axes, results, network)
    style.legend(figure, axes)
    sources = "; ".join(dict.fromkeys(point.source for point in known))
    text = "Bars: standard deviation over networks. A ring marks sets of tiles."
    if sources:
        text += (
            " Grey and hollow, with the same markers: published, of ConvNets of width 128, images"
            f" as float32 without labels, mostly chosen on the test split ({sources})."
        )
    return _made(figure, "bytes", "Accuracy for the bytes stored", text, methods, network)


def _seconds(results: Mapping[str, Any], methods: Methods, network: str) -> Chart:
    figure, axes = style.canvas(3.3)
    looks = style.looks(results["methods"])
    cores = {name: threads_of(one["cost"]["device"]) for name, one in methods.items()}
    for name, one in methods.items():
        own = max(LEAST_SECONDS, one["cost"]["distill_seconds"] * (cores[name] or 1))
        whole = own + one["cost"]["teacher_seconds"] * (cores[name] or 1)
        mean = one["accuracy"][network]["mean"]
        axes.plot([own, whole], [mean, mean], ":", color=looks[name].colour, linewidth=1)
        _point(axes, one, network, own, looks[name], marked(name, one))
    style.logarithmic(axes, "x")
    unit = "core seconds" if all(cores.values()) else "seconds on its device"
    axes.set_xlabel(f"{unit} to distil")
    axes.set_ylabel(f"accuracy on {network}, %")
    style.legend(figure, axes)
    text = (
        f"At the marker: {unit} of the distillation; the dotted line ends where the training of its"
        " teachers or experts is added, which sets of a run share."
    )
    return _made(figure, "seconds", "Accuracy for the time spent", text, methods, network)


def _point(
    axes: Axes, one: Mapping[str, Any], network: str, x: float, look: style.Look, label: str
) -> None:
    score = one["accuracy"][network]
    form = {"color": look.colour, "marker": look.marker, "linestyle": "none", "zorder": 3}
    axes.errorbar(x, score["mean"], score["std"], elinewidth=1, label=label, **form)
    if one.get("tiles", 1) > 1:
        axes.plot(x, score["mean"], "o", color="black", markerfacecolor="none", markersize=12)


def _ceiling(axes: Axes, results: Mapping[str, Any], network: str) -> None:
    full = results["ceiling"].get(network)
    if full:
        axes.axhline(full["mean"], color="black", linestyle="--", linewidth=0.8, label="full data")


def _published(results: Mapping[str, Any], methods: Methods) -> list[Published]:
    """What papers state of the same data: all classes, at the size and with the test split that
    everybody has.
    """
    dataset = results["run"].get("settings", {}).get("dataset", {})
    name = dataset.get("source") or dataset.get("name") or results["run"]["dataset"]
    found = published(name, methods)
    if not found or dataset.get("held_out"):
        return []
    public = public_size(name)
    stored = public.classes * results["run"]["ipc"]
    whole = all(one["images"] == stored * one.get("tiles", 1) ** 2 for one in methods.values())
    return found if whole and dataset.get("resolution") in (None, public.side) else []


def _made(
    figure: Figure,
    name: str,
    title: str,
    text: str,
    methods: Methods,
    network: str,
) -> Chart:
    means = {n: one["accuracy"][network]["mean"] for n, one in methods.items()}
    order = sorted(means, key=means.__getitem__, reverse=True)
    said = f"{title}, from the best: " + ", ".join(f"{n} {means[n]:.1f} %" for n in order)
    return Chart(title, text, style.svg(figure, name, said))
