"""The product as a user meets it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import apm_core
from apm_core import distilled
from apm_core.data import whitening_file
from apm_core.data.labels import Labels
from apm_core.data.prepared import PreparedData
from apm_core.data.whitening import Whitening
from apm_core.data.whitening_file import WhiteningFile
from apm_core.errors import ArtifactError, ConfigError
from apm_core.nets.base import Shape
from apm_core.runtime import store
from apm_core.training.recipe import Recipe


def test_the_set_describes_itself(real_set):
    assert len(real_set) == 40 and real_set.ipc == 4
    assert real_set.shape == Shape(channels=1, resolution=8, classes=10)
    assert real_set.class_names == tuple(map(str, range(10)))
    assert real_set.image_bytes == 40 * 64 * 4 and real_set.label_bytes == 40 * 10 * 4


def test_dataset_pairs_images_with_targets(real_set):
    dataset = real_set.dataset()
    assert len(dataset) == 40
    for index in (0, 39):
        image, target = dataset[index]
        assert torch.equal(image, real_set.images[index])
        assert torch.equal(target, real_set.targets[index])


def test_real_images_come_back_to_their_very_pixels(real_set, digits):
    shown = real_set.images_rgb()
    assert shown.shape == (40, 8, 8, 3) and shown.dtype == np.uint8
    assert (shown == shown[..., :1]).all()
    train = digits.artifact.arrays["train_images"][:, 0]
    labels = digits.artifact.arrays["train_labels"]
    originals = {p.tobytes(): c for p, c in zip(train, labels, strict=True)}
    found = [originals[np.ascontiguousarray(p[..., 0]).tobytes()] for p in shown]
    assert found == real_set.classes.tolist()


def test_colours_keep_their_channels(real_set):
    pixels = torch.randint(0, 256, (6, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    for kind in ("none", "channel", "zca"):
        whitening = Whitening.fit(pixels, kind)
        one = replace(real_set, pixels=whitening.to_uint8(whitening.apply(pixels)))
        np.testing.assert_array_equal(one.images_rgb(), pixels.permute(0, 2, 3, 1).numpy())


def test_classes_are_selected_by_index_or_name_in_the_order_given(real_set):
    by_index, by_name = real_set.select(classes=[7, 2]), real_set.select(classes=["7", "2"])
    assert by_index.classes.tolist() == [7] * 4 + [2] * 4 == by_name.classes.tolist()
    assert torch.equal(by_index.images, by_name.images)
    for c in (7, 2):
        rows = by_index.classes == c
        assert torch.equal(by_index.images[rows], real_set.images[real_set.classes == c])
        assert torch.equal(by_index.targets[rows], real_set.targets[real_set.classes == c])
        shown = real_set.images_rgb()[real_set.classes.numpy() == c]
        np.testing.assert_array_equal(by_index.images_rgb()[rows.numpy()], shown)
    assert by_index.class_names == real_set.class_names


def test_smaller_sets_are_the_first_images_of_each_class(real_set, digits):
    for ipc in (1, 3, 4):
        some = real_set.select(ipc=ipc)
        assert some.ipc == ipc and len(some) == 10 * ipc
        for c in range(10):
            expected = real_set.images[real_set.classes == c][:ipc]
            assert torch.equal(some.images[some.classes == c], expected)
    first_shard = real_set.select(ipc=2)
    assert torch.equal(first_shard.images, digits.shard(2, 0)[0])
    assert torch.equal(real_set.select(ipc=3).select(ipc=1).images, real_set.select(ipc=1).images)


def test_classes_and_ipc_can_be_selected_together(real_set):
    some = real_set.select(classes=["3", 9], ipc=1)
    assert some.classes.tolist() == [3, 9]
    assert len(some.dataset()) == 2


@pytest.mark.parametrize("classes", [["7", 2, "5"], [4], list(range(10))[::-1]])
def test_only_some_classes_are_numbered_in_their_order_with_their_columns_alone(real_set, classes):
    indices = [int(c) for c in classes]
    few = real_set.only(classes)
    assert few.class_names == tuple(map(str, indices)) and few.ipc == 4
    assert few.shape == replace(real_set.shape, classes=len(indices))
    for row in range(len(few)):
        name = indices[few.classes[row]]
        [place] = torch.nonzero((real_set.images == few.images[row]).flatten(1).all(1)).flatten()
        assert name == real_set.classes[place]
        assert few.targets[row].tolist() == [real_set.targets[place, c] for c in indices]


def test_only_some_classes_in_every_form_of_the_labels(real_set):
    hard = replace(real_set, labels=Labels.of(real_set.classes)).only([7, 2])
    assert hard.targets.tolist() == [0] * 4 + [1] * 4 == hard.classes.tolist()
    short = Labels.of(real_set.targets, bits=16, top=3)
    few = replace(real_set, labels=short).only([7, 2])
    whole = short.targets[torch.cat([torch.nonzero(real_set.classes == c)[:, 0] for c in (7, 2)])]
    assert torch.equal(few.targets, whole[:, [7, 2]])
    assert few.label_bytes == 8 * 2 * 2  # images, columns, bytes
    assert torch.equal(few.only(["2"]).targets, whole[4:, [2]])


def test_probabilities_of_only_some_classes_are_those_given_that_it_is_one_of_them(real_set):
    given = real_set.select(classes=[7, 2]).targets.double().softmax(1)[:, [7, 2]]
    few = real_set.only([7, 2]).targets.double().softmax(1)
    torch.testing.assert_close(few, given / given.sum(1, keepdim=True))


def test_test_images_of_only_some_classes_are_numbered_alike(digits, cpu):
    whole = digits.examples("test", cpu)
    few = whole.only([7, 2])
    names = torch.tensor([7, 2])[few.targets]
    expected = [r for r, c in enumerate(whole.targets.tolist()) if c in (7, 2)]
    assert torch.equal(few.images, whole.images[expected])
    assert torch.equal(names, whole.targets[expected])


def test_a_class_named_twice_is_refused(real_set):
    with pytest.raises(ConfigError, match="classes: one is named twice: 2, 3, 2"):
        real_set.only([2, 3, "2"])


@pytest.mark.parametrize("key", [10, -1, "ten", "", 1.5, None])
def test_unknown_classes_are_refused_with_those_that_exist(real_set, key):
    with pytest.raises(ConfigError, match=r"classes: there is no class .*; known: 0, 1, 2"):
        real_set.select(classes=[key])


@pytest.mark.parametrize("ipc", [0, -1, 5])
def test_ipc_that_the_set_does_not_have_is_refused(real_set, ipc):
    with pytest.raises(ConfigError, match=f"ipc: {ipc} asked for, class '0' has 4 images"):
        real_set.select(ipc=ipc)


def test_save_and_load_are_inverse(real_set, tmp_path):
    recipe = Recipe(passes=7, lr=0.3, nesterov=True, drop=4, drop_momentum=True, loss="soft_ce")
    given = replace(real_set, recipe=recipe, class_names=tuple("abcdefghij"))
    path = tmp_path / "set.zarr.zip"
    distilled.save(path, given, settings={"a": 1}, inputs={}, info={"method": "apm"})
    found = apm_core.load(path)
    assert (found.recipe, found.class_names) == (recipe, given.class_names)
    for name in ("images", "classes", "targets", "pixels"):
        assert torch.equal(getattr(found, name), getattr(given, name))
    assert found.whitening_file == replace(
        given.whitening_file, path=tmp_path / "digits.whitening.zarr.zip"
    )
    assert found.artifact.settings == {"a": 1} and found.artifact.info["method"] == "apm"
    assert isinstance(found, apm_core.DistilledSet)


def test_only_a_distilled_set_is_loaded(random_files, tmp_path):
    with pytest.raises(ArtifactError, match="its kind is 'shard', expected 'distilled set'"):
        distilled.load(random_files[0])
    with pytest.raises(ArtifactError, match="there is no such file"):
        distilled.load(tmp_path / "missing.zarr.zip")


@pytest.fixture
def alone(real_set, tmp_path):
    """The path of a copy of the set without the file of its whitening."""
    return Path(shutil.copy(real_set.artifact.path, tmp_path / "copy.zarr.zip"))


def test_the_whitening_is_that_of_the_data(real_set, digits):
    for name in ("mean", "matrix"):
        assert torch.equal(getattr(real_set.whitening, name), getattr(digits.whitening, name))
    assert real_set.select(ipc=1).whitening is real_set.whitening


def test_only_the_whitening_itself_needs_its_file(alone, real_set, digits):
    found = apm_core.load(alone)
    np.testing.assert_array_equal(found.images_rgb(), real_set.images_rgb())
    assert found.select(classes=[3], ipc=2).images_rgb().shape == (2, 8, 8, 3)
    assert len(found.dataset()) == 40 and found.artifact.content == real_set.artifact.content
    file = alone.with_name("digits.whitening.zarr.zip")
    with pytest.raises(ArtifactError, match=f"^{file}: there is no such file.* run snakemake .*$"):
        found.whitening  # noqa: B018
    whitening_file.write(file, digits)
    assert torch.equal(found.whitening.matrix, digits.whitening.matrix)


def test_the_whitening_of_another_data_set_is_refused(alone, digits):
    matrix = digits.whitening.matrix * 2
    other = PreparedData(digits.artifact, replace(digits.whitening, matrix=matrix))
    file = alone.with_name("digits.whitening.zarr.zip")
    whitening_file.write(file, other)
    with pytest.raises(ArtifactError, match=f"^{file}: this is the whitening of other data than.*"):
        apm_core.load(alone).whitening  # noqa: B018
    shutil.copy(digits.artifact.path, file)
    with pytest.raises(ArtifactError, match="its kind is 'data', expected 'whitening'"):
        apm_core.load(alone).whitening  # noqa: B018


def test_a_set_cannot_name_a_file_in_another_folder(real_set, tmp_path):
    (tmp_path / "in").mkdir()
    info = {**real_set.artifact.info, "whitening": {"file": "../secret", "content": "0" * 64}}
    path = tmp_path / "in" / "set"
    store.write(path, distilled.KIND, real_set.artifact.arrays, settings={}, info=info)
    assert apm_core.load(path).whitening_file.path == tmp_path / "in" / "secret"


def test_a_set_of_an_earlier_version_is_refused(real_set, digits, tmp_path):
    arrays = {n: a for n, a in real_set.artifact.arrays.items() if n != "pixels"}
    arrays |= digits.whitening.arrays()
    info = {**real_set.artifact.info, "whitening": "zca"}
    path = tmp_path / "old.zarr.zip"
    store.write(path, distilled.KIND, arrays, settings={}, info=info)
    with pytest.raises(
        ArtifactError, match=f"^{path}: an earlier apm wrote it.*: delete {path} .*"
    ):
        apm_core.load(path)


def test_100_images_of_cifar10s_size_take_less_than_3_mb(real_set, tmp_path):
    rng = np.random.default_rng(0)
    side = 3 * 32 * 32
    whitening = Whitening(
        "zca",
        mean=torch.zeros(side),
        matrix=torch.from_numpy(rng.normal(size=(side, side)).astype(np.float32)),
    )
    file = WhiteningFile(tmp_path / "whitening", store.content_hash(whitening.arrays()))
    given = replace(
        real_set,
        stored=torch.from_numpy(rng.normal(size=(100, 3, 32, 32)).astype(np.float32)),
        classes=torch.arange(100) % 10,
        labels=Labels.of(torch.from_numpy(rng.normal(size=(100, 10)).astype(np.float32))),
        pixels=torch.from_numpy(rng.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)),
        whitening_file=file,
    )
    path = tmp_path / "set.zarr.zip"
    distilled.save(path, given, settings={}, inputs={}, info={})
    assert path.stat().st_size < 3e6
    assert torch.equal(apm_core.load(path).images, given.images)


def test_a_recipe_of_another_version_is_refused(real_set, tmp_path):
    recipe = real_set.recipe.to_dict() | {"unheard_of": 1}
    path = real_set.artifact.path
    found = store.read(path, distilled.KIND)
    info = dict(found.info) | {"recipe": recipe}
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/a.zarr.zip"
    store.write(other, distilled.KIND, found.arrays, settings=found.settings, info=info)
    with pytest.raises(ArtifactError, match=r"another apm wrote its recipe \(.*'unheard_of'"):
        distilled.load(other)
