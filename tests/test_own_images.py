"""Folders as people have them: what is read, what is left out, and how it is said."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from apm_core.cli.commands import main
from apm_core.data import examine, images, read
from apm_core.data.class_folders import class_files, image_files
from apm_core.data.room import Room
from apm_core.data.survey import survey
from apm_core.data.whitening import Whitening
from apm_core.errors import DataError
from apm_core.methods.base import Job
from apm_core.methods.selection.random_real import RandomReal
from apm_core.settings.dataset import Images
from apm_core.settings.methods.random import RandomSettings
from apm_core.settings.stages import Demands, PrepareSettings
from apm_core.stages.prepare import prepare


def paint(path: Path, level: int, mode: str = "L", size: tuple[int, int] = (8, 8)) -> Path:
    """A picture of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path)
    return path


@pytest.fixture
def pets(tmp_path):
    """Six cats and twelve dogs, each of a grey level of its own."""
    root = tmp_path / "pets"
    for label, (name, count) in enumerate((("cat", 6), ("dog", 12))):
        for number in range(count):
            paint(root / name / f"{number}.png", 100 * label + number)
    return root


def levels(dataset) -> list[int]:
    both = np.concatenate([dataset.train.images, dataset.test.images])
    return sorted(both[:, 0, 0, 0].tolist())


ALL = [*range(6), *range(100, 112)]


def test_names_may_have_spaces_and_letters_of_other_scripts(pets):
    (pets / "cat").rename(pets / "chat siamois")
    (pets / "dog").rename(pets / "собака 狗")
    (pets / "собака 狗/0.png").rename(pets / "собака 狗/ein Hündchen, nass.png")
    found = read("folder", data_dir=pets)
    assert found.class_names == ("chat siamois", "собака 狗") and levels(found) == ALL


def test_modes_and_sizes_may_be_mixed(tmp_path):
    root = tmp_path / "mixed"
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I")
    for number, mode in enumerate(modes):
        for name in ("cat", "dog"):
            suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
            image = Image.new("L", (8 + number, 12), 255)
            if mode == "I":
                values = np.full((12, 8 + number), 65535, np.uint16)
                image = Image.fromarray(values)
            else:
                image = image.convert(mode)
            (root / name).mkdir(parents=True, exist_ok=True)
            image.save(root / name / f"{mode}.{suffix}")
    with pytest.raises(DataError, match="images differ in size"):
        read("folder", data_dir=root)
    found = read("folder", data_dir=root, resolution=4)
    whole = np.concatenate([found.train.images, found.test.images])
    assert whole.shape == (18, 3, 4, 4) and whole.min() >= 254


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(pets, suffix):
    frames = [Image.new("RGB", (8, 8), color) for color in ("black", "white", "gray")]
    path = pets / f"cat/moves.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert levels(read("folder", data_dir=pets)) == sorted([0, *ALL])


def test_links_are_followed_but_not_in_circles(pets, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    paint(elsewhere / "a.png", 50)
    paint(tmp_path / "single.png", 60)
    (pets / "bird").symlink_to(elsewhere)
    (pets / "cat/linked.png").symlink_to(tmp_path / "single.png")
    (pets / "cat/up").symlink_to(pets)
    (pets / "cat/self").symlink_to(pets / "cat")
    (pets / "cat/broken.png").symlink_to(tmp_path / "nothing.png")
    (pets / "dog/loop.png").symlink_to(pets / "dog/loop.png")
    files = class_files(pets)
    assert {name: len(own) for name, own in files.items()} == {"bird": 1, "cat": 7, "dog": 12}


def test_files_are_sorted_and_hidden_ones_left_out(pets):
    paint(pets / "cat/.hidden/a.png", 1)
    paint(pets / "cat/.a.png", 1)
    paint(pets / "cat/__MACOSX/a.png", 1)
    paint(pets / "cat/deep/er/A.PNG", 1)
    (pets / "cat/notes.txt").write_text("no image")
    (pets / "cat/folder.png").mkdir()
    found = [str(path.relative_to(pets / "cat")) for path in image_files(pets / "cat")]
    assert found == [*(f"{number}.png" for number in range(6)), "deep/er/A.PNG"]


@pytest.fixture
def damaged(pets):
    """Three of the eighteen images cannot be read."""
    (pets / "cat/1.png").write_bytes(b"")
    (pets / "dog/0.png").write_bytes((pets / "dog/0.png").read_bytes()[:50])
    (pets / "dog/11.png").write_text("<html>")
    return pets


def test_damaged_files_are_left_out_on_demand(damaged):
    with pytest.raises(DataError, match=r"3 of 18 .*, or set dataset\.skip_unreadable"):
        read("folder", data_dir=damaged)
    found = read("folder", data_dir=damaged, skip_unreadable=True)
    assert levels(found) == [one for one in ALL if one not in (1, 100, 111)]
    for split in (found.train, found.test):
        assert (split.images[:, 0, 0, 0] // 100 == split.labels).all()
    for name in ("cat/1.png", "dog/0.png", "dog/11.png"):
        start = f"left out, it cannot be read: {damaged / name} ("
        assert sum(one.startswith(start) for one in found.warnings) == 1
    assert len(found.warnings) == 3


def test_what_was_left_out_is_recorded(damaged, tmp_path):
    images = Images(source="folder", data_dir=str(damaged), skip_unreadable=True)
    data = prepare(tmp_path / "d.zarr.zip", PrepareSettings(images=images), demands=Demands())
    assert sum("left out" in one for one in data.artifact.info["warnings"]) == 3
    assert data.artifact.settings["images"]["skip_unreadable"] is True
    done = CliRunner().invoke(main, ["doctor", str(damaged), "--skip-unreadable"])
    assert done.exit_code == 0 and done.output.count("warning: left out") == 3


def test_a_class_without_a_readable_image_is_refused(pets):
    for path in (pets / "cat").iterdir():
        path.write_bytes(b"x")
    found = read("folder", data_dir=pets, skip_unreadable=True)
    with pytest.raises(DataError, match="class 'cat' has no train images"):
        examine(found)


def test_permissions_that_are_not_given_leave_the_settings_as_they_were():
    text = PrepareSettings(images=Images(source="digits")).text
    assert "skip_unreadable" not in text and "oversample" not in text
    given = PrepareSettings(images=Images(source="digits", oversample=True))
    assert PrepareSettings.read(given.text) == given and given.text != text


def prepared(pets: Path, tmp_path: Path, *, oversample: bool):
    images = Images(source="folder", data_dir=str(pets), oversample=oversample, whitening="none")
    return prepare(tmp_path / "d.zarr.zip", PrepareSettings(images=images), demands=Demands(12))


def test_a_small_class_repeats_its_images_on_demand(pets, tmp_path, cpu):
    with pytest.raises(DataError, match=r"'cat' has only 5 training .*dataset\.oversample"):
        prepared(pets, tmp_path, oversample=False)
    data = prepared(pets, tmp_path, oversample=True)
    assert any(
        "classes that repeat images, having fewer than 12: 2, the smallest is 'cat' with 5" in one
        for one in data.artifact.info["warnings"]
    )
    job = Job(data, None, cpu, ipc=12, shard=0, rounds=0, seed=0)
    shard = RandomReal(RandomSettings(), name="random", recipe=None).make(job)
    cats = (shard.images[shard.classes == 0][:, 0, 0, 0] * 255).round().int()
    assert torch.equal(cats[:5], cats[5:10]) and torch.equal(cats[:2], cats[10:])
    assert len(set(cats.tolist())) == 5
    # the next shard goes on where this one ends
    shard = RandomReal(RandomSettings(), name="random", recipe=None).make(replace(job, shard=1))
    after = (shard.images[shard.classes == 0][:, 0, 0, 0] * 255).round().int()
    assert torch.equal(after[:3], cats[2:5])


@pytest.fixture
def flat(pets):
    """The same images beside one table."""
    root = pets.with_name("flat")
    (root / "pictures").mkdir(parents=True)
    rows = []
    for path in image_files(pets):
        shutil.copy(path, root / "pictures" / f"{path.parent.name}{path.name}")
        rows.append(f"pictures/{path.parent.name}{path.name},{path.parent.name}")
    (root / "labels.csv").write_text("\n".join(["file,class", *rows]) + "\n")
    return root


def test_classes_may_stand_in_a_table(flat, pets):
    found, expected = read("folder", data_dir=flat), read("folder", data_dir=pets)
    assert found.class_names == expected.class_names == ("cat", "dog")
    assert levels(found) == ALL
    for split in (found.train, found.test):
        assert (split.images[:, 0, 0, 0] // 100 == split.labels).all()


def test_a_table_may_lie_in_an_archive_and_in_splits(flat, tmp_path):
    archive = shutil.make_archive(tmp_path / "flat", "zip", flat.parent, "flat")
    assert levels(read("folder", data_dir=archive)) == ALL
    both = tmp_path / "both"
    for split in ("train", "test"):
        shutil.copytree(flat, both / split)
    found = read("folder", data_dir=both)
    assert len(found.train.labels) == len(found.test.labels) == 18


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na.png,x\n", "has no column 'file': its first line must name"),
        ("file;class\na.png;x\n", "has no column 'class'"),
        ("file,class\n", "names no files"),
        ("file,class\npictures/cat0.png,\n", "line 2: 'pictures/cat0.png' has no class"),
        ("file,class\npictures/cat0.png\n", "line 2: 'pictures/cat0.png' has no class"),
        ("file,class\nnone.png,cat\n", "line 2: there is no file 'none.png' in"),
        ("file,class\n../pets/cat/0.png,cat\n", "lies outside of"),
        (
            "file,class\npictures/cat0.png,cat\npictures/./cat0.png,dog\n",
            "line 3: 'pictures/./cat0.png' is named a second time",
        ),
        ("file,class\n\udcff\udcfe,cat\n", "is no CSV in UTF-8"),
    ],
)
def test_a_wrong_table_is_one_line(flat, text, message):
    (flat / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as error:
        read("folder", data_dir=flat)
    assert "\n" not in str(error.value) and "labels.csv" in str(error.value)


def test_a_survey_decodes_nothing(pets):
    paint(pets / "dog/wide.png", 7, size=(40, 20))
    found = survey(pets, test_fraction=0.5)
    assert found.train == {"cat": 3, "dog": 7} and found.test == {"cat": 3, "dog": 6}
    assert found.side == 8 and found.sides == (8, 40) and not found.alike
    assert found.channels == 1
    paint(pets / "dog/colour.png", 7, "RGB")
    assert survey(pets, test_fraction=0.2).channels == 3
    os.truncate(pets / "dog/3.png", 60)  # the header is there
    assert survey(pets, test_fraction=0.2).side == 8
    for path in image_files(pets):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="no image of 20 can be read"):
        survey(pets, test_fraction=0.2)
    with pytest.raises(DataError, match="is a file: unpack it first"):
        survey(pets / "cat/0.png", test_fraction=0.2)


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "validation")])
def test_folders_of_splits_are_no_classes(names, tmp_path):
    for split in names:
        for name in ("cat", "dog"):
            paint(tmp_path / split / name / "0.png", 7)
    with pytest.raises(DataError, match=f"{names[0]}.*look like splits.*name them train and test"):
        read("folder", data_dir=tmp_path)


def test_a_table_may_name_files_in_a_folder_called_train(tmp_path):
    for number in range(8):
        paint(tmp_path / f"train/{number}.png", number)
    rows = "".join(f"train/{number}.png,{'ab'[number % 2]}\n" for number in range(8))
    (tmp_path / "labels.csv").write_text(f"file,class\n{rows}")
    found = read("folder", data_dir=tmp_path)
    assert found.class_names == ("a", "b") and levels(found) == list(range(8))
    for name in ("a", "b"):  # folders of classes in both splits are read, and not the table
        paint(tmp_path / "train" / name / "9.png", 20)
        paint(tmp_path / "test" / name / "9.png", 30)
    assert levels(read("folder", data_dir=tmp_path)) == [20, 20, 30, 30]


def test_a_table_names_nothing_outside_wherever_it_is_read_from(pets, monkeypatch):
    paint(pets.parent / "out.png", 1)
    (pets / "labels.csv").write_text("file,class\n../out.png,a\n")
    monkeypatch.chdir(pets)
    for root in (".", pets):
        with pytest.raises(DataError, match="lies outside"):
            read("folder", data_dir=root)


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_what_is_decoded_of_an_archive_is_not_decoded_again(kind, pets, tmp_path, monkeypatch):
    (pets / "cat/broken.png").write_bytes(b"not an image")
    archive = shutil.make_archive(str(tmp_path / "pets"), kind, pets)
    room, opened = Room(tmp_path / "room"), []
    plain = images._pixels
    monkeypatch.setattr(images, "_pixels", lambda *args: opened.append(1) or plain(*args))
    for _ in range(2):
        found = read("folder", data_dir=archive, skip_unreadable=True, room=room)
        assert levels(found) == ALL
        assert f"{archive}/cat/broken.png" in found.warnings[0]
    assert len(opened) == len(ALL)


def test_constants_of_three_channels_do_not_whiten_grey_images():
    grey = np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8)
    constants = ((0.5,) * 3, (0.25,) * 3)
    found = Whitening.fit(grey, "channel", constants=constants)
    assert found.mean.tolist() == Whitening.fit(grey, "channel").mean.tolist()
    assert Whitening.fit(grey.repeat(3, 1), "channel", constants=constants).mean[0] == 0.5
