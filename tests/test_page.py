"""The page of a run: what it compares, shows and leaves out; opened by a browser."""

import base64
import copy
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from apm_core import scores
from apm_core.methods.history import History, shown
from apm_core.report import comparison, page, pictures, search
from apm_core.report.charts import costs, course, differences, frontier, ranking, style, transfer
from apm_core.report.differences import Difference, difference
from apm_core.report.published import published
from apm_core.settings.method import methods

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
RUNS = {"apm": [56.0, 55.0, 57.0], "<random> & co": [40.0, 41.0, 40.5], "dm": [41.0, 40.0, 41.5]}


def measured(name: str, runs: list[float], **changed) -> dict:
    score = scores.summarize(runs)
    return {
        "images": 6,
        "image_bytes": 1200,
        "label_bytes": 800,
        "accuracy": {"convnet": score, "vgg11": scores.summarize([runs[0] - 9.0])},
        "hard_label_accuracy": {},
        "plain_accuracy": {},
        "lrs": None,
        "ars": None,
        "nas": None,
        "control": None if name == "<random> & co" else {"entry": "<random> & co", "recipe": []},
        "cost": {
            "distill_seconds": 12.6,
            "teacher_seconds": 60.0,
            "peak_memory_bytes": 2_345_678_901,
            "device": "a CPU, 2 threads",
        },
        **changed,
    }


@pytest.fixture
def results():
    found = {name: measured(name, runs) for name, runs in RUNS.items()}
    found["dm"]["control"]["recipe"] = ["lr", "augment"]
    found["tiled"] = measured("tiled", [60.0, 61.0, 62.0], tiles=2, control=None, image_bytes=9999)
    found["apm"]["nas"] = {
        "networks": 4,
        "spearman": {"mean": 0.8, "std": 0.0, "ci95": [-0.1, 0.95]},
        "kendall": {"mean": None, "std": None, "ci95": None},
        "accuracies": {"reference": [10.0, 20.0, 30.0, 40.0], "proxy": [9.0, 21.0, 21.0, 50.0]},
    }
    return {
        "run": {"dataset": "toys", "ipc": 2, "seconds": {"distill": 60.0, "nas": 0.0}, "seed": 3},
        "ceiling": {"convnet": scores.summarize([80.0, 84.0])},
        "methods": found,
    }


HISTORY = History(
    images=np.zeros((2, 6, 1, 4, 4), dtype=np.uint8),
    seen=np.array([0, 50]),
    figures={
        "loss": np.array([4.0, 2.0, 1.0]),
        "late": np.array([np.nan, 3.0, 2.0]),
        "lr_images": np.array([1.0, 0.5, 0.1]),
        "constant": np.array([1.0, 1.0, 1.0]),
    },
    noted=np.array([1, 50, 100]),
)


class Text(HTMLParser):
    """Cells by row, tags with attributes, and ids of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "br":
            self.rows[-1][-1] += " | "

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.replace("\u00a0", " ")


def test_differences_are_taken_network_by_network(results):
    apm = difference(results, "apm", "accuracy", "convnet")
    mean, *interval = scores.paired_interval(RUNS["apm"], RUNS["<random> & co"])
    assert apm == Difference(mean, tuple(interval)) and apm.verdict == "gain"
    assert str(apm) == "▲ +15.5 [+12.2, +18.8]"
    assert difference(results, "dm", "accuracy", "convnet").verdict == "noise"
    assert str(difference(results, "dm", "accuracy", "vgg11")) == "? +1.0"
    for entry, network in (("<random> & co", "convnet"), ("tiled", "convnet"), ("apm", "vit")):
        assert difference(results, entry, "accuracy", network) is None
    results["methods"]["apm"]["accuracy"]["convnet"] = scores.summarize([30.0, 31.0, 30.0])
    assert difference(results, "apm", "accuracy", "convnet").verdict == "loss"
    results["methods"]["apm"]["accuracy"]["convnet"] = scores.summarize([30.0, 31.0])
    assert difference(results, "apm", "accuracy", "convnet") is None, "not the same networks"
    del results["methods"]["apm"]["control"]
    assert difference(results, "apm", "accuracy", "convnet") is None, "results from before"


def test_the_table_says_what_is_real(results):
    text = Text(comparison.accuracies(results))
    other = "<random> & co | other lr, augment"
    assert text.rows == [
        ["set", "convnet", "vgg11", "control"],
        ["apm", "56.0 ± 1.0 | ▲ +15.5 [+12.2, +18.8]", "47.0 ± 0.0 | ? +16.0", "<random> & co"],
        ["<random> & co", "40.5 ± 0.5", "31.0 ± 0.0", "-"],
        ["dm", "40.8 ± 0.8 | ≈ +0.3 [-2.5, +3.2]", "32.0 ± 0.0 | ? +1.0", other],
        ["tiled ▦ 2 x 2", "61.0 ± 1.0", "51.0 ± 0.0", "-"],
        ["full data", "82.0 ± 2.8", "", ""],
    ]
    bold = re.findall(r"<strong>([\d.]+)", comparison.accuracies(results))
    assert bold == ["56.0", "47.0"], "the best of whole images; a lone set of tiles has no rival"


def test_other_figures_have_a_table_without_empty_columns(results):
    header, first, *_, last = Text(comparison.measures(results)).rows
    assert header == [
        *("set", "NAS, Spearman", "distillation, s", "peak memory, MB", "tiles"),
        "images and labels, kB",
    ]
    assert first == ["apm", "0.80 [-0.10, 0.95]", "13", "2346", "", "2"]
    assert last == ["tiled ▦ 2 x 2", "", "13", "2346", "2 x 2", "11"]


def test_the_lead_names_the_first_and_how_far_it_is_ahead(results):
    assert comparison.lead(results) == (
        "<strong>apm</strong> is first: 56.0 % with convnet, 15.5 points above &lt;random&gt; &amp;"
        " co, real images with the same labels: real gain."
    )
    results["methods"]["tiles"] = copy.deepcopy(results["methods"]["tiled"])
    results["methods"]["tiles"]["accuracy"]["convnet"]["mean"] = 40.5  # as the control of apm
    assert comparison.lead(results).endswith(
        " real gain. Of the sets of 2 x 2 tiles, <strong>tiled</strong> is first: 61.0 % with"
        " convnet; no other set of the run is its control."
    )
    del results["methods"]["tiles"]
    results["methods"]["apm"]["control"] = None
    assert comparison.lead(results).endswith("no other set of the run is its control.")
    del results["methods"]["apm"], results["methods"]["dm"]
    assert comparison.lead(results) == "", "one set is not the first of anything"


def drawn(results, histories=()) -> list[style.Chart]:
    with style.applied():
        return [
            *differences.charts(results),
            *frontier.charts(results),
            *transfer.charts(results),
            *ranking.charts(results),
            *course.charts(dict(histories)),
            *costs.charts(results),
        ]


def test_every_chart_says_what_it_shows(results):
    found = drawn(results, {"apm": HISTORY})
    assert [chart.title for chart in found] == [
        "What distillation adds on convnet",
        "What distillation adds on vgg11",
        "Accuracy for the bytes stored",
        "Accuracy for the time spent",
        "One set, several architectures",
        "Networks ranked by apm",
        "How apm was distilled",
        "Where the time went",
        "Memory to distil",
    ]
    for chart in found:
        svg = ElementTree.fromstring(chart.svg.replace("xlink:href", "href"))
        assert svg.attrib["role"] == "img" and svg.attrib["aria-label"]
        assert chart.text.endswith(".")
    course_of_apm = found[6]
    assert "loss from 4 to 1, late from 3 to 2" in course_of_apm.svg
    assert "lr_images" not in course_of_apm.svg and "constant" not in course_of_apm.svg
    assert "0.80, 95 % interval -0.10 to 0.95, which includes zero" in found[5].svg


def test_charts_without_data_are_left_out(results):
    results["run"].pop("seconds")
    for one in results["methods"].values():
        one.update(control=None, nas=None, image_bytes=1200)
        del one["accuracy"]["vgg11"]
        one["cost"]["peak_memory_bytes"] = 0
    assert [chart.title for chart in drawn(results)] == ["Accuracy for the time spent"]
    for one in results["methods"].values():
        one["accuracy"] = {}
    assert drawn(results) == []
    sections = re.findall(r'<section id="(\w+)"', page.page(results, "", {}))
    assert sections == ["accuracy", "cost", "words", "run"]


def test_what_a_search_comes_to_is_a_row_of_each_set_that_ranked(results):
    results["methods"]["apm"]["nas"] |= {
        "reference": {"source": "train", "pick": 71.26, "best": 73.0, "mean": 60.0},
        "search": {
            "pick": ["|a~0|", "|<b>~0|"],
            "best": ["|c~0|"],
            "by_set": {"seconds": 12.4, "core_seconds": 1240.0, "device": "a CPU, 100 threads"},
            "by_full_data": {"seconds": 5000.0, "core_seconds": None, "device": "a GPU"},
        },
    }
    [row] = Text(search.table(results).partition("<p>")[0]).rows[1:]
    cells = ["apm", "|a~0| | |<b>~0|", "71.3", "73.0", "60.0", "1,240", "145", "5,000 s"]
    assert row == cells
    assert search.table(results) in page.page(results, "", {})
    cost = {"seconds": 3.0, "core_seconds": 12.0, "device": "a CPU, 4 threads"}
    results["methods"]["apm"]["nas"]["baselines"] = {
        "parameters": {"pick": ["|d~0|"], "accuracy": 70.0, "cost": cost},
        "short": {"pick": ["|e~0|"], "accuracy": 72.0, "cost": cost, "images_per_class": 40},
    }
    results["methods"]["dm"]["nas"] = results["methods"]["apm"]["nas"]  # of a set of equal size
    baselines = Text(search.table(results).partition("<p>")[0]).rows[3:]
    assert baselines == [
        [name, pick, accuracy, "73.0", "60.0", "12", "", "5,000 s"]
        for name, pick, accuracy in (
            ("by short trainings on all data, as on 40 images per class", "|e~0|", "72.0"),
            ("by number of parameters", "|d~0|", "70.0"),
        )
    ]
    assert all(note in search.table(results) for note in search.BASELINE_NOTES.values())
    del results["methods"]["apm"]["nas"]["baselines"]["short"]  # nas.short: false
    assert search.BASELINE_NOTES["parameters"] in search.table(results)
    assert search.BASELINE_NOTES["short"] not in search.table(results)
    results["methods"]["dm"]["nas"] = None
    del results["methods"]["apm"]["nas"]["baselines"]  # results from before
    results["methods"]["apm"]["nas"]["search"]["by_full_data"] = None  # the reference is a table
    assert Text(search.table(results).partition("<p>")[0]).rows[1][-1] == ""
    del results["methods"]["apm"]["nas"]["search"]  # results from before
    assert search.table(results) == ""


def test_equal_ranks_are_shared():
    assert ranking._ranks([9.0, 21.0, 21.0, 50.0]).tolist() == [4.0, 2.5, 2.5, 1.0]


def test_looks_differ_by_marker_for_as_many_entries_as_there_are():
    looks = style.looks(methods())
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks)


def test_published_points_have_a_source_and_a_size():
    found = published("cifar10", methods())
    assert {"apm", "datm", "mtt", "random"} < {point.method for point in found}
    assert all(re.search("[Tt]able|README", point.source) for point in found)
    assert all(0 < point.accuracy < 100 for point in found)
    [apm] = [point for point in found if (point.method, point.ipc) == ("apm", 50)]
    assert (apm.accuracy, apm.bytes) == (75.0, 500 * 3072 * 4)
    everything = published("cifar10")
    assert {"apm", "ncfm_tiles"} < {point.method for point in everything}
    assert all(point in everything for point in found)
    assert published("toys", methods()) == [] and published("cifar10", ["mine"]) == []


def test_published_points_are_marked_as_such(results):
    results["run"]["dataset"] = "cifar10"
    for one in results["methods"].values():
        one["images"] = 20 * one.get("tiles", 1) ** 2
    with style.applied():
        chart, _ = frontier.charts(results)
    assert "published, of ConvNets of width 128" in chart.text
    assert "arXiv:2310.05773, Table 1" in chart.text


@pytest.mark.parametrize("change", ["classes", "held_out", "resolution", "tiles", None])
def test_published_points_are_of_the_same_data(results, change):
    dataset = {"source": "cifar10", change: 0.1} if change in ("held_out", "resolution") else {}
    results["run"] |= {"dataset": "cifar10", "settings": {"dataset": dataset}}
    for one in results["methods"].values():
        one["images"] = (10 if change == "classes" else 20) * one.get("tiles", 1) ** 2
    if change == "tiles":  # four images in each of the stored ones, of which there are as many
        results["methods"]["dm"] |= {"tiles": 2, "images": 80}
    with style.applied():
        text = frontier.charts(results)[0].text
    assert ("published" in text) == (change in ("tiles", None))


def test_the_page_asks_for_nothing_outside(results):
    results["run"]["dataset"] = "<script>x"
    text = page.page(results, "", {"apm": HISTORY})
    assert "&lt;script&gt;x, 2 images per class" in text and "&lt;random&gt; &amp; co" in text
    assert not re.search("https?:", text)
    tags = Text(text).tags
    assert not {"link", "iframe", "random"} & {tag for tag, _ in tags}
    assert sum(tag == "script" for tag, _ in tags) == 1
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for tag, attributes in tags if tag == "a"}
    assert targets <= set(ids)


def images_of(text: str) -> list[tuple[str, bool, np.ndarray]]:
    """Alternative text, whether it is hidden, and pixels of every image in a page."""
    found = []
    for tag, attributes in Text(text).tags:
        if tag == "img":
            data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
            pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
            zoom = int(attributes["width"]) // pixels.shape[1]
            assert int(attributes["height"]) == zoom * pixels.shape[0]
            found.append((attributes["alt"], "hidden" in attributes, pixels))
    return found


def test_the_gallery_shows_real_images_and_every_snapshot(real_set, digits):
    kept = real_set.pixels[shown(real_set.classes)].numpy()
    history = replace(HISTORY, images=np.stack([0 * kept, 255 - kept]))
    text = pictures.gallery({"apm": real_set, "random": real_set}, digits, {"apm": history})
    real, start, middle, end, again, alone = images_of(text)
    assert [hidden for _, hidden, _ in (real, start, middle, end)] == [False, True, True, False]
    assert start[0].endswith("after 0 rounds") and middle[0].endswith("after 50 rounds")
    assert "images of 0, 1, 2" in end[0] and real[0].startswith("real ")
    assert real[2].shape == (10 * 9, 3 * 9, 3)
    for row in range(10):
        for column in range(3):
            cell = (slice(9 * row, 9 * row + 8), slice(9 * column, 9 * column + 8))
            image = kept[3 * row + column, 0][..., None]
            assert (end[2][cell] == image).all() and (middle[2][cell] == 255 - image).all()
            assert (start[2][cell] == 0).all()
            first = digits.artifact.arrays["train_images"][digits.order(row)[column], 0]
            assert (real[2][cell] == first[..., None]).all()
    assert (again[2] == real[2]).all() and (alone[2] == end[2]).all()
    assert text.count('type="range"') == 1 and 'data-rounds="0 50 end"' in text


def test_tiles_are_shown_as_stored_and_as_decoded(real_set, digits):
    tiled = replace(
        real_set,
        tiles=2,
        stored=real_set.pixels[:20].float() / 255,
        pixels=real_set.pixels[:20],
        classes=torch.arange(10).repeat_interleave(2).repeat_interleave(4),
    )
    text = pictures.gallery({"tiled": tiled}, digits, {})
    _, stored, decoded = images_of(text)
    assert stored[0].startswith("stored, 2 x 2 tiles") and decoded[0].startswith("tiled, images")
    assert stored[2].shape == (90, 2 * 9, 3) and decoded[2].shape == (90, 8 * 9, 3)
    wanted = tiled.images_rgb()[:8].astype(int)  # those of the first class
    for column in range(8):
        assert (decoded[2][:8, 9 * column : 9 * column + 8] == wanted[column]).all()


def test_classes_are_left_out_where_the_page_would_be_too_large(real_set, digits, monkeypatch):
    monkeypatch.setattr(pictures, "BUDGET", 1)
    real, _ = images_of(pictures.gallery({"apm": real_set}, digits, {}))
    assert real[2].shape[0] == pictures.LEAST_CLASSES * 9 and "images of 0, 1, 2, 3, a" in real[0]


PROBE = """<script>
addEventListener("error", (event) => console.error("broken: " + (event.target.id || "page")), true);
addEventListener("load", () => {
  const slider = document.querySelector("input[type=range]"), frames = slider.closest("figure");
  const seen = () => [...frames.querySelectorAll(".frames img")].filter((i) => !i.hidden).length;
  const before = seen();
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  parent.postMessage({
    images: document.images.length,
    broken: [...document.images].filter((i) => !i.complete || !i.naturalWidth).length,
    charts: [...document.querySelectorAll("figure > svg")].filter((s) => s.getBBox().width).length,
    seen: [before, seen()],
    rounds: slider.nextElementSibling.value,
    outside: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  }, "*");
});
</script>"""
FRAMES = """<!doctype html><title></title><body><iframe src="page.html" width="360" height="800">
</iframe><iframe src="page.html" width="1400" height="900"></iframe><script>
const said = [];
addEventListener("message", (event) => {
  said.push(event.data);
  document.title = JSON.stringify(said);
});
</script></body>"""


def opened(folder, text: str) -> tuple[list[dict], list[str], list[str]]:
    """What a page says of itself on a phone and on a wide screen, what the browser logged, and the
    addresses that the page asked for.
    """
    if BROWSER is None:
        pytest.skip("there is no Chromium to open the page with")
    (folder / "page.html").write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    (folder / "frames.html").write_text(FRAMES, encoding="utf-8")
    quiet = [f"--disable-{it}" for it in ("gpu", "quic", "background-networking", "sync")]
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--no-first-run", *quiet),
            "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"),
            *(f"--log-net-log={folder / 'net.json'}", "--virtual-time-budget=20000"),
            *("--dump-dom", f"file://{folder / 'frames.html'}"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    title = re.search("<title>(.*?)</title>", done.stdout)[1]
    logged = re.findall(r"CONSOLE:\d+\] (.*)", done.stderr)
    events = json.loads((folder / "net.json").read_text())["events"]
    asked = [one["params"] for one in events if "initiator" in one.get("params", {})]
    browsers = "not an origin"  # what the browser itself asks for
    addresses = [one["url"] for one in asked if one["initiator"] != browsers]
    return json.loads(title or "[]"), logged, [a for a in addresses if a[:5] != "file:"]


@pytest.fixture
def whole(results, real_set, digits):
    """A page with every part."""
    kept = real_set.pixels[shown(real_set.classes)].numpy()
    history = replace(HISTORY, images=np.stack([0 * kept, 255 - kept]))
    sets = {"apm": real_set, "random": real_set}
    images = pictures.gallery(sets, digits, {"apm": history})
    return page.page(results, images, {"apm": history})


def test_a_browser_shows_all_of_it_on_a_phone_and_on_a_wide_screen(whole, tmp_path):
    found, logged, asked = opened(tmp_path, whole)
    assert logged == [] and asked == []
    assert len(found) == 2
    for one in found:
        assert one == {
            "images": 6,
            "broken": 0,
            "charts": 9,
            "seen": [2, 2],
            "rounds": "0",
            "outside": 0,
        }


def test_the_browser_would_say_what_is_wrong(whole, tmp_path):
    bad = '<img id="a" src="data:image/png;base64,xx"><img id="b" src="http://127.0.0.1:9/b.png">'
    found, logged, asked = opened(tmp_path, whole.replace("</nav>", f"</nav>{bad}"))
    assert {one["broken"] for one in found} == {2}
    assert asked == [], "the page's policy refuses it"
    assert any("127.0.0.1:9/b.png" in line and "Content Security Policy" in line for line in logged)
