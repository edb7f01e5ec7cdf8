"""The data artifact and the real images that distillation starts from."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apm_core.data import images, read
from apm_core.data import prepared as module
from apm_core.data.prepared import PreparedData, Whitened
from apm_core.data.whitening import Whitening
from apm_core.errors import ArtifactError, ConfigError, DataError
from apm_core.nets.base import Shape
from apm_core.runtime import streams
from apm_core.settings.dataset import Images
from apm_core.settings.stages import Demands, PrepareSettings
from apm_core.settings.training import Network
from apm_core.stages.prepare import DECODED, prepare


def pixels(data: PreparedData, images) -> np.ndarray:
    return data.whitening.to_uint8(images).numpy()


def test_the_artifact_holds_the_pixels_and_the_whitening(digits, digits_settings):
    found = read("digits", test_fraction=0.2, split_seed=0)
    arrays = PreparedData.open(digits.artifact.path).artifact.arrays
    for split in ("train", "test"):
        expected = getattr(found, split)
        np.testing.assert_array_equal(arrays[f"{split}_images"], expected.images)
        np.testing.assert_array_equal(arrays[f"{split}_labels"], expected.labels)
        assert arrays[f"{split}_images"].dtype == np.uint8
    fitted = Whitening.fit(found.train.images, "zca", eps=0.1)
    torch.testing.assert_close(digits.whitening.matrix, fitted.matrix)
    assert {n for n in arrays if n.startswith("whitening_")} == set(fitted.arrays())
    assert digits.artifact.settings == digits_settings.to_dict()
    assert digits.class_names == [str(digit) for digit in range(10)]
    assert digits.shape == Shape(channels=1, resolution=8, classes=10)
    assert digits.train_bytes == found.train.images.size
    assert digits.artifact.info["warnings"] == []


def test_seed_and_share_decide_the_split(tmp_path, digits, digits_settings):
    other = prepare(tmp_path / "a", digits_settings.changed({"seed": 1}), demands=Demands())
    larger = digits_settings.changed({"images": {"test_fraction": 0.5}})
    half = prepare(tmp_path / "b", larger, demands=Demands())
    assert other.artifact.content != digits.artifact.content
    assert len(half.artifact.arrays["test_labels"]) == pytest.approx(1797 / 2, abs=6)


def test_examples_are_the_whitened_split(digits, cpu):
    for split in ("train", "test"):
        found = digits.examples(split, cpu)
        stored = digits.artifact.arrays[f"{split}_images"]
        assert found.images.dtype == torch.float32 and found.images.shape == stored.shape
        np.testing.assert_array_equal(pixels(digits, found.images), stored)
        np.testing.assert_array_equal(found.targets, digits.artifact.arrays[f"{split}_labels"])
    covariance = torch.cov(digits.examples("train", cpu).images.flatten(1).T)
    assert float(torch.linalg.eigvalsh(covariance).max()) < 1


def test_images_whitened_on_demand_equal_those_that_are_held(digits, cpu, monkeypatch):
    held = digits.examples("train", cpu)
    size = digits.train_bytes * 4
    monkeypatch.setattr(module, "HELD_BYTES", size)
    assert isinstance(digits.examples("train", cpu).images, torch.Tensor)
    monkeypatch.setattr(module, "HELD_BYTES", size - 1)
    lazy = digits.examples("train", cpu)
    assert isinstance(lazy.images, Whitened) and len(lazy.images) == len(held.images)
    index = torch.randperm(len(held.images), generator=streams.generator(0))[:100]
    torch.testing.assert_close(lazy.images[index], held.images[index], rtol=1e-5, atol=1e-5)
    assert torch.equal(lazy.targets, held.targets)


def test_a_shard_holds_training_images_class_by_class(digits):
    images, classes = digits.shard(3, 0)
    assert classes.tolist() == [c for c in range(10) for _ in range(3)]
    train = map(digits.artifact.arrays.get, ("train_images", "train_labels"))
    labels = {p.tobytes(): c for p, c in zip(*train, strict=True)}
    found = [labels[p.tobytes()] for p in pixels(digits, images)]
    assert found == classes.tolist()


def test_shards_share_no_image(digits):
    shards = [digits.shard(5, index)[0] for index in range(20)]
    assert len(torch.unique(torch.cat(shards).flatten(1), dim=0)) == 20 * 50


def test_shards_do_not_depend_on_how_many_there_are(digits):
    whole = digits.shard(6, 0)[0].view(10, 6, -1)
    halves = [digits.shard(3, index)[0].view(10, 3, -1) for index in range(2)]
    torch.testing.assert_close(torch.cat(halves, dim=1), whole)


def test_shards_are_drawn_by_the_seed_not_by_the_order_of_the_files(tmp_path, digits):
    first = digits.artifact.arrays["train_labels"].tolist().index(0)
    start = pixels(digits, digits.shard(1, 0)[0])[0]
    assert not np.array_equal(start, digits.artifact.arrays["train_images"][first])
    reopened = PreparedData.open(digits.artifact.path)
    assert torch.equal(reopened.shard(2, 3)[0], digits.shard(2, 3)[0])


def test_too_many_images_per_class_are_refused_before_and_after(tmp_path, digits, digits_settings):
    smallest = np.bincount(digits.artifact.arrays["train_labels"]).min()
    digits.shard(smallest, 0)
    message = rf"class '\d' has only {smallest} training images: lower ipc or tiles"
    with pytest.raises(
        DataError, match=f"{smallest + 1} images per class are asked for.*{message}"
    ):
        prepare(tmp_path / "a", digits_settings, demands=Demands(smallest + 1))
    assert not (tmp_path / "a").exists()
    message = rf"class '\d' has \d+ training images, shard 1 needs {2 * smallest}: lower ipc"
    with pytest.raises(DataError, match=message):
        digits.shard(smallest, 1)


def test_architectures_that_do_not_fit_are_refused(tmp_path, digits_settings):
    settings = digits_settings.changed({"images": {"resolution": 9}})
    networks = [Network(network=name) for name in ("convnet", "vgg11", "vit")]
    with pytest.raises(ConfigError, match=r"^\w+ cannot read 9x9 images .*\(these can: .*convnet"):
        prepare(tmp_path / "a", settings, demands=Demands(1, networks))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Network(network="vgg11", width=8),
            "width=8 is a setting of convnet and resnet18: set it to null for vgg11",
        ),
        (
            Network(network="resnet18", depth=2),
            "depth=2 is a setting of convnet: set it to null for resnet18",
        ),
        (Network(network="convnet", depth=6), "depth=6 halves 32 px to nothing: use at most 5"),
    ],
)
def test_a_width_or_depth_that_an_architecture_does_not_take_is_refused(
    tmp_path, digits_settings, network, message
):
    settings = digits_settings.changed({"images": {"resolution": 32, "whitening": "none"}})
    for networks in ([network], [Network(width=4), network]):
        with pytest.raises(ConfigError, match=f"^{message}$"):
            prepare(tmp_path / "a", settings, demands=Demands(1, networks))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("demands", "message"),
    [
        (
            Demands(tiles={"distill.tiles": 2, "methods.dm.tiles": 3}),
            "methods.dm.tiles: 3 does not divide the 8 pixels of a side: choose a divisor",
        ),
        (
            Demands(embedding={"methods.frepo": "convnet", "methods.dm": "vit"}),
            "methods.dm: vit has no embedding: use convnet or frepo_conv",
        ),
    ],
)
def test_tiles_and_networks_that_an_entry_cannot_use_are_refused(
    tmp_path, digits_settings, demands, message
):
    with pytest.raises(ConfigError, match=f"^{message}"):
        prepare(tmp_path / "a", digits_settings, demands=demands)
    assert not (tmp_path / "a").exists()


def test_channel_constants_are_those_of_the_source(tmp_path, digits_settings):
    settings = digits_settings.changed({"images": {"whitening": "channel"}})
    data = prepare(tmp_path / "a", settings, demands=Demands())
    train = data.artifact.arrays["train_images"] / 255.0
    assert data.whitening.mean.tolist() == pytest.approx([train.mean()], rel=1e-5)
    assert data.whitening.std.tolist() == pytest.approx([train.std()], rel=1e-5)


def test_only_a_data_artifact_is_opened(teacher_files, tmp_path):
    with pytest.raises(ArtifactError, match="its kind is 'teachers', expected 'data'"):
        PreparedData.open(teacher_files[0])
    with pytest.raises(ArtifactError, match="there is no such file"):
        PreparedData.open(tmp_path / "missing")


def test_held_out_images_of_the_training_split_take_the_place_of_the_test_split(
    digits, digits_settings, tmp_path
):
    def rows(data, *splits):
        arrays = data.artifact.arrays
        return {
            (image.tobytes(), int(label))
            for split in splits
            for image, label in zip(
                arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True
            )
        }

    settings = digits_settings.changed({"images": {"held_out": 0.25}})
    found = prepare(tmp_path / "a", settings, demands=Demands(2))
    assert rows(found, "train", "test") == rows(digits, "train")
    assert not rows(found, "train") & rows(found, "test")
    counts = np.bincount(found.artifact.arrays["test_labels"])
    before = np.bincount(digits.artifact.arrays["train_labels"])
    assert counts.tolist() == np.round(before / 4).astype(int).tolist()


# images from files

FILES = 60


def drawn(folder: Path, count: int) -> Path:
    """train/ and test/ of two classes, `count` files of noise, of which four are tests."""
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = folder / ("test" if i < 4 else "train") / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def pets(tmp_path):
    return drawn(tmp_path / "pets", FILES)


def of_pets(pets, resolution: int = 8) -> PrepareSettings:
    own = {"source": "folder", "data_dir": str(pets), "resolution": resolution}
    return PrepareSettings(images=Images(**own, whitening="channel"))


def decoded_by(monkeypatch, *, most: float = np.inf) -> list:
    """The files that are decoded from now on; `most`: the process is killed at the next one."""
    found, decode = [], images._pixels

    def count(image, *rest):
        if len(found) >= most:
            raise KeyboardInterrupt
        found.append(image.filename)
        return decode(image, *rest)

    monkeypatch.setattr(images, "_pixels", count)
    monkeypatch.setattr(images, "BLOCK", 5)
    return found


def test_a_killed_run_goes_on_with_the_files_that_are_left(tmp_path, pets, monkeypatch):
    whole = prepare(tmp_path / "whole/data.zarr.zip", of_pets(pets), demands=Demands())
    path = tmp_path / "work/data.zarr.zip"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        decoded_by(patch, most=33)
        prepare(path, of_pets(pets), demands=Demands())
    assert not path.exists()
    again = decoded_by(monkeypatch)
    found = prepare(path, of_pets(pets), demands=Demands())
    assert len(set(again)) == len(again) and FILES - 33 <= len(again) < FILES - 10
    assert found.artifact.content == whole.artifact.content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("change", ["file", "resolution"])
def test_what_was_left_of_other_images_is_not_used(tmp_path, pets, monkeypatch, change):
    path, resolution = tmp_path / "work/data.zarr.zip", 8
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        decoded_by(patch, most=FILES - 1)
        prepare(path, of_pets(pets), demands=Demands())
    if change == "file":
        Image.new("RGB", (8, 8), "red").save(pets / "train/cat/4.png")
    else:
        resolution = 16
    assert len(list((path.parent / DECODED).iterdir())) == 2
    again = decoded_by(monkeypatch)
    found = prepare(path, of_pets(pets, resolution), demands=Demands())
    assert len(again) == FILES
    fresh = prepare(tmp_path / "data.zarr.zip", of_pets(pets, resolution), demands=Demands())
    assert found.artifact.content == fresh.artifact.content


def test_files_that_are_left_out_do_not_cost_the_others(tmp_path, pets, monkeypatch):
    (pets / "train/cat/10.png").write_bytes(b"no image")
    path, settings = tmp_path / "work/data.zarr.zip", of_pets(pets)
    with pytest.raises(DataError, match="skip_unreadable"):
        prepare(path, settings, demands=Demands())
    assert not list((path.parent / DECODED).glob("*.kept"))  # no copy for a set that is refused
    again = decoded_by(monkeypatch)
    skipping = settings.changed({"images": {"skip_unreadable": True}})
    found = prepare(path, skipping, demands=Demands()).artifact
    assert not again and len(found.info["warnings"]) == 1
    (pets / "train/cat/10.png").unlink()
    clean = prepare(tmp_path / "data.zarr.zip", settings, demands=Demands()).artifact
    assert found.content == clean.content


def test_a_full_disk_is_told_before_anything_is_decoded(tmp_path, pets, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    again = decoded_by(monkeypatch)
    with pytest.raises(DataError, match=r"pixels: cannot be written \(No space.* 1.2e-05 GB, or"):
        prepare(tmp_path / "data.zarr.zip", of_pets(pets), demands=Demands())
    assert not again


LIMITED = """
import resource, sys
from apm_core.settings.stages import Demands, PrepareSettings
from apm_core.stages.prepare import prepare

settings = PrepareSettings.read(sys.argv[2])
prepare(sys.argv[3], settings.changed({"images": {"resolution": 8}}), demands=Demands())
held = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmData"))
most = held * 1024 + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
prepare(sys.argv[4], settings, demands=Demands())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_does_not_grow_with_the_images(tmp_path):
    count, side = 250, 1024
    settings, size = of_pets(drawn(tmp_path / "pets", count), side), count * 3 * side**2
    paths = [str(tmp_path / name) for name in ("small.zarr.zip", "large.zarr.zip")]
    run = [sys.executable, "-c", LIMITED, str(size * 3 // 5), settings.text, *paths]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert PreparedData.open(paths[1]).train_bytes == (count - 4) * 3 * side**2
