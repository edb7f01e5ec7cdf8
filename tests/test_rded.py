"""RDED: views and choice against plain loops, shards, tiles, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from apm_core.data.prepared import PreparedData
from apm_core.data.tiles import Tiles
from apm_core.errors import ConfigError, DataError
from apm_core.methods.selection.rded import boxes, view
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.runtime.run import Run
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from apm_core.stages.distill import distill_shard
from apm_core.training.teacher_pool import TeacherPool

SIDE = 8  # of a digit
FEW = {"rded": {"candidates": 9, "crops": 3}}


def plan_of(methods: dict[str, Any] = FEW, **config: Any) -> Plan:
    base = {"ipc": 2, "distill": {"methods": ["rded"]}}
    return Plan(RunSettings.of({**base, "methods": methods, **config}))


@pytest.fixture
def stored(tmp_path, digits, teachers, cpu):
    """Makes a shard as a job of the pipeline does; returns its images (10, ipc, 1, S, S)."""

    def run(plan: Plan, number: int = 0, *, data=digits, pool=teachers, compute=cpu) -> Tensor:
        path = tmp_path / "shard.zarr.zip"
        found = distill_shard(path, plan.distill("rded"), number, data, pool, Run(compute))
        tiles = plan.distill("rded").tiles
        per_class = plan.shard_ipc * tiles**2
        assert found.arrays["classes"].tolist() == np.repeat(range(10), per_class).tolist()
        assert "targets" not in found.arrays
        return torch.from_numpy(found.arrays["images"]).view(10, -1, 1, SIDE, SIDE)

    return run


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pillow's bilinear filter, which is antialiased, on one channel of floats."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def by_hand(data: PreparedData, modules: list[nn.Module], c: int, tiles: int) -> list[np.ndarray]:
    """The best view of each of the nine candidates of class `c`, in [0, 1], the best first: one
    image, one view, one teacher at a time.
    """
    images, found = data.artifact.arrays["train_images"][data.order(c)[:9], 0], []
    mean, matrix = (getattr(data.whitening, name).double().numpy() for name in ("mean", "matrix"))
    for number, image in enumerate(images):
        tries = []
        for crop in range(3):
            random = streams.generator(0, "views", c, crop)
            u, v, w = torch.rand(9, 3, generator=random)[number].tolist()
            size = round(math.sqrt((0.08 + 0.92 * u) * SIDE**2))
            top, left = math.floor(v * (SIDE - size + 1)), math.floor(w * (SIDE - size + 1))
            cut = image[top : top + size, left : left + size].astype(np.float32) / 255
            tile = resized(cut, SIDE // tiles)
            seen = resized(tile, SIDE).astype(np.float64)
            white = torch.from_numpy((seen.flatten() - mean) @ matrix).view(1, 1, SIDE, SIDE)
            losses = []
            for module in modules:
                powers = np.exp(module(white)[0].detach().numpy())
                losses.append(-math.log(powers[c] / powers.sum()))
            tries.append((np.mean(losses), tile))
        found.append(min(tries, key=lambda one: one[0]))
    return [tile for _, tile in sorted(found, key=lambda one: one[0])]


class Bright(nn.Module):
    """A teacher to whom class c is a matter of how bright the image is, for odd c how dark."""

    def __init__(self, data: PreparedData) -> None:
        super().__init__()
        signs = torch.tensor([1.0, -1.0]).repeat(5)
        self.rows = nn.Parameter(signs[:, None] * torch.arange(1, 11)[:, None] / 10)
        self.register_buffer("inverse", data.whitening.inverse)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.inverse.to(x)).mean(dim=1, keepdim=True) @ self.rows.T.to(x)


def pool_of(module: nn.Module, teachers: TeacherPool) -> TeacherPool:
    net = FlatNet(module)
    return TeacherPool(teachers.spec, net.snapshot()[None], net, teachers.artifacts)


def doubled(pool: TeacherPool, count: int) -> list[nn.Module]:
    """The first networks of a pool, in float64."""
    modules = []
    for member in range(count):
        modules.append(pool.spec.build())
        FlatNet(modules[-1]).load(pool.vectors[member])
    return [module.double().eval() for module in modules]


@pytest.mark.parametrize(("tiles", "networks"), [(1, 1), (1, 3), (2, 1)])
def test_the_kept_views_are_those_of_a_plain_loop(stored, digits, teachers, tiles, networks):
    plan = plan_of(
        {"rded": {**FEW["rded"], "networks": networks, "tiles": tiles}}, ipc=2 if tiles == 2 else 8
    )
    found, modules = stored(plan), doubled(teachers, networks)
    for c in (0, 7):
        expected = by_hand(digits, modules, c, tiles)
        tile = Tiles(tiles, digits.whitening)
        pixels = found[c] if tiles > 1 else digits.whitening.invert(found[c])
        cut = tile._cut(pixels)[:, 0].numpy()
        assert len(cut) == 8
        np.testing.assert_allclose(cut, np.stack(expected[:8]), atol=2e-4)  # of the whitening


def test_the_teacher_decides(stored, digits, teachers):
    """Teachers of opposite taste keep opposite views, and each the views that it likes best."""
    bright = Bright(digits)
    found = digits.whitening.invert(stored(plan_of(), pool=pool_of(bright, teachers)).flatten(0, 1))
    means = found.mean(dim=(1, 2, 3)).view(10, 2)
    for c in range(10):
        expected = by_hand(digits, [bright], c, 1)
        np.testing.assert_allclose(means[c], [one.mean() for one in expected[:2]], atol=1e-4)
    sign = torch.tensor([1.0, -1.0]).repeat(5)
    assert ((means[:, 0] - means[:, 1]) * sign >= 0).all()
    assert means[::2].mean() > means[1::2].mean() + 0.2


def test_boxes_have_every_size_and_place():
    uniform = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0))
    top, left, size = np.array(boxes(uniform, 32)).T
    assert min(top.min(), left.min()) == 0
    assert max((top + size).max(), (left + size).max()) == 32
    assert (size.min(), size.max()) == (9, 32)  # sqrt(0.08) of 32 is 9.05
    assert abs((size**2).mean() / 32**2 - 0.54) < 0.01  # deviation of the mean: 0.002
    small = size == 16
    assert set(top[small]) == set(left[small]) == set(range(17))
    assert abs(np.corrcoef(top[small], left[small])[0, 1]) < 0.15
    one = boxes(torch.tensor([[0.0, 0.999, 0.999]]), 2)
    assert one == [(1, 1, 1)]


@pytest.mark.parametrize("side", [8, 4])
def test_a_view_is_the_square_resized_without_aliasing(side):
    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    squares = [(0, 0, 8), (2, 5, 3), (7, 0, 1)]
    found = view(pixels, squares, side)
    assert found.shape == (3, 3, side, side)
    for one, image, (top, left, size) in zip(found, pixels.numpy(), squares, strict=True):
        cut = image[:, top : top + size, left : left + size]
        expected = [resized(np.ascontiguousarray(channel), side) for channel in cut]
        np.testing.assert_allclose(one.numpy(), np.stack(expected), atol=1e-6)
    torch.testing.assert_close(view(pixels, [(0, 0, 8)] * 3, 8), pixels)


@pytest.mark.parametrize("tiles", [1, 2])
def test_shards_share_no_image_and_a_larger_set_contains_the_smaller(stored, tiles):
    options = {"rded": {"candidates": 30, "crops": 2, "tiles": tiles}}
    whole = stored(plan_of(options, ipc=4))
    two = plan_of(options, ipc=4, distill={"methods": ["rded"], "shards": 2})
    parts = [stored(two, number) for number in range(2)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(stored(plan_of(options, ipc=1)), whole[:, :1], rtol=0, atol=1e-5)
    assert len(torch.unique(whole.flatten(0, 1), dim=0)) == 40


def test_neither_precision_nor_the_test_split_has_a_part(stored, digits):
    arrays = {key: digits.artifact.arrays[key] for key in ("train_images", "train_labels")}
    blind = PreparedData(replace(digits.artifact, arrays=arrays), digits.whitening)
    bf16 = Compute(torch.device("cpu"), "bf16", compile="off")
    assert torch.equal(stored(plan_of(), data=blind, compute=bf16), stored(plan_of()))


def test_the_seed_decides_the_views(stored):
    assert not torch.equal(stored(plan_of(seed=1)), stored(plan_of()))


def test_labels_are_those_of_the_pool_or_the_classes():
    plan = plan_of(distill={"methods": ["rded", "rded_hard"]})
    assert plan.distill("rded") == plan.distill("rded_hard")
    assert (plan.label_pool("rded"), plan.label_pool("rded_hard")) == ("teachers", None)
    hard = plan.merge("rded_hard")
    assert (hard.labels, hard.recipe.loss) == ("classes", "ce")


def test_what_cannot_be_is_refused_in_one_line(stored):
    few = r"^config: methods\.rded\.candidates: 9 are fewer than the 12 images of a class "
    with pytest.raises(ConfigError, match=few + r"\(ipc: 12\): raise it, or lower ipc or tiles$"):
        plan_of(ipc=12)
    tiled = {"methods": ["rded"], "tiles": 2}
    with pytest.raises(ConfigError, match=few + r"\(ipc: 3 x 2 x 2 tiles\): raise it"):
        plan_of(ipc=3, distill=tiled)
    for key in ("candidates", "crops", "networks"):
        with pytest.raises(ConfigError, match=rf"methods\.rded\.{key}: [^\n]*0"):
            plan_of({"rded": {key: 0}})
    many = plan_of({"rded": {"candidates": 1000, "crops": 1}}, ipc=300)
    with pytest.raises(DataError, match="training images, shard 0 needs 300: lower ipc"):
        stored(many)
