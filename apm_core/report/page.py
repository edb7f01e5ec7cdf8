"""The page of a run: one file, which asks for nothing outside of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from apm_core.data.prepared import PreparedData
from apm_core.distilled import DistilledSet
from apm_core.methods.history import History
from apm_core.report import comparison, pictures, search
from apm_core.report.charts import (
    costs,
    course,
    differences,
    frontier,
    ranking,
    style,
    transfer,
)
from apm_core.report.charts.style import Chart
from apm_core.report.differences import LEGEND
from apm_core.report.table import TILES
from apm_core.runtime import store

# the browser refuses whatever the page would ask of others
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
JUDGED = f"""
The small line under an accuracy is the difference to the set's control: real images with the same
labels, in the same form ("other" names what differs in the recipe). Network number i starts from
the same weights, on the same random streams, for every set; so differences are taken network by
network, and the brackets hold the 95 % Student t interval of their mean. {LEGEND}: a difference is
real where its interval excludes zero. It speaks of networks trained on these very sets, not of sets
distilled anew with another seed; and where there is no difference, one in twenty is called real by
chance. Bold: the highest mean of a column. {TILES} marks sets that store several smaller images in
one; they are compared with sets of as many tiles only.
"""
WORDS = {
    "IPC": "images per class that a distilled set stores",
    "mean ± deviation": "over networks trained from scratch, each measured once on the test split"
    " after its last epoch; the sample standard deviation",
    "control": "a set of real images with the labels that the compared set has",
    "full data": "networks trained on the whole training split",
    "class labels, no augmentation, online labels": "the same set with classes for labels, without"
    " random changes of the images in training, or under labels that a teacher gives to each batch",
    "NAS": "neural architecture search: whether networks trained on the set are ranked as by the"
    " full data, by the rank correlations of Spearman and of Kendall, with their 95 % interval",
    "label-robust, augmentation-robust score": "of DD-Ranking, 0 to 1, where 0.27 is no gain: the"
    " first is of the gain over random images under the set's own labels less the gap to the full"
    " data under class labels, the second of the gains over random images with augmentation and"
    " without",
    "kB, MB": "1000 and 1,000,000 bytes",
}


@dataclass(frozen=True)
class Section:
    """A part of the page with its heading."""

    key: str
    heading: str
    body: str

    def __str__(self) -> str:
        return f'<section id="{self.key}"><h2>{escape(self.heading)}</h2>{self.body}</section>'


def write_page(
    path: str | Path,
    results: Mapping[str, Any],
    sets: Mapping[str, DistilledSet],
    data: PreparedData,
    histories: Mapping[str, History],
) -> None:
    """Write the page of a results file, with the pictures of its sets beside real ones.

    `sets` is by the name of the entry, as `histories` of those that were distilled in rounds.
    """
    images = pictures.gallery(sets, data, histories)
    with store.atomic_path(path) as temporary:
        temporary.write_text(page(results, images, histories), encoding="utf-8")


def page(results: Mapping[str, Any], images: str, histories: Mapping[str, History]) -> str:
    """The text of the page; `images` is the gallery, or empty for none."""
    sections = [section for section in _sections(results, images, histories) if section.body]
    title = escape("{dataset}, {ipc} images per class".format(**results["run"]))
    links = "".join(f'<a href="#{one.key}">{escape(one.heading)}</a>' for one in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_file('page.css')}</style></head><body>"
        f"<h1>{title}</h1><p>{comparison.lead(results)}</p><nav>{links}</nav>"
        f"{''.join(map(str, sections))}<script>{_file('page.js')}</script></body></html>\n"
    )


def _sections(
    results: Mapping[str, Any], images: str, histories: Mapping[str, History]
) -> list[Section]:
    """All parts of the page; those without data have no body."""
    with style.applied():
        gains = differences.charts(results)
        bought = frontier.charts(results) + transfer.charts(results)
        ranks = ranking.charts(results)
        curves = course.charts(histories)
        spent = costs.charts(results)
    accuracies = comparison.accuracies(results) + f"<p>{escape(JUDGED)}</p>" + _figures(gains)
    return [
        Section("accuracy", "Test accuracy, and what is real of it", accuracies),
        Section("images", "Real images beside distilled ones", images),
        Section("price", "What accuracy costs, and where it holds", _figures(bought)),
        Section(
            "ranking",
            "Ranking networks as the full data do",
            search.table(results) + _figures(ranks),
        ),
        Section("course", "How the distillation went", _figures(curves)),
        Section("cost", "Time, memory and bytes", comparison.measures(results) + _figures(spent)),
        Section("words", "Words and abbreviations", _words()),
        Section("run", "The run", _run(results)),
    ]


def _figures(charts: list[Chart]) -> str:
    figures = "".join(
        f"<figure><h3>{escape(one.title)}</h3>{one.svg}"
        f'<p class="text">{escape(one.text)}</p></figure>'
        for one in charts
    )
    return f'<div class="charts">{figures}</div>' if figures else ""


def _words() -> str:
    entries = (f"<dt>{escape(word)}</dt><dd>{escape(said)}</dd>" for word, said in WORDS.items())
    return f"<dl>{''.join(entries)}</dl>"


def _run(results: Mapping[str, Any]) -> str:
    run = results["run"]
    facts = {key: run[key] for key in ("date", "device", "seed", "fingerprint") if key in run}
    facts |= run.get("versions", {})
    return f"<p>{escape(', '.join(f'{key} {value}' for key, value in facts.items()))}</p>"


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
