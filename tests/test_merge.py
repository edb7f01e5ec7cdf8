"""Shards become one set, under labels that no method can choose."""

import numpy as np
import pytest
import torch

from apm_core import distilled
from apm_core.data import whitening_file
from apm_core.errors import ArtifactError
from apm_core.runtime import store, streams
from apm_core.runtime.run import Run
from apm_core.settings.stages import Demands, DistillSettings
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge
from apm_core.stages.prepare import prepare
from apm_core.training.recipe import Recipe


def test_shards_follow_each_other_in_the_order_given(
    real_set, random_files, merge_settings, teachers, digits, cpu, tmp_path
):
    images, classes = zip(*(digits.shard(2, index) for index in range(2)), strict=True)
    assert torch.equal(real_set.images, torch.cat(images))
    assert torch.equal(real_set.classes, torch.cat(classes))
    turned = tmp_path / "turned"
    merge(turned, merge_settings, random_files[::-1], digits, teachers, cpu)
    assert torch.equal(distilled.load(turned).images, torch.cat(images[::-1]))


def test_one_teacher_labels_the_set(real_set, teachers, cpu):
    chosen = int(torch.randint(4, (), generator=streams.generator(0, "labels")))
    torch.testing.assert_close(real_set.targets, teachers.logits(chosen, real_set.images, cpu))
    others = [teachers.logits(i, real_set.images, cpu) for i in range(4) if i != chosen]
    assert not any(torch.allclose(real_set.targets, other, atol=1e-3) for other in others)


def test_the_mean_of_the_pool_labels_the_set(
    real_set, random_files, merge_settings, teachers, digits, cpu, tmp_path
):
    settings = merge_settings.changed({"labels": "mean"})
    found = merge(tmp_path / "a", settings, random_files, digits, teachers, cpu)
    each = torch.stack([teachers.logits(index, real_set.images, cpu) for index in range(4)])
    np.testing.assert_allclose(found.arrays["targets"], each.mean(0), rtol=1e-5, atol=1e-5)


def test_teachers_of_an_early_epoch_label_the_set(
    real_set, random_files, merge_settings, teachers, digits, cpu, tmp_path
):
    settings = merge_settings.changed({"labels": "mean", "label_epoch": 1})
    found = merge(tmp_path / "a", settings, random_files, digits, teachers, cpu)
    total = torch.zeros(40, 10)
    for group in teachers.artifacts:
        for kept in group.arrays["snapshots"][:, 1]:
            total += teachers.net.at(torch.from_numpy(kept), real_set.images)
    np.testing.assert_allclose(found.arrays["targets"], total.detach() / 4, rtol=1e-5, atol=1e-5)


def test_labels_do_not_depend_on_the_entry_but_on_the_seed(
    real_set, random_files, merge_settings, teachers, digits, cpu, tmp_path
):
    def targets(**changed) -> np.ndarray:
        settings = merge_settings.changed(changed)
        return merge(tmp_path / "a", settings, random_files, digits, teachers, cpu).arrays[
            "targets"
        ]

    np.testing.assert_array_equal(targets(entry="apm"), real_set.targets)
    by_seed = {targets(seed=seed).tobytes() for seed in range(8)}
    assert 2 <= len(by_seed) <= 4


def test_a_method_with_labels_of_its_own_keeps_them(
    merge_settings, random_files, digits, cpu, tmp_path
):
    paths = []
    for number, path in enumerate(random_files):
        shard = store.read(path, "shard")
        arrays = {**shard.arrays, "targets": np.full((20, 10), number, dtype=np.float32)}
        paths.append(tmp_path / str(number))
        store.write(
            paths[-1],
            "shard",
            arrays,
            settings=shard.settings,
            inputs={"data": digits.artifact},
            info={**shard.info, "peak_memory_bytes": 5 + number},
        )
    settings = merge_settings.changed({"labels": "own"})
    found = merge(tmp_path / "set", settings, paths, digits, None, cpu)
    assert found.arrays["targets"][:, 0].tolist() == [0] * 20 + [1] * 20
    assert found.info["peak_memory_bytes"] == 6


def test_the_set_carries_its_recipe_costs_and_history(
    real_set, random_files, merge_settings, recipe_settings, teachers, digits
):
    shards = [store.read(path, "shard") for path in random_files]
    assert real_set.recipe == Recipe.of(recipe_settings)
    assert real_set.artifact.settings == merge_settings.to_dict()
    assert real_set.artifact.inputs == {
        "data": digits.artifact.content,
        **{f"teachers{n}": group.content for n, group in enumerate(teachers.artifacts)},
        **{f"shard{n}": shard.content for n, shard in enumerate(shards)},
    }
    info = real_set.artifact.info
    assert (info["entry"], info["method"]) == ("random", "random")
    assert info["real_bytes"] == digits.artifact.arrays["train_images"].nbytes
    assert info["teacher_seconds"] == sum(g.info["seconds"] for g in teachers.artifacts)
    assert info["distill_seconds"] == sum(shard.info["seconds"] for shard in shards)
    assert info["peak_memory_bytes"] == max(s.info["peak_memory_bytes"] for s in shards)
    assert (info["device"], info["precision"]) == (shards[0].info["device"], "float32")


def test_the_set_names_its_whitening_and_holds_its_pixels(real_set, digits, tmp_path):
    written = whitening_file.write(tmp_path / "a", digits)
    assert written.inputs == {"data": digits.artifact.content}
    assert real_set.artifact.info["whitening"] == {
        "file": "digits.whitening.zarr.zip",
        "content": written.content,
    }
    assert set(real_set.artifact.arrays) == {"images", "classes", "targets", "pixels"}
    assert torch.equal(real_set.pixels, digits.whitening.to_uint8(real_set.images))


def test_the_content_of_a_set_does_not_depend_on_where_it_lies(
    real_set, random_files, merge_settings, teachers, digits, cpu, tmp_path
):
    found = merge(tmp_path / "a", merge_settings, random_files, digits, teachers, cpu, "b")
    assert found.content == real_set.artifact.content
    assert found.info["whitening"] == {**real_set.artifact.info["whitening"], "file": "b"}


def test_plain_pixels_need_no_whitening_file(merge_settings, digits_settings, cpu, tmp_path):
    settings = digits_settings.changed({"images": {"whitening": "none"}})
    data = prepare(tmp_path / "data", settings, demands=Demands())
    shard = DistillSettings(method="random", options={}, ipc=1)
    distill_shard(tmp_path / "shard", shard, 0, data, None, Run(cpu))
    settings = merge_settings.changed({"labels": "classes", "recipe": {"loss": "ce"}})
    merge(tmp_path / "set", settings, [tmp_path / "shard"], data, None, cpu)
    found = distilled.load(tmp_path / "set")
    assert found.artifact.info["whitening"] is None and found.whitening.kind == "none"
    assert torch.equal(found.whitening.apply(found.pixels), found.images)
    empty = whitening_file.write(tmp_path / "whitening", data)  # which the workflow makes of any
    assert store.read(empty.path, "whitening").content == empty.content


def test_shards_of_other_settings_are_refused(
    random_files, merge_settings, teachers, digits, cpu, tmp_path
):
    settings = DistillSettings(method="random", options={}, ipc=3)
    other = tmp_path / "other"
    distill_shard(other, settings, 1, digits, None, Run(cpu))
    message = f"{other}: was distilled with other settings than {random_files[0]}: delete {other}"
    with pytest.raises(ArtifactError, match=message):
        merge(tmp_path / "a", merge_settings, [random_files[0], other], digits, teachers, cpu)


def test_shards_of_other_data_are_refused(
    random_files, merge_settings, teachers, digits_settings, cpu, tmp_path
):
    data = prepare(tmp_path / "d", digits_settings.changed({"seed": 1}), demands=Demands())
    with pytest.raises(ArtifactError, match="this shard was made from another data than"):
        merge(tmp_path / "a", merge_settings, random_files, data, teachers, cpu)
    assert not (tmp_path / "a").exists()
