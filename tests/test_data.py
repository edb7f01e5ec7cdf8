import io
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from apm_core.data import channel_constants, read
from apm_core.errors import ConfigError, DataError
from apm_core.settings.names import names_in


def noise(seed, size=(8, 8), channels=3):
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """train/ and test/ of two classes, image k of a class from seed 10 * class + k."""
    root = tmp_path / "pets"
    for label, name in enumerate(("cat", "dog")):
        for k in range(3):
            part = "train" if k < 2 else "test"
            save(root / part / name / f"{k}.png", noise(10 * label + k))
    return root


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'mnist' is none of the sources: .* cifar10, .*, digi"):
        read("mnist")


@pytest.mark.parametrize("name", sorted(set(names_in("data.sources")) - {"digits"}))
def test_a_folder_is_asked_for(name):
    with pytest.raises(DataError, match=f"{name} needs a folder: set dataset.data_dir"):
        read(name)


@pytest.mark.parametrize("name", names_in("data.sources"))
def test_channel_constants_have_a_mean_and_a_std_for_each_channel(name):
    constants = channel_constants(name)
    assert constants is None or [len(part) for part in constants] == [3, 3]


@pytest.mark.parametrize(
    ("option", "value"),
    [("resolution", 0), ("channels", 2), ("fit", "stretch"), ("test_fraction", 1.0)],
)
def test_settings_out_of_bounds_are_named(option, value):
    with pytest.raises(ConfigError, match=f"dataset.{option} must .* not '?{value}"):
        read("digits", **{option: value})


# digits


def test_digits_are_scaled_and_split_by_class():
    data = read("digits")
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int64
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.class_names == tuple("0123456789")
    totals = np.bincount(load_digits().target)
    np.testing.assert_array_equal(np.bincount(data.test.labels), np.rint(totals * 0.2))
    # both splits together are the original scans, each with its label
    scans = {
        ((scan.ravel() * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(label))
        for scan, label in zip(load_digits().images, load_digits().target, strict=True)
    }
    read_back = [
        (image.tobytes(), int(label))
        for split in (data.train, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert len(read_back) == 1797 and set(read_back) == scans


def test_split_follows_seed_and_fraction():
    images = [read("digits", split_seed=seed).test.images for seed in (0, 0, 1)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])
    assert len(read("digits", test_fraction=0.5).test.labels) == pytest.approx(1797 / 2, abs=5)


def test_digits_in_another_form():
    data = read("digits", resolution=16, channels=3)
    assert data.train.images.shape[1:] == (3, 16, 16)
    assert np.array_equal(data.train.images[:, 0], data.train.images[:, 2])
    scan = Image.fromarray(read("digits").train.images[5, 0])
    expected = scan.resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.train.images[5, 0], np.asarray(expected))


# CIFAR


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_cifar_without_files_says_what_goes_where(tmp_path, name, folder):
    with pytest.raises(DataError, match=rf"{name} is not in {tmp_path} .*: put there .*{folder}"):
        read(name, data_dir=tmp_path, download=False)


def test_cifar_with_damaged_files_is_refused(tmp_path):
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    batch.parent.mkdir()
    batch.write_bytes(b"not a batch")
    with pytest.raises(DataError, match=r"corrupted.*data_batch_1, .*test_batch, batches.meta"):
        read("cifar10", data_dir=tmp_path, download=False)


def test_failed_download_says_what_goes_where(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"no network\): put there cifar-10-python.tar.gz, or"):
        read("cifar10", data_dir=tmp_path)


def test_cifar10_is_read_without_network(cifar10_dir):
    data = read("cifar10", data_dir=cifar10_dir, download=True)
    assert data.train.images.shape == (50000, 3, 32, 32) and data.train.images.dtype == np.uint8
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.class_names[data.train.labels[0]] == "frog"
    # the official files hold images row after row in our order of axes
    for split, index, name in ((data.train, 0, "data_batch_1"), (data.test, -1, "test_batch")):
        raw = (cifar10_dir / "cifar-10-batches-py" / name).read_bytes()
        assert split.images[index].tobytes() in raw


# folders


def test_folder_with_splits(tree):
    data = read("folder", data_dir=str(tree))
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1] and data.test.labels.tolist() == [0, 1]
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int64
    expected = np.stack([noise(seed).transpose(2, 0, 1) for seed in (0, 1, 10, 11)])
    np.testing.assert_array_equal(data.train.images, expected)
    np.testing.assert_array_equal(data.test.images[1], noise(12).transpose(2, 0, 1))


def test_val_serves_as_test(tree):
    expected = read("folder", data_dir=tree).test.images
    (tree / "test").rename(tree / "val")
    np.testing.assert_array_equal(read("folder", data_dir=tree).test.images, expected)


def test_other_files_are_ignored(tree):
    expected = read("folder", data_dir=tree)
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", "._0.png"):
        (tree / "train" / "cat" / name).write_bytes(b"no image")
    save(tree / "train" / ".cache" / "0.png", noise(0))
    data = read("folder", data_dir=tree)
    assert data.class_names == expected.class_names
    np.testing.assert_array_equal(data.train.images, expected.train.images)


def test_single_folder_is_cut_within_each_class(tmp_path):
    for label, (name, count) in enumerate((("cat", 10), ("dog", 5), ("eel", 2))):
        for k in range(count):
            save(tmp_path / name / f"{k:02}.png", np.full((4, 4), 50 * label + k, np.uint8))
    data = read("folder", data_dir=tmp_path, test_fraction=0.3)
    assert np.bincount(data.train.labels).tolist() == [7, 3, 1]
    assert np.bincount(data.test.labels).tolist() == [3, 2, 1]
    values = np.concatenate([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(values) == [*range(10), *range(50, 55), 100, 101]
    labels = np.concatenate([data.train.labels, data.test.labels])
    np.testing.assert_array_equal(values // 50, labels)

    def test_cats(**options):
        images = read("folder", data_dir=tmp_path, test_fraction=0.3, **options).test.images
        return images[:3, 0, 0, 0].tolist()

    assert (
        test_cats() == test_cats() and len({tuple(test_cats(split_seed=s)) for s in range(5)}) > 1
    )
    # a class does not depend on its neighbours
    before = test_cats()
    shutil.rmtree(tmp_path / "dog")
    assert test_cats() == before


def test_folder_errors_say_what_to_do(tree, tmp_path):
    def failing(match, root=tree):
        with pytest.raises(DataError, match=match) as caught:
            read("folder", data_dir=root)
        assert "\n" not in str(caught.value)

    failing("nowhere does not exist: correct the path, or dataset.data_dir", tmp_path / "nowhere")
    failing("has no class folders: put the images", tree / "train" / "cat")
    (tree / "train" / "eel").mkdir()
    failing(r"class 'eel' has no images in .*train/eel \(1 of 3 .* empty\): add images .*or remove")
    save(tree / "train" / "eel" / "0.png", noise(0))
    failing(r"classes differ: 'eel' \(1 in all\) only in .*train: give both")
    save(tree / "test" / "fox" / "0.png", noise(0))
    failing("'eel' .* only in .*train and 'fox' .* only in .*test")
    failing(r"class 'eel' has 1 image and cannot be split", tree / "train")
    shutil.rmtree(tree / "test")
    failing("has train/ but no test/ or val/: add it, or")


def test_damaged_images_are_counted_and_the_first_named(tree):
    whole = (tree / "train" / "cat" / "0.png").read_bytes()
    (tree / "train" / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"^1 of 6 images .*cat/0.png \(.*\): replace or remove"):
        read("folder", data_dir=tree)
    (tree / "train" / "dog" / "0.png").write_bytes(b"no image")
    (tree / "train" / "dog" / "1.png").write_bytes(b"")
    (tree / "test" / "dog" / "2.png").write_bytes(whole[:20])
    with pytest.raises(
        DataError, match=r"^4 of 6 .*cat/0.*dog/0.*dog/1.png [^;]*, \.\.\.: replace"
    ):
        read("folder", data_dir=tree)
    for path in tree.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"^6 of 6 images cannot be read"):
        read("folder", data_dir=tree)


def test_truncated_jpeg_is_reported(tree):
    save(tree / "train" / "cat" / "a.jpg", noise(1, (64, 64)))
    whole = (tree / "train" / "cat" / "a.jpg").read_bytes()
    (tree / "train" / "cat" / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"^1 of 7 images .*a.jpg"):
        read("folder", data_dir=tree, resolution=8)


# size


def test_sizes_without_resolution(tree):
    save(tree / "test" / "dog" / "9.png", noise(9, (10, 8)))
    with pytest.raises(
        DataError, match=r"differ in size: .*0.png is 8 x 8, .*9.png is 10 x 8: set dataset.resolu"
    ):
        read("folder", data_dir=tree)
    assert read("folder", data_dir=tree, resolution=8).test.images.shape == (3, 3, 8, 8)


def test_images_that_are_not_square(tmp_path):
    for k in range(2):
        for name in ("cat", "dog"):
            save(tmp_path / name / f"{k}.png", noise(k, (10, 8)))
    with pytest.raises(
        DataError, match=r"not square: .*cat/.*png is 10 x 8: set dataset.resolution"
    ):
        read("folder", data_dir=tmp_path)


def one(tmp_path, picture, name="0.png", *, options=None, **form):
    """Read a picture through the folder reader, beside fillers that do not decide its form."""
    root = tmp_path / "one"
    shutil.rmtree(root, ignore_errors=True)
    for part in ("train", "test"):
        for label in ("a", "b"):
            save(root / part / label / name, picture, **(options or {}))
    return read("folder", data_dir=root, **form).train.images[0]


def test_squash_and_crop(tmp_path):
    left_red_right_blue = np.zeros((16, 48, 3), np.uint8)
    left_red_right_blue[:, :16, 0] = left_red_right_blue[:, 32:, 2] = 255
    squashed = one(tmp_path, left_red_right_blue, resolution=6)
    assert squashed[0, :, 0].min() > 200 and squashed[2, :, 5].min() > 200
    cropped = one(tmp_path, left_red_right_blue, resolution=16, fit="crop")
    assert not cropped.any()  # the black centre
    tall = noise(0, (12, 20))
    np.testing.assert_array_equal(
        one(tmp_path, tall, resolution=12, fit="crop"), tall[4:16].transpose(2, 0, 1)
    )


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255  # taking single pixels would give 0 or 255
    small = one(tmp_path, stripes, resolution=8)
    assert small.min() > 110 and small.max() < 145


# channels


def test_greyscale_stays_so_unless_one_image_has_colour(tmp_path, tree):
    assert one(tmp_path, noise(0, channels=1)).shape == (1, 8, 8)
    save(tree / "train" / "cat" / "0.png", noise(0, channels=1))
    mixed = read("folder", data_dir=tree).train.images
    assert mixed.shape[1] == 3
    np.testing.assert_array_equal(mixed[0], np.stack([noise(0, channels=1)] * 3))


def test_channels_on_demand(tmp_path):
    grey, colour = noise(0, channels=1), noise(1)
    np.testing.assert_array_equal(one(tmp_path, grey, channels=3), np.stack([grey] * 3))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(one(tmp_path, colour, channels=1)[0], luma, atol=1)


def test_sixteen_bits_are_scaled(tmp_path):
    wide = np.array([[0, 257], [32768, 65535]], np.uint16)
    assert one(tmp_path, wide).tolist() == [[[0, 1], [128, 255]]]
    assert one(tmp_path, wide, "0.tif").tolist() == [[[0, 1], [128, 255]]]


def test_pixels_without_a_fixed_range_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"0.tif \(floating-point .* save them with 8 or 16 bits"):
        one(tmp_path, np.full((4, 4), 0.5, np.float32), "0.tif")
    with pytest.raises(DataError, match="exceed 16 bits"):
        one(tmp_path, np.full((4, 4), 70000, np.int32), "0.tif")


def test_palette_and_transparency(tmp_path):
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:4, :, 0] = 200
    colours[4:, :, 1] = 100
    palette = Image.fromarray(colours).quantize(2)
    np.testing.assert_array_equal(one(tmp_path, palette), colours.transpose(2, 0, 1))
    # the first palette entry made transparent shows white
    hidden = palette.getpixel((0, 0))
    seen = one(tmp_path, palette, options={"transparency": hidden})
    assert (seen[:, :4] == 255).all() and (seen[1, 4:] == 100).all()

    layered = np.dstack([colours, np.full((8, 8), 255, np.uint8)])
    layered[:, 4:, 3] = 0
    seen = one(tmp_path, layered)
    np.testing.assert_array_equal(seen[:, :, :4], colours.transpose(2, 0, 1)[:, :, :4])
    assert (seen[:, :, 4:] == 255).all()
    grey = one(
        tmp_path, Image.merge("LA", [Image.fromarray(layered[:, :, k].copy()) for k in (0, 3)])
    )
    assert grey.shape == (1, 8, 8) and grey[0, 0].tolist() == [200] * 4 + [255] * 4


def test_cmyk_becomes_rgb(tmp_path):
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    seen = one(tmp_path, cyan, "0.jpg", options={"quality": 100})
    np.testing.assert_allclose(seen.mean(axis=(1, 2)), [0, 255, 255], atol=3)


def test_exif_orientation_is_applied(tmp_path):
    upright = noise(0, (6, 9))
    turned = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter for display
    options = {"exif": exif}
    with pytest.raises(DataError, match=r"0.png is 6 x 9"):
        one(tmp_path, turned, options=options)
    square = noise(1)
    turned = Image.fromarray(square).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(one(tmp_path, turned, options=options), square.transpose(2, 0, 1))


# archives


def packed(tree, target, inside="pets"):
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(tree.rglob("*.png")):
                archive.write(path, f"{inside}/{path.relative_to(tree)}")
            archive.writestr("__MACOSX/._0.png", b"")
    else:
        with tarfile.open(target, "w:gz" if target.name.endswith("gz") else "w") as archive:
            archive.add(tree, inside)
    return target


@pytest.mark.parametrize("inside", ["pets", "."])
@pytest.mark.parametrize("name", ["pets.zip", "pets.tar", "pets.tar.gz", "PETS.TGZ"])
def test_archives_read_like_folders(tree, tmp_path, monkeypatch, name, inside):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    archive = packed(tree, tmp_path / name, inside)
    expected, found = read("folder", data_dir=tree), read("folder", data_dir=archive)
    assert found.class_names == expected.class_names
    np.testing.assert_array_equal(found.train.images, expected.train.images)
    np.testing.assert_array_equal(found.test.labels, expected.test.labels)
    assert not list(scratch.iterdir())


def test_errors_inside_an_archive_name_it(tree, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    (tree / "train" / "cat" / "0.png").write_bytes(b"no image")
    archive = packed(tree, tmp_path / "pets.zip")
    with pytest.raises(DataError, match=r"pets.zip/pets/train/cat/0.png") as caught:
        read("folder", data_dir=archive)
    assert str(scratch) not in str(caught.value)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("escape", ["../escaped.png", "/escaped/0.png", "a/../../escaped.png"])
def test_zip_members_outside_are_refused(tmp_path, escape):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(escape, b"x")
    with pytest.raises(DataError, match=r"bad.zip is unsafe to unpack \('.*escaped"):
        read("folder", data_dir=tmp_path / "bad.zip")


def test_tar_members_outside_are_refused(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo("../escaped.png")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(DataError, match=r"bad.tar is unsafe to unpack \(.*escaped"):
        read("folder", data_dir=tmp_path / "bad.tar")
    assert not list(tmp_path.parent.rglob("escaped.png"))


def test_damaged_and_unknown_archives(tree, tmp_path):
    for name in ("pets.zip", "pets.tar.gz"):
        archive = packed(tree, tmp_path / name)
        archive.write_bytes(archive.read_bytes()[:-200])
        with pytest.raises(
            DataError, match=f"{name} cannot be unpacked .*: make the archive again"
        ):
            read("folder", data_dir=archive)
    (tmp_path / "pets.rar").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"pets.rar is neither a folder nor a .zip, .tar or .tar.gz"
    ):
        read("folder", data_dir=tmp_path / "pets.rar")


# Tiny ImageNet


@pytest.fixture
def tiny(tmp_path):
    """Three listed classes, of which two have training images; one training image is greyscale."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val").mkdir(parents=True)
    (root / "wnids.txt").write_text("n03\nn02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn09\tx\n")
    save(root / "train" / "n02" / "images" / "n02_0.JPEG", noise(0, (64, 64), channels=1))
    save(root / "train" / "n01" / "images" / "n01_0.JPEG", noise(1, (64, 64)))
    save(root / "train" / "n01" / "images" / "n01_1.JPEG", noise(2, (64, 64)))
    lines = []
    for k, wnid in enumerate(("n03", "n02", "n01")):
        save(root / "val" / "images" / f"val_{k}.JPEG", noise(k, (64, 64)))
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet_as_distributed(tiny):
    data = read("tiny_imagenet", data_dir=tiny.parent)
    assert data.class_names == ("goldfish", "bullfrog")
    assert data.train.labels.tolist() == [0, 0, 1] and data.test.labels.tolist() == [0, 1]
    assert data.train.images.shape == (3, 3, 64, 64)
    with Image.open(tiny / "val" / "images" / "val_2.JPEG") as image:
        np.testing.assert_array_equal(data.test.images[0], np.asarray(image).transpose(2, 0, 1))
    (warning,) = data.warnings
    assert "2 of the 3 classes of wnids.txt" in warning


@pytest.mark.parametrize("below", ["val", "val/images"])
def test_tiny_imagenet_sorted_into_class_folders(tiny, below):
    expected = read("tiny_imagenet", data_dir=tiny.parent)
    for k, wnid in enumerate(("n03", "n02", "n01")):
        (tiny / below / wnid).mkdir()
        (tiny / "val" / "images" / f"val_{k}.JPEG").rename(tiny / below / wnid / f"val_{k}.JPEG")
    (tiny / "val" / "val_annotations.txt").unlink()
    data = read("tiny_imagenet", data_dir=tiny.parent)
    np.testing.assert_array_equal(data.test.images, expected.test.images)
    np.testing.assert_array_equal(data.test.labels, expected.test.labels)


def test_tiny_imagenet_errors_say_what_to_do(tiny, tmp_path):
    def failing(match, root=tiny.parent):
        with pytest.raises(DataError, match=match):
            read("tiny_imagenet", data_dir=root)

    (tiny / "val" / "val_annotations.txt").write_text("val_2.JPEG\tn01\t0\n")
    failing("val has no images of class n02: unpack tiny-imagenet-200.zip")
    (tiny / "val" / "val_annotations.txt").unlink()
    failing("val_annotations.txt is missing and .*val has no class folders: unpack")
    shutil.rmtree(tiny / "train")
    failing("train has none of the classes of wnids.txt: unpack")
    failing("wnids.txt is missing: unpack tiny-imagenet-200.zip", tmp_path / "elsewhere")


# ImageNet


def batch(path, labels, seed, side=4, **changed):
    data = np.random.default_rng(seed).integers(0, 256, (len(labels), 3 * side**2), dtype=np.uint8)
    np.savez(path, **({"data": data, "labels": np.array(labels)} | changed))
    return data.reshape(-1, 3, side, side)


@pytest.fixture
def batches(tmp_path):
    train = [batch(tmp_path / f"train_data_batch_{i}.npz", [1, i], seed=i) for i in range(1, 11)]
    test = batch(tmp_path / "val_data.npz", [3, 1], seed=0)
    return tmp_path, np.concatenate(train), test


def test_imagenet_batches(batches):
    root, train, test = batches
    data = read("imagenet", data_dir=root)
    np.testing.assert_array_equal(data.train.images, train)
    np.testing.assert_array_equal(data.test.images, test)
    assert data.train.labels.tolist() == [k for i in range(10) for k in (0, i)]
    assert data.test.labels.tolist() == [2, 0] and data.test.labels.dtype == np.int64
    assert data.class_names == tuple(str(i) for i in range(1, 11))
    assert read("imagenet", data_dir=root, resolution=4).train.images.shape == (20, 3, 4, 4)


def test_imagenet_batches_errors_say_what_to_do(batches):
    root, _, _ = batches
    path = root / "train_data_batch_4.npz"

    def failing(match):
        with pytest.raises(DataError, match=match):
            read("imagenet", data_dir=root)

    batch(path, [0, 1], seed=0)
    failing(r"batch_4.npz holds data \(2, 48\) uint8 and labels from 0: expected \(2, 3\*S\*S\)")
    batch(path, [1, 2], seed=0, data=np.zeros((2, 48)))
    failing(r"batch_4.npz holds data \(2, 48\) float64")
    batch(path, [1, 2], seed=0, side=5)
    failing("batch_4.npz has side 5, unlike .*batch_1.npz: set dataset.resolution")
    batch(path, [1, 2], seed=0, data=np.array([b"code", None], dtype=object))
    failing(r"batch_4.npz has no readable 'data' .*allow_pickle.*: download it again")
    path.write_bytes(b"x")
    failing("batch_4.npz has no readable 'labels'")
    path.unlink()
    failing(r"lacks train_data_batch_4.npz \(1 of 11 batches\): put there train/ and val/")


def test_imagenet_tree(tree):
    (tree / "test").rename(tree / "val")
    data = read("imagenet", data_dir=tree, resolution=4)
    assert data.class_names == ("cat", "dog") and data.train.images.shape == (4, 3, 4, 4)
    (tree / "val").rename(tree / "test")
    with pytest.raises(DataError, match="has train/ but no val/"):
        read("imagenet", data_dir=tree)
