"""One look for all charts: fonts, colours that colour-blind people tell apart, markers, lines.

Nothing is said by colour alone: every entry has a marker of its own, every line a pattern. Colours
are those of Okabe and Ito, "Color Universal Design" (2008).
"""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from apm_core.runtime import store

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")  # with the colours: 77 pairs
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
GREY = "#767676"
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
WIDTH = 4.8  # inches; 460 pixels on a screen, so that a phone shrinks it by a fifth
SETTINGS = {
    "svg.fonttype": "none",  # text stays text, for readers and searches
    "svg.hashsalt": "apm",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 6,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        title: what is seen.
        text: how to read it, and its limits.
        svg: an element to put into a page.
    """

    title: str
    text: str
    svg: str


@dataclass(frozen=True)
class Look:
    """How one entry is drawn in all charts."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each name, by its place in the order."""
    return {
        name: Look(
            COLOURS[place % len(COLOURS)],
            MARKERS[place % len(MARKERS)],
            LINES[place % len(LINES)],
        )
        for place, name in enumerate(names)
    }


@contextmanager
def applied() -> Iterator[None]:
    """Draw inside of this, so that no other drawing of the process is changed."""
    with matplotlib.rc_context(SETTINGS):
        yield


def canvas(height: float) -> tuple[Figure, Axes]:
    """An empty chart of `WIDTH` and `height` in inches."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis of what is drawn logarithmic, with plain numbers; those between powers of ten
    only where there is room.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())


def legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Put a legend of all that has a label below the axes, and make room for it."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def svg(figure: Figure, name: str, alternative: str) -> str:
    """The drawing as an SVG element without outside references.

    Its ids begin with `name`; `alternative` is its content for those who do not see it.
    """
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', text)[0]
    body = text[text.index(">") + 1 :]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    return f'<svg role="img" aria-label="{escape(alternative)}" {box}>{body}'


def write(path: str | Path, chart: Chart) -> None:
    """Write a chart as an SVG file of its own, which says how to read it."""
    start, rest = chart.svg.split(">", 1)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', start).groups()
    size = f'width="{width}pt" height="{height}pt"'
    text = f"{start} {size} {NAMESPACES}><desc>{escape(chart.text)}</desc>{rest}"
    with store.atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
