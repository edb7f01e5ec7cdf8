"""The numbers that a distilled set is stored in: uint8 pixels, shorter and fewer logits."""

import numpy as np
import pytest
import torch

from apm_core import distilled
from apm_core.data import whitening_file
from apm_core.data.labels import Labels
from apm_core.data.tiles import Tiles
from apm_core.runtime.run import Run
from apm_core.settings.plan import Plan
from apm_core.settings.product import Product
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import DistillSettings, MergeSettings
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge


def logits(count: int = 6, classes: int = 10) -> torch.Tensor:
    return 4 * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


def test_all_logits_are_stored_as_they_are_or_in_half_the_bytes():
    given = logits()
    whole, half = Labels.of(given), Labels.of(given, bits=16)
    assert torch.equal(whole.targets, given) and torch.equal(half.targets, given.half().float())
    assert (whole.bytes, half.bytes) == (6 * 10 * 4, 6 * 10 * 2)
    classes = torch.tensor([3, 1])
    assert torch.equal(Labels.of(classes, bits=16, top=1).targets, classes)


@pytest.mark.parametrize("bits", [16, 32])
def test_the_largest_logits_and_the_mean_of_the_others(bits):
    given = logits()
    labels = Labels.of(given, bits=bits, top=3)
    assert labels.bytes == 6 * (3 * (bits // 8 + 2) + bits // 8)
    tolerance = 1e-3 if bits == 16 else 1e-6
    for found, row in zip(labels.targets.numpy(), given.numpy(), strict=True):
        largest = np.argsort(row)[-3:]
        others = np.setdiff1d(np.arange(10), largest)
        np.testing.assert_allclose(found[largest], row[largest], rtol=tolerance)
        np.testing.assert_allclose(found[others], row[others].mean(), rtol=tolerance, atol=1e-3)
    assert Labels.of(given, top=10).places is None


def test_labels_are_written_read_and_selected():
    labels = Labels.of(logits(), bits=16, top=2)
    again = Labels.from_arrays({"images": np.zeros(2), **labels.arrays()}, 10)
    assert torch.equal(again.targets, labels.targets)
    rows = torch.tensor([4, 0])
    assert torch.equal(again.select(rows).targets, labels.targets[rows])
    whole = Labels.from_arrays(Labels.of(logits()).arrays(), 10)
    assert torch.equal(whole.select(rows).targets, logits()[rows])


@pytest.mark.parametrize("tiles", [1, 2])
def test_a_set_of_uint8_pixels(tmp_path, digits, teachers, cpu, recipe_settings, tiles):
    shard, path = tmp_path / "0.zarr.zip", tmp_path / "digits_ipc2.random.zarr.zip"
    settings = DistillSettings(method="random", options={}, ipc=2, tiles=tiles)
    distill_shard(shard, settings, 0, digits, None, Run(cpu))
    product = Product(pixels="uint8", label_bits=16, top=4)
    settings = MergeSettings(entry="random", labels="mean", recipe=recipe_settings, product=product)
    found = merge(path, settings, [shard], digits, teachers, cpu, "digits.whitening.zarr.zip")
    whitening_file.write(path.with_name("digits.whitening.zarr.zip"), digits)
    assert found.arrays["images"].dtype == np.uint8 and "pixels" not in found.arrays
    given = distilled.load(path)
    count = 20 * tiles**2
    assert given.image_bytes == 20 * 64 and given.label_bytes == count * (4 * 4 + 2)
    form = Tiles(tiles, digits.whitening)
    images, _ = digits.shard(2 * tiles**2, 0)
    expected = (255 * digits.whitening.invert(images)).round() if tiles == 1 else None
    if expected is not None:  # real pixels are whole numbers
        assert torch.equal(given.pixels.float(), expected)
        torch.testing.assert_close(given.images, images, rtol=0, atol=1e-4)
    assert torch.equal(given.images, form.decode(given.pixels.float() / 255))
    assert given.images.shape == (count, 1, 8, 8)
    assert given.images_rgb().shape == (count, 8, 8, 3)
    # the teachers saw the pixels that are given away
    labelled = Labels.of(teachers.logits(None, given.images, cpu.exact()), bits=16, top=4)
    torch.testing.assert_close(given.targets, labelled.targets, rtol=1e-2, atol=1e-2)
    assert len(given.select(ipc=1).targets) == count // 2


def test_an_entry_has_a_form_of_its_own():
    small = {"name": "small", "method": "random", "product": {"pixels": "uint8"}}
    config = {"distill": {"methods": ["random", small], "product": {"label_bits": 16}}}
    plan = Plan(RunSettings.of(config))
    assert plan.merge("random").product == Product(label_bits=16)
    assert plan.merge("small").product == Product(pixels="uint8", label_bits=16)
    assert "product" not in plan.distill("small").options
