"""The table for the terminal, and the gallery."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from apm_core.data.labels import Labels
from apm_core.distilled import DistilledSet
from apm_core.report import gallery, table
from apm_core.runtime import store
from apm_core.training.recipe import Recipe


def method(**changed) -> dict:
    return {
        "images": 6,
        "image_bytes": 1200,
        "label_bytes": 800,
        "accuracy": {"convnet": {"mean": 62.04, "std": 2.83}},
        "hard_label_accuracy": {},
        "plain_accuracy": {},
        "lrs": None,
        "ars": None,
        "nas": None,
        "cost": {"distill_seconds": 12.6, "peak_memory_bytes": 2_345_678_901},
        **changed,
    }


@pytest.fixture
def results():
    nas = {
        "spearman": {"mean": 0.5, "std": 0.0, "ci95": [0.1, 0.9]},
        "kendall": {"mean": None, "std": None, "ci95": None},
    }
    apm = method(
        accuracy={"convnet": {"mean": 62.04, "std": 2.83}, "vgg11": {"mean": 50.0, "std": 0.0}},
        hard_label_accuracy={"convnet": {"mean": 40.0, "std": 1.0}},
        plain_accuracy={"convnet": {"mean": 56.0, "std": 1.0}},
        online_label_accuracy={"convnet": {"mean": 68.0, "std": 1.5}},
        lrs=0.25956,
        ars=0.276,
        nas=nas,
    )
    return {
        "run": {"dataset": "toys", "ipc": 2},
        "ceiling": {"convnet": {"mean": 82.0, "std": 2.0}},
        "methods": {"apm": apm, "<random> & co": method()},
    }


ROWS = [
    ["", "apm", "<random> & co", "full data"],
    ["convnet", "62.0 ± 2.8", "62.0 ± 2.8", "82.0 ± 2.0"],
    ["vgg11", "50.0 ± 0.0", "", ""],
    ["convnet, class labels", "40.0 ± 1.0", "", ""],
    ["convnet, no augmentation", "56.0 ± 1.0", "", ""],
    ["convnet, online labels", "68.0 ± 1.5", "", ""],
    ["NAS, Spearman", "0.50 [0.10, 0.90]", "", ""],
    ["label-robust score", "0.260", "", ""],
    ["augmentation-robust score", "0.276", "", ""],
    ["distillation, s", "13", "13", ""],
    ["peak memory, MB", "2346", "2346", ""],
    ["images and labels, kB", "2", "2", ""],
]


def test_rows_hold_one_measure_each_and_none_is_empty(results):
    header, body = table.rows(results)
    assert [header, *body] == ROWS


def test_many_methods_are_rows(results):
    results["methods"] |= {name: method() for name in ("b", "c", "d")}
    header, body = table.rows(results)
    assert header == [row[0] for row in ROWS]
    assert body[0] == [row[1] for row in ROWS]
    assert body[-1] == ["full data", "82.0 ± 2.0", *[""] * 10]
    assert [line[0] for line in body[1:-1]] == ["<random> & co", "b", "c", "d"]


@pytest.mark.parametrize("more", [(), ("b", "c", "d")])
def test_full_data_have_no_place_where_no_network_saw_them(results, more):
    results["ceiling"] = {}
    results["methods"] |= {name: method() for name in more}
    header, body = table.rows(results)
    assert "full data" not in [*header, *(line[0] for line in body)]


def test_a_correlation_without_interval_is_shown_alone(results):
    results["methods"]["apm"]["nas"]["spearman"]["ci95"] = None
    assert ["NAS, Spearman", "0.50", "", ""] in table.rows(results)[1]


def test_the_title_names_the_run(results):
    assert table.title(results) == "toys, 2 images per class: test accuracy in %"


def test_the_terminal_shows_every_cell(results):
    console = Console(width=200, file=io.StringIO())
    console.print(table.table(results))
    text = console.file.getvalue()
    assert all(cell in text for row in ROWS for cell in row)


def coloured(classes: int, ipc: int, side: int) -> DistilledSet:
    """Image i of class c is of one colour, (10 c, 20 i, 200)."""
    labels = torch.arange(classes).repeat(ipc)  # not sorted, as in merged shards
    order = torch.arange(ipc).repeat_interleave(classes)
    colour = torch.stack([10 * labels, 20 * order, torch.full_like(labels, 200)], dim=1)
    return DistilledSet(
        stored=torch.zeros(len(labels), 3, side, side),
        classes=labels,
        labels=Labels.of(torch.zeros(len(labels), classes)),
        recipe=Recipe(passes=1, lr=0.1),
        pixels=colour.to(torch.uint8)[:, :, None, None].expand(-1, -1, side, side),
        whitening_file=None,
        class_names=tuple(f"class {c}" for c in range(classes)),
        artifact=store.Artifact("distilled set", {}, {}),
    )


def test_the_gallery_shows_every_image_in_its_colours(tmp_path):
    one = coloured(classes=3, ipc=4, side=8)
    other = replace(one, pixels=255 - one.pixels)
    gallery.write_gallery(tmp_path / "sheet.png", {"apm": one, "random": other})
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG" and image.mode == "RGB"
        sheet = np.asarray(image).astype(int)
    block = 22 + 3 * 50
    assert sheet.shape == (2 * block, 110 + 4 * 50, 3)
    for c in range(3):
        for i in range(4):
            top, left = 22 + 50 * c, 110 + 50 * i
            for start, colour in (
                (0, [10 * c, 20 * i, 200]),
                (block, [255 - 10 * c, 255 - 20 * i, 55]),
            ):
                seen = sheet[start + top : start + top + 48, left : left + 48]
                assert (seen == colour).all()
                assert (sheet[start + top + 48 : start + top + 50, left:] == 255).all()


def test_the_gallery_of_a_large_set_is_cut_and_small_blocks_are_padded(tmp_path):
    sets = {"large": coloured(23, 12, 60), "small": coloured(2, 1, 60)}
    gallery.write_gallery(tmp_path / "sheet.png", sets)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape[:2] == (22 + 20 * 62 + 22 + 2 * 62, 110 + 10 * 62)
    assert (sheet[22 + 20 * 62 + 22 :, 110 + 62 :] == 255).all()


def test_a_failed_gallery_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gallery.write_gallery(tmp_path / "sheet.png", {"apm": coloured(2, 1, 8)})
    assert list(tmp_path.iterdir()) == []
