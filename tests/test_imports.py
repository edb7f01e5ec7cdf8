"""Sets of others become sets of ours, and entries of a run."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from apm_core import distilled
from apm_core.data.labels import Labels
from apm_core.data.whitening import Whitening
from apm_core.data.whitening_file import keep
from apm_core.errors import ApmError, ArtifactError, ConfigError, DataError
from apm_core.imports.foreign import Meaning, entry, import_set
from apm_core.runtime import store
from apm_core.runtime.run import Run
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import DistillSettings
from apm_core.settings.training import RecipeSettings
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge

REPO = Path(__file__).parents[1]
NAMES = {"pt": "a.pt", "npz": "a.npz", "tensors": "a", "folder": "a"}
PIXELS = Meaning(space="pixels")


def exported(given, kind, folder) -> Path:
    given.export(kind, folder / NAMES[kind])
    return folder / NAMES[kind]


def imported(path, folder, meaning=Meaning()):  # noqa: B008 - frozen
    return import_set(path, folder / "sets/theirs.zarr.zip", meaning)


def hard(given):
    """The set with class indices for labels."""
    recipe = replace(given.recipe, loss="ce")
    return replace(given, labels=Labels.of(given.classes), recipe=recipe)


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("kind", NAMES)
def test_what_was_exported_comes_back(kind, labels, real_set, tmp_path):
    given = real_set if labels == "soft" else hard(real_set)
    found, ordered = imported(exported(given, kind, tmp_path), tmp_path), given.select()
    if kind == "folder":  # 8 bits
        assert found.stored.dtype == torch.uint8 and torch.equal(found.stored, ordered.pixels)
    else:
        assert torch.equal(found.images, ordered.images)
    for name in ("targets", "classes", "pixels"):
        assert torch.equal(getattr(found, name), getattr(ordered, name)), name
    assert found.recipe == given.recipe and found.class_names == given.class_names
    assert torch.equal(found.whitening.matrix, given.whitening.matrix)
    assert found.artifact.info["made_by"]["method"] == "random"


def test_tiles_and_small_labels_come_back_decoded(real_set, tmp_path):
    labels = Labels.of(real_set.targets, bits=16, top=3)
    tiled = replace(
        real_set,
        stored=real_set.pixels[:10].float() / 255,
        pixels=real_set.pixels[:10],
        tiles=2,
        labels=labels,
        classes=torch.arange(10).repeat_interleave(4),
    )
    path = exported(tiled, "pt", tmp_path)
    beside = json.loads((tmp_path / "a.pt.json").read_text())
    assert beside["images"]["tiles"] == 2 and beside["bytes"]["images"] == 10 * 64 * 4
    found = imported(path, tmp_path)
    assert found.tiles == 1 and torch.equal(found.images, tiled.images)
    assert torch.equal(found.targets, labels.targets)


@pytest.fixture
def theirs(tmp_path):
    """A set as others publish it, without a word beside it: two classes of three colours."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(torch.nn.Parameter((images - 0.5) / 0.25), folder / "images.pt")
    torch.save(torch.tensor([0, 0, 1, 1]), folder / "labels.pt")
    torch.save(torch.tensor(0.0123, requires_grad=True), folder / "lr.pt")
    return folder, images


def test_a_normalisation_that_a_person_states_is_undone(theirs, tmp_path):
    folder, images = theirs
    meaning = Meaning(space="normalised", mean=[0.5] * 3, std=[0.25] * 3)
    found = imported(folder, tmp_path, meaning)
    torch.testing.assert_close(found.whitening.invert(found.images), images)
    assert torch.equal(found.pixels, (images * 255).round().to(torch.uint8))
    assert found.recipe.lr == pytest.approx(0.0123) and found.recipe.loss == "ce"
    assert found.class_names == ("0", "1") and found.targets.tolist() == [0, 0, 1, 1]
    assert imported(folder, tmp_path, replace(meaning, lr=0.5)).recipe.lr == 0.5


@pytest.mark.parametrize(
    ("meaning", "message"),
    [
        (Meaning(), "nothing says what space its images are in: add --space pixels, --space"),
        (Meaning(space="normalised"), "--mean: none given: --space normalised needs 3"),
        (Meaning(space="normalised", mean=[0.5]), "--mean: 1 given: --space normalised needs 3"),
        (Meaning(space="normalised", mean=[0.5] * 3, std=[1, 0, 1]), "--std: 0 is not above 0"),
        (Meaning(space="whitened"), "--space whitened: needs --whitening FILE with the ZCA"),
        (replace(PIXELS, loss="l1"), "the loss l1 does not go with labels that are class indices"),
    ],
)
def test_what_the_files_do_not_say_is_asked_for(meaning, message, theirs, tmp_path):
    with pytest.raises(ConfigError, match=message):
        imported(theirs[0], tmp_path, meaning)
    assert not (tmp_path / "sets").exists()


def test_soft_labels_need_their_loss_and_probabilities_become_logits(theirs, tmp_path):
    folder, _ = theirs
    soft = torch.tensor([[2.0, -1], [3, 0], [-2, 1], [0, 4]])
    torch.save(soft, folder / "labels.pt")
    with pytest.raises(ConfigError, match="nothing says what loss its soft labels are for"):
        imported(folder, tmp_path, PIXELS)
    meaning = replace(PIXELS, loss="soft_ce")
    found = imported(folder, tmp_path, meaning)
    assert torch.equal(found.targets, soft) and found.classes.tolist() == [0, 0, 1, 1]
    torch.save(soft.softmax(1), folder / "labels.pt")
    found = imported(folder, tmp_path, meaning)
    torch.testing.assert_close(found.targets.softmax(1), soft.softmax(1))
    torch.save(torch.zeros(4, 3), folder / "labels.pt")
    with pytest.raises(DataError, match="not the same number of each of 3 classes"):
        imported(folder, tmp_path, meaning)


def test_a_zca_is_that_of_a_file(real_set, tmp_path):
    images, targets = real_set.select().images, real_set.select().targets
    torch.save((images, targets), tmp_path / "mtt.pt")
    file = real_set.whitening_file.path
    found = imported(
        tmp_path / "mtt.pt", tmp_path, Meaning(space="whitened", whitening=file, loss="l1")
    )
    assert torch.equal(found.pixels, real_set.select().pixels)
    torch.save((images.repeat(1, 3, 1, 1), targets), tmp_path / "mtt.pt")
    with pytest.raises(DataError, match=r"mtt\.pt: whitening 'zca' was fitted to 64 values"):
        imported(
            tmp_path / "mtt.pt", tmp_path, Meaning(space="whitened", whitening=file, loss="l1")
        )


def test_class_folders_of_others_have_class_indices(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), np.uint8)
    for number, name in enumerate(("new000/a.png", "new000/b.png", "new001/a.png", "new001/b.png")):
        path = tmp_path / "theirs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    found = imported(tmp_path / "theirs", tmp_path)
    assert found.class_names == ("new000", "new001") and found.targets.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(found.images_rgb(), pixels)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


def hostile(folder):
    """Files that are no sets, by name."""
    images, good = torch.zeros(4, 3, 8, 8), io.BytesIO()
    torch.save([images, torch.zeros(4)], good)
    broken = bytearray(good.getvalue())
    broken[len(broken) // 2] ^= 255
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (folder / "cut.pt").write_bytes(good.getvalue()[:700])
    (folder / "flipped.pt").write_bytes(broken)
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text.csv").write_text("a,b")
    (folder / "nothing").mkdir()
    np.savez(folder / "object.npz", images=np.array([Evil()], dtype=object), labels=np.zeros(1))
    np.savez(folder / "names.npz", x=np.zeros(1))
    for name, value in {
        "dict": {"images": images},
        "one": images,
        "flat": [torch.zeros(4, 192), torch.zeros(4)],
        "wide": [torch.zeros(4, 3, 8, 9), torch.zeros(4)],
        "few": [images, torch.zeros(3)],
        "none": [torch.zeros(0, 3, 8, 8), torch.zeros(0)],
        "nan": [images * torch.nan, torch.zeros(4)],
        "half": [images, torch.full((4,), 0.5)],
        "negative": [images, torch.tensor([0, 1, -1, 0])],
        "text": ["a", "b"],
        "sparse": [images.to_sparse(), torch.zeros(4)],
        "complex": [images.to(torch.complex64), torch.zeros(4)],
        "meta": [images.to("meta"), torch.zeros(4)],
    }.items():
        torch.save(value, folder / f"{name}.pt")
    return sorted(folder.iterdir())


def test_files_that_are_no_sets_are_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = [*hostile(tmp_path / "in"), tmp_path / "in/missing.pt"]
    assert len(paths) == 22
    for path in paths:
        with pytest.raises(ApmError) as caught:
            imported(path, tmp_path, PIXELS)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value), caught.value
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "sets").exists()


@pytest.fixture
def source(real_set, tmp_path):
    """The file of an imported set of four digits per class."""
    imported(exported(real_set, "tensors", tmp_path), tmp_path)
    return tmp_path / "sets/theirs.zarr.zip"


def shards(source, digits, cpu, folder, *, ipc=4, shards=1, tiles=1):
    settings = DistillSettings(
        method="imported", options={"file": str(source)}, ipc=ipc, tiles=tiles
    )
    paths = [folder / f"{number}.zarr.zip" for number in range(shards)]
    for number, path in enumerate(paths):
        distill_shard(path, settings, number, digits, None, Run(cpu), shards=shards)
    return paths


@pytest.mark.parametrize("count", [1, 2])
def test_an_imported_set_is_an_entry(
    count, source, real_set, merge_settings, digits, cpu, tmp_path
):
    paths = shards(source, digits, cpu, tmp_path, ipc=4 // count, shards=count)
    stated = store.read(paths[0], "shard").inputs
    assert stated["source"] == store.content_of(source)
    settings = merge_settings.changed({"entry": "theirs", "labels": "own"})
    merge(tmp_path / "set.zarr.zip", settings, paths, digits, None, cpu)
    found = distilled.load(tmp_path / "set.zarr.zip").select()
    assert torch.equal(found.images, real_set.select().images)
    assert torch.equal(found.targets, real_set.select().targets)


def test_another_whitening_is_undone_and_the_runs_is_done(source, real_set, digits, cpu, tmp_path):
    whitening = Whitening("channel", mean=torch.tensor([0.3]), std=torch.tensor([0.4]))
    pixels = real_set.whitening.invert(real_set.select().images)
    other = replace(
        real_set.select(),
        stored=whitening.apply(pixels),
        whitening_file=keep(source.with_name("c"), whitening),
    )
    distilled.save(source.with_name("other"), other, settings={}, inputs={}, info={})
    (path,) = shards(source.with_name("other"), digits, cpu, tmp_path)
    images = store.read(path, "shard").arrays["images"]
    np.testing.assert_allclose(images, real_set.select().images, atol=1e-4)


def test_a_set_that_does_not_fit_the_run_is_refused_in_one_line(
    source, real_set, digits, cpu, tmp_path
):
    def refused(message, path=source, kind=DataError, **sizes):
        with pytest.raises(kind, match=f"^{path}: {message}") as caught:
            shards(path, digits, cpu, tmp_path, **sizes)
        assert "\n" not in str(caught.value)

    def written(name, **changes):
        path = source.with_name(name)
        changed = replace(real_set.select(), whitening_file=None, **changes)
        distilled.save(path, changed, settings={}, inputs={}, info={})
        return path

    refused("4 images of class '0', the run has 2 of each: set ipc: 4", ipc=2)
    refused("4 images of class '0', the run has 8 of each", ipc=4, shards=2)
    refused("4 images of class '0', the run has 16 of each", tiles=2)
    turned = written("turned", class_names=real_set.class_names[::-1])
    refused("its classes are in another order, '9' first, than those of the run", turned)
    refused(
        "11 classes, the data set of the run has 10",
        written("more", class_names=tuple(map(str, range(11)))),
    )
    wide = torch.zeros(40, 1, 9, 9)
    wide = written("wide", stored=wide, pixels=wide.to(torch.uint8))
    refused("9x9 images with 1 channels, the data set of the run has 8x8", wide)
    missing = source.with_name("missing")
    refused("there is no such file", missing, ArtifactError)
    cut = Path(shutil.copy(source, source.with_name("cut")))
    cut.write_bytes(cut.read_bytes()[:-2000])
    refused("the file is damaged", cut, ArtifactError)


def test_a_recipe_of_another_kind_of_labels_is_refused(
    source, merge_settings, digits, cpu, tmp_path
):
    paths = shards(source, digits, cpu, tmp_path)
    settings = merge_settings.changed(
        {"entry": "theirs", "labels": "own", "recipe": {"loss": "ce"}}
    )
    with pytest.raises(ConfigError, match=r"entry theirs: the loss ce does not go with .* logits"):
        merge(tmp_path / "set.zarr.zip", settings, paths, digits, None, cpu)


def test_the_entry_of_a_set_states_its_recipe(source, real_set):
    stated = entry(distilled.load(source), source)
    other = {"epochs": 9, "lr": 9, "optimizer": "adam", "augment": "flip", "momentum": 0.5}
    settings = RunSettings.of({"distill": {"methods": [stated]}, "recipe": other})
    changes = settings.entries["theirs"].settings.recipe.model_dump(exclude_none=True)
    recipe = type(real_set.recipe).of(RecipeSettings().changed(changes))
    assert recipe == real_set.recipe
    assert settings.entries["theirs"].settings.files == [source.as_posix()]


def snakemake(folder, *arguments):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "-s", str(REPO / "Snakefile"), "--cores", "1"),
            *("--configfile", str(REPO / "tests/tiny.yaml"), "run.yaml", *arguments),
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.workflow
def test_the_file_of_an_imported_set_is_an_input_of_its_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = {"name": "theirs", "method": "imported", "file": "sets/theirs.zarr.zip"}
    methods = ["random_hard", {**theirs, "recipe": {"loss": "ce"}}]
    Path("run.yaml").write_text(yaml.safe_dump({"distill": {"methods": methods}}))
    ours, target = (f"results/digits_ipc10.{name}.zarr.zip" for name in ("random_hard", "theirs"))
    code, output = snakemake(tmp_path, "--", ours)
    assert code == 0, output
    code, output = snakemake(tmp_path, "--", target)
    message = "sets/theirs.zarr.zip: there is no such file, and the entry theirs takes its images"
    assert code != 0 and message in output
    distilled.load(ours).export("npz", "a.npz")
    import_set(Path("a.npz"), Path(theirs["file"]), Meaning())
    code, output = snakemake(tmp_path, "--", target)
    assert code == 0, output
    found = distilled.load(target)
    assert torch.equal(found.images, distilled.load(ours).images)
    assert found.artifact.info["method"] == "imported"
    assert "Nothing to be done" in snakemake(tmp_path, "-n", "--", target)[1]
    with np.load("a.npz") as arrays:
        changed = dict(arrays) | {"images": arrays["images"] * 0.5}
    np.savez("a.npz", **changed)
    import_set(Path("a.npz"), Path(theirs["file"]), Meaning())
    code, output = snakemake(tmp_path, "--", target)
    assert code == 0 and "rule distill" in output and "rule prepare" not in output
    assert torch.equal(distilled.load(target).images, found.images * 0.5)


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_some_classes_keep_their_numbers(labels, real_set, tmp_path):
    given = (real_set if labels == "soft" else hard(real_set)).select(classes=["1", "3"])
    found = imported(exported(given, "folder", tmp_path), tmp_path)
    assert torch.equal(found.classes, given.classes) and torch.equal(found.targets, given.targets)
    assert found.class_names == given.class_names


@pytest.mark.parametrize("further", [("", ""), (",who", ",me")])
def test_class_folders_with_a_table_of_classes_have_class_indices(further, tmp_path):
    rows = [f"file,class{further[0]}"]
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / "0.png")
        rows.append(f"{name}/0.png,{name}{further[1]}")
    (tmp_path / "pets/labels.csv").write_text("\n".join(rows))
    found = imported(tmp_path / "pets", tmp_path)
    assert found.targets.tolist() == [0, 1] and found.class_names == ("cat", "dog")


def test_what_takes_code_to_load_is_named(tmp_path):
    torch.save([np.zeros(3), np.zeros(3)], tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match=r"holds numpy.* takes code to load: get the file"):
        imported(tmp_path / "a.pt", tmp_path)
