"""Sets in the forms in which others publish and read theirs."""

import csv
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from apm_core import sidecar
from apm_core.data.whitening import Whitening
from apm_core.data.whitening_file import keep
from apm_core.errors import ArtifactError, ConfigError
from apm_core.runtime import store

HOSTILE = ("cat", "a/b", "..", "", "C:\\x?", "x" * 300, "\udcff", "caf\u00e9 noir", "a,b", "a\nb")
SORTED = torch.arange(10).repeat_interleave(4)


@pytest.fixture
def ordered(real_set):
    """The set in the order of its classes: its two shards are each so."""
    assert not torch.equal(real_set.classes, SORTED)
    return real_set.select()


def test_pt_holds_images_and_targets_class_by_class(real_set, ordered, tmp_path):
    real_set.export("pt", tmp_path / "set.pt")
    images, targets = torch.load(tmp_path / "set.pt", weights_only=True)
    assert torch.equal(images, ordered.images) and torch.equal(targets, ordered.targets)
    files = {"set.pt", "set.pt.json", "set.pt.whitening.zarr.zip"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_npz_needs_no_pickle(real_set, ordered, tmp_path):
    real_set.export("npz", tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz", allow_pickle=False) as found:
        assert set(found) == {"images", "targets", "classes"}
        np.testing.assert_array_equal(found["images"], ordered.images)
        np.testing.assert_array_equal(found["targets"], ordered.targets)
        np.testing.assert_array_equal(found["classes"], SORTED)


def test_tensors_have_the_layout_of_dd_ranking(real_set, ordered, tmp_path):
    real_set.export("tensors", tmp_path)
    load = {name: torch.load(tmp_path / f"{name}.pt") for name in ("images", "labels", "lr")}
    assert torch.equal(load["images"], ordered.images) and load["images"].is_contiguous()
    assert load["images"].dtype == torch.float32 and load["images"].shape == (40, 1, 8, 8)
    assert torch.equal(load["labels"], ordered.targets)
    assert load["lr"].shape == () and float(load["lr"]) == pytest.approx(0.05)
    config = yaml.safe_load((tmp_path / "ddranking.yaml").read_text())
    assert config["ipc"] == 4 and config["im_size"] == [8, 8] and config["use_zca"] is True
    assert config["dataset"] == "digits" and config["num_epochs"] == 7
    assert (config["soft_label_mode"], config["soft_label_criterion"]) == ("S", "mse_gt")
    assert config["aug_params"] == {"crop": 0.125, "scale": 1.2}
    lazy = replace(real_set.recipe, augment="none", loss="ce")
    hard = replace(real_set, recipe=lazy, labels=replace(real_set.labels, values=real_set.classes))
    hard.export("tensors", tmp_path / "hard")
    config = yaml.safe_load((tmp_path / "hard/ddranking.yaml").read_text())
    assert "soft_label_mode" not in config and "data_aug_func" not in config
    assert torch.load(tmp_path / "hard/labels.pt").tolist() == SORTED.tolist()


def test_folder_holds_every_image_and_its_targets(real_set, ordered, tmp_path):
    folder = tmp_path / "new" / "set"
    replace(real_set, class_names=HOSTILE).export("folder", str(folder))
    names = sorted(path.name for path in (folder / "train").iterdir())
    assert names == [
        *("00_cat", "01_a_b", "02__", "03_", "04_C_x_", "05_" + "x" * 50),
        *("06__", "07_caf\u00e9_noir", "08_a_b", "09_a_b"),
    ]
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "class", *(f"target_{c}" for c in range(10))]
    assert len(rows) == 40 == len(list(folder.rglob("*.png")))
    assert rows[5][0] == "train/01_a_b/class00001_id00001.png"
    for (file, c, *targets), pixels, row, expected in zip(
        rows, ordered.images_rgb(), ordered.classes, ordered.targets, strict=True
    ):
        assert int(c) == row and file.startswith(f"train/{names[row]}")
        assert np.array_equal(np.float32(targets), expected.numpy())
        with Image.open(folder / file) as image:
            assert image.mode == "L" and np.array_equal(np.asarray(image), pixels[..., 0])


def test_folder_keeps_true_colours(real_set, tmp_path):
    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    whitening = Whitening.fit(pixels.to(torch.uint8), "channel")
    stored = whitening.apply(pixels.to(torch.uint8))
    one = replace(
        real_set,
        stored=stored,
        pixels=pixels.to(torch.uint8),
        whitening_file=keep(tmp_path / "w", whitening),
        classes=SORTED,
    )
    one.export("folder", tmp_path / "set")
    with Image.open(tmp_path / "set/train/09_9/class00009_id00003.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[39].permute(1, 2, 0))


def test_hf_is_what_the_datasets_library_writes(real_set, ordered, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    real_set.export("hf", tmp_path / "set")
    table = parquet.read_table(tmp_path / "set/data/train-00000-of-00001.parquet")
    assert table.column_names == ["image", "class", "label"]
    assert table["class"].to_pylist() == SORTED.tolist()
    assert table["label"].to_pylist() == ordered.targets.tolist()
    for one, pixels in zip(table["image"].to_pylist(), ordered.images_rgb(), strict=True):
        with Image.open(io.BytesIO(one["bytes"])) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), pixels[..., 0])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["class"]["names"] == list(real_set.class_names)
    _, header, text = (tmp_path / "set/README.md").read_text().split("---\n")
    card = yaml.safe_load(header)
    assert [one["name"] for one in card["dataset_info"]["features"]] == table.column_names
    path = card["configs"][0]["data_files"][0]["path"]
    assert (tmp_path / "set" / path).is_file() and "40 images, 4 per class" in text


def test_the_datasets_library_reads_hf(real_set, ordered, tmp_path):
    library = pytest.importorskip("datasets")
    real_set.export("hf", tmp_path / "set")
    found = library.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found.features["class"].names == list(real_set.class_names)
    assert found["label"][7] == ordered.targets[7].tolist()
    np.testing.assert_array_equal(np.asarray(found[7]["image"]), ordered.images_rgb()[7][..., 0])


def test_hf_says_what_to_install(real_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"^hf: pyarrow is not installed: pip install .*$"):
        real_set.export("hf", tmp_path / "set")


@pytest.mark.parametrize("kind", ["pt", "npz", "tensors", "folder", "hf"])
def test_a_sidecar_says_what_an_export_is(kind, real_set, tmp_path):
    if kind == "hf":
        pytest.importorskip("pyarrow")
    path = tmp_path / {"pt": "a.pt", "npz": "a.npz"}.get(kind, "a")
    real_set.export(kind, path)
    found = sidecar.read(path)
    pixels = kind in ("folder", "hf")
    assert found.format == kind and found.classes == SORTED.tolist()
    assert found.images.space == ("pixels" if pixels else "whitened")
    assert found.images.type == ("uint8" if pixels else "float32")
    assert found.images.shape == [40, 1, 8, 8] and found.images.tiles == 1
    assert found.labels.model_dump() == {"kind": "logits", "loss": "l1", "bits": 32}
    assert found.recipe == real_set.recipe.to_dict()
    assert (found.bytes.images, found.bytes.labels) == (40 * 64 * 4, 40 * 10 * 4)
    assert found.made_by.method == "random" and found.made_by.settings["entry"] == "random"
    assert found.made_by.content == real_set.artifact.content
    whitening = sidecar.whitening_of(found, path)
    assert torch.equal(whitening.matrix, real_set.whitening.matrix)


def test_a_whitening_by_channel_stands_in_the_sidecar_exactly(real_set, tmp_path):
    whitening = Whitening("channel", mean=torch.tensor([0.1]), std=torch.tensor([1 / 3]))
    one = replace(real_set, whitening_file=keep(tmp_path / "w", whitening))
    one.export("pt", tmp_path / "a.pt")
    found = sidecar.read(tmp_path / "a.pt")
    assert found.images.space == "normalised" and found.normalisation.file is None
    again = sidecar.whitening_of(found, tmp_path / "a.pt")
    assert store.content_hash(again.arrays()) == store.content_hash(whitening.arrays())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 2}', "\x00"])
def test_a_damaged_sidecar_is_refused_in_one_line(text, real_set, tmp_path):
    (tmp_path / "a.pt.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"^.*a\.pt\.json: does not describe a set \(.*$"):
        sidecar.read(tmp_path / "a.pt")


def test_an_export_leaves_other_files_alone(real_set, tmp_path):
    known = "choose one of folder, hf, npz, pt, tensors"
    with pytest.raises(ConfigError, match=f"'gif' is none of the exports: {known}"):
        real_set.export("gif", tmp_path)
    (tmp_path / "note.pt").write_text("mine")
    for kind, taken in (("folder", tmp_path), ("tensors", tmp_path), ("pt", tmp_path / "note.pt")):
        with pytest.raises(ConfigError, match=f"{taken} exists and is not an empty folder: name"):
            real_set.export(kind, taken)
    with pytest.raises(ConfigError, match=r"set: pt is one file: name it set\.pt"):
        real_set.export("pt", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["note.pt"]


def test_a_folder_may_have_a_point_in_its_name(real_set, tmp_path):
    real_set.export("tensors", tmp_path / "digits.random")
    assert (tmp_path / "digits.random/set.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["digits.random"]


@pytest.mark.parametrize("text", ['"channel", "mean": [0.5]', '"channel", "mean": [0], "std": [0]'])
def test_a_sidecar_with_half_a_normalisation_is_refused(text, real_set, tmp_path):
    real_set.export("pt", tmp_path / "a.pt")
    beside = tmp_path / "a.pt.json"
    described = json.loads(beside.read_text())
    described["normalisation"] = json.loads(f'{{"kind": {text}}}')
    beside.write_text(json.dumps(described))
    with pytest.raises(ArtifactError, match=r"a\.pt\.json: does not describe a set \(normalisa"):
        sidecar.read(tmp_path / "a.pt")


def test_a_sidecar_whose_images_are_not_as_networks_see_them_is_refused(real_set, tmp_path):
    real_set.export("pt", tmp_path / "a.pt")
    beside = tmp_path / "a.pt.json"
    beside.write_text(beside.read_text().replace('"space": "whitened"', '"space": "pixels"'))
    with pytest.raises(ArtifactError, match="float32 images are pixels, and networks see whitened"):
        sidecar.read(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["pt", "npz", "folder", "tensors"])
def test_a_failed_export_leaves_room_for_the_next(kind, real_set, tmp_path):
    target = tmp_path / f"set{'.' + kind if kind in ('pt', 'npz') else ''}"
    astray = replace(real_set.whitening_file, path=tmp_path / "gone.zarr.zip")
    with pytest.raises(ArtifactError, match="gone"):
        replace(real_set, whitening_file=astray).export(kind, target)
    assert not list(tmp_path.iterdir())
    real_set.export(kind, target)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=f"file/{target.name}: cannot be written"):
        real_set.export(kind, tmp_path / "file" / target.name)


def test_some_classes_have_as_many_images_of_each(real_set, tmp_path):
    some = real_set.select(classes=["1", "3"])
    some.export("tensors", tmp_path / "set")
    assert yaml.safe_load((tmp_path / "set/ddranking.yaml").read_text())["ipc"] == 4
