"""The tables of the page: accuracies beside the difference to the control, all other figures."""

from collections.abc import Mapping
from html import escape
from typing import Any

from apm_core.report.differences import WORDS, difference
from apm_core.report.table import MEASURES, PROTOCOLS, marked, shown

Results = Mapping[str, Any]


def accuracies(results: Results) -> str:
    """The table of accuracies: a row for each set, a column for each network and protocol. The best
    of those with equal tiles are bold.
    """
    methods = results["methods"]
    columns = [
        (key, network, network + label)
        for key, label in PROTOCOLS.items()
        for network in dict.fromkeys(n for one in methods.values() for n in one.get(key, {}))
    ]
    best = _best(methods, [column[:2] for column in columns])
    rows = []
    for name in methods:
        cells = [_cell(results, name, key, network, best) for key, network, _ in columns]
        rows.append([escape(marked(name, methods[name])), *cells, _control(results, name)])
    full = [_score(results["ceiling"].get(n)) if k == "accuracy" else "" for k, n, _ in columns]
    if any(full):
        rows.append(["full data", *full, ""])
    return html_table(["set", *(label for *_, label in columns), "control"], rows)


def measures(results: Results) -> str:
    """The table of all other figures: a row for each set, no column without any."""
    methods = results["methods"]
    columns = {
        label: cells
        for label, show in MEASURES.items()
        if any(cells := [show(one) for one in methods.values()])
    }
    names = [escape(marked(name, one)) for name, one in methods.items()]
    rows = [list(cells) for cells in zip(names, *columns.values(), strict=True)]
    return html_table(["set", *columns], rows)


def lead(results: Results) -> str:
    """A sentence for whole images, and one for each kind of tiles: which set is first on the first
    network, and whether the difference to its control is real.
    """
    methods = results["methods"]
    network = next((n for one in methods.values() for n in one["accuracy"]), None)
    best = _best(methods, [("accuracy", network)])
    forms = sorted((tiles, mean) for (*_, tiles), mean in best.items())
    return " ".join(_first(results, network, tiles, mean) for tiles, mean in forms)


def _first(results: Results, network: str, tiles: int, best: float) -> str:
    methods = results["methods"]
    name = next(
        name
        for name, one in methods.items()
        if one.get("tiles", 1) == tiles and one["accuracy"].get(network, {}).get("mean") == best
    )
    among = f"Of the sets of {tiles} x {tiles} tiles, " if tiles > 1 else ""
    text = f"{among}<strong>{escape(name)}</strong> is first: {best:.1f} % with {escape(network)}"
    found = difference(results, name, "accuracy", network)
    if found is None:
        return f"{text}; no other set of the run is its control."
    control = methods[name]["control"]["entry"]
    return (
        f"{text}, {abs(found.mean):.1f} points {'above' if found.mean >= 0 else 'below'}"
        f" {escape(control)}, real images with the same labels: {WORDS[found.verdict]}."
    )


def _best(
    methods: Mapping[str, Any], columns: list[tuple[str, str | None]]
) -> dict[tuple[str, str | None, int], float]:
    """The highest mean by score, network and tiles along a side, where there are several."""
    means: dict[tuple[str, str | None, int], list[float]] = {}
    for one in methods.values():
        for key, network in columns:
            score = one.get(key, {}).get(network)
            if score:
                means.setdefault((key, network, one.get("tiles", 1)), []).append(score["mean"])
    return {place: max(found) for place, found in means.items() if len(found) > 1}


def _cell(
    results: Results,
    name: str,
    key: str,
    network: str,
    best: Mapping[tuple[str, str | None, int], float],
) -> str:
    one = results["methods"][name]
    score = one.get(key, {}).get(network)
    if not score:
        return ""
    text = _score(score)
    if score["mean"] == best.get((key, network, one.get("tiles", 1))):
        text = f"<strong>{text}</strong>"
    found = difference(results, name, key, network)
    if found:
        word = WORDS[found.verdict]
        text += f'<br><small class="{found.verdict}" title="{word}">{found}</small>'
    return text


def _score(score: Mapping[str, Any] | None) -> str:
    return shown(score).replace(" ", "\u00a0")  # never broken over two lines


def _control(results: Results, name: str) -> str:
    control = results["methods"][name].get("control")
    if not control:
        return "-"
    differs = ", ".join(control["recipe"])
    note = f"<br><small>other {escape(differs)}</small>" if differs else ""
    return escape(control["entry"]) + note


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """A table of HTML cells, which scrolls where a screen is narrow."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return (
        '<div class="wide" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
