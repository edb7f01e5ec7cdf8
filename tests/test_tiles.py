"""Stored images that hold several: decoding by hand, the way back, and every stage with them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from apm_core import distilled, methods
from apm_core.data import whitening_file
from apm_core.data.tiles import Tiles
from apm_core.data.whitening import Whitening
from apm_core.errors import ConfigError, DataError
from apm_core.methods.base import Method
from apm_core.methods.movers import Adam, Average, Momentum, Rows
from apm_core.methods.tiled import TiledImages
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.method import methods as known_methods
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.stages import DistillSettings, MergeSettings
from apm_core.stages.distill import distill_shard
from apm_core.stages.merge import merge

NONE = Whitening("none")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def upsampled_by_hand(tile: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear samples of (C, s, s) at the centres of smaller pixels, edges repeated."""
    side = tile.shape[-1]
    at = np.clip((np.arange(side * factor) + 0.5) / factor - 0.5, 0, side - 1)
    low = np.minimum(at.astype(int), max(side - 2, 0))
    high, share = np.minimum(low + 1, side - 1), at - low
    rows = tile[:, low] * (1 - share)[:, None] + tile[:, high] * share[:, None]
    return rows[..., low] * (1 - share) + rows[..., high] * share


@pytest.mark.parametrize(("factor", "side"), [(2, 8), (3, 9), (4, 8), (1, 6)])
def test_each_tile_becomes_an_image_row_by_row(factor, side):
    stored, tiles = noise(2, 3, side, side), Tiles(factor, NONE)
    found, small = tiles.decode(stored), side // factor
    assert found.shape == (2 * factor**2, 3, side, side)
    for number, image in enumerate(found):
        which, tile = divmod(number, factor**2)
        row, column = (small * place for place in divmod(tile, factor))
        cut = stored[which, :, row : row + small, column : column + small]
        by_hand = upsampled_by_hand(cut.double().numpy(), factor)
        np.testing.assert_allclose(image.numpy(), by_hand, rtol=0, atol=1e-6)


@pytest.fixture(params=["none", "channel", "zca"])
def whitening(request):
    images = (255 * noise(300, 3, 8, 8, seed=1)).to(torch.uint8)
    return Whitening.fit(images, request.param)


def test_whitening_comes_after_decoding(whitening):
    stored = noise(2, 3, 8, 8)
    expected = whitening.apply(Tiles(2, NONE).decode(stored))
    torch.testing.assert_close(Tiles(2, whitening).decode(stored), expected, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [2, 4])
def test_encoding_is_the_nearest_and_undoes_decoding(whitening, factor):
    tiles, stored = Tiles(factor, whitening), noise(2, 3, 8, 8)
    torch.testing.assert_close(tiles.encode(tiles.decode(stored)), stored, rtol=0, atol=1e-5)
    pixels, plain = noise(2 * factor**2, 3, 8, 8, seed=2), Tiles(factor, NONE)
    nearest = tiles.encode(whitening.apply(pixels))
    best = (plain.decode(nearest) - pixels).square().sum()
    for seed in range(5):
        other = nearest + 0.01 * (noise(*nearest.shape, seed=seed) - 0.5)
        assert (plain.decode(other) - pixels).square().sum() > best


def test_the_way_back_equals_finite_differences(whitening):
    tiles, stored = Tiles(2, whitening), noise(1, 3, 8, 8)
    gradient = noise(4, 3, 8, 8, seed=3) - 0.5
    pulled = tiles.pull_back(gradient)
    assert pulled.shape == stored.shape
    for place in ((0, 0, 0), (1, 3, 4), (2, 7, 7), (0, 4, 3)):
        moved = stored.clone()
        moved[0][place] += 0.5  # decoding is affine: any distance will do
        slope = ((tiles.decode(moved) - tiles.decode(stored)) * gradient).sum() / 0.5
        assert float(pulled[0][place]) == pytest.approx(float(slope), abs=1e-4)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_step_changes_the_images_as_nearly_as_tiles_can(whitening, factor):
    tiles, stored = Tiles(factor, whitening), noise(2, 3, 8, 8)
    gradient = noise(2 * factor**2, 3, 8, 8, seed=3) - 0.5
    step = tiles.step_towards(gradient)
    changed = tiles.decode(stored + step) - tiles.decode(stored)
    # what is left is at a right angle to all that tiles can show, so nothing is nearer
    left = tiles.pull_back(gradient - changed)
    assert float(left.abs().max()) < 1e-4 * float(tiles.pull_back(gradient).abs().max())
    shown = tiles.decode(noise(2, 3, 8, 8, seed=5)) - tiles.decode(noise(2, 3, 8, 8, seed=6))
    again = tiles.decode(stored + tiles.step_towards(shown)) - tiles.decode(stored)
    torch.testing.assert_close(again, shown, rtol=0, atol=1e-4)


def test_tiles_that_do_not_divide_are_refused():
    Tiles(2, NONE).require_fit(8)
    with pytest.raises(
        ConfigError, match="tiles: 3 does not divide the 8 pixels of a side: choose"
    ):
        Tiles(3, NONE).require_fit(8)


@pytest.mark.parametrize(
    "inner",
    [
        Momentum(0.3, momentum=0.5),
        Momentum(0.3, momentum=0.5, at_home=True),
        Momentum(0.3, Average(0.75)),
        Adam(lambda index: 0.1 / (index + 1)),
    ],
)
def test_stored_images_move_as_by_their_own_mover(inner):
    tiles, images = Tiles(2, NONE), noise(8, 1, 4, 4)
    mover = TiledImages(inner, tiles)
    state = {"images": images} | mover.start("images", images)
    alone = {"images": tiles.encode(images)}
    alone |= inner.start("images", alone["images"].clone())
    assert torch.equal(state["images"], tiles.decode(state["images_stored"]))
    for index in range(3):
        gradient = noise(8, 1, 4, 4, seed=index)
        given = gradient
        if index == 1:  # the gradient of some rows
            gradient[[0, 3, 4, 5, 6, 7]] = 0
            given = Rows(torch.tensor([1, 2]), gradient[[1, 2]])
        state |= mover.move(state, "images", given, index)
        alone |= inner.move(alone, "images", tiles.step_towards(gradient), index)
        assert torch.equal(state["images_stored"], alone["images"])
        assert torch.equal(state["images"], tiles.decode(alone["images"]))
    assert mover.rate_at(1) == inner.rate_at(1) and mover.at_home == inner.at_home
    expected = tiles.decode(inner.product(alone, "images"))
    assert torch.equal(mover.product(state, "images"), expected)


def settings_of(name: str, recipe_settings, **changed: object) -> DistillSettings:
    options = known_methods()[name].changed(changed).model_dump(mode="json")
    iterative = name != "random"
    if "unrolled" in changed:
        recipe_settings = recipe_settings.changed({"loss": "soft_ce"})
    return DistillSettings(
        method=name,
        options=options,
        ipc=1,
        tiles=2,
        rounds=3 if iterative else None,
        recipe=recipe_settings if iterative else None,
        precision="float32" if iterative else None,
        seed=4,
    )


APM_PLUS = {
    "checkpoints": 2,
    "lr_images": 0.5,
    "batch": 20,
    "start": "real",
    "teacher_epochs": [1, 2],
    "unrolled": {"rounds": 2, "before": 2, "window": 2, "batch_real": 20},
}


@pytest.fixture
def shard(tmp_path, digits, teachers, cpu, recipe_settings):
    def run(name: str, settings: DistillSettings, **options: object):
        path = tmp_path / f"{name}.zarr.zip"
        return distill_shard(path, settings, 0, digits, teachers, Run(cpu, **options))

    return run


def test_a_method_without_rounds_stores_its_images_as_tiles(shard, digits, recipe_settings):
    found = shard("random", settings_of("random", recipe_settings))
    assert found.arrays["images"].shape == (10, 1, 8, 8)
    images, classes = digits.shard(4, 0)  # four real images for each stored one
    assert found.arrays["classes"].tolist() == classes.tolist()
    expected = Tiles(2, digits.whitening).encode(images)
    np.testing.assert_array_equal(found.arrays["images"], expected.numpy())


@pytest.mark.parametrize(
    ("name", "changed"),
    [("apm", {"checkpoints": 2, "lr_images": 0.5}), ("apm_plus", APM_PLUS)],
)
def test_a_shard_of_tiles_that_is_killed_and_resumed_has_the_same_bits(
    shard, tmp_path, recipe_settings, name, changed
):
    settings = settings_of(name, recipe_settings, **changed)
    start = shard("start", settings.changed({"rounds": None}))
    whole = shard("whole", settings)
    assert whole.arrays["images"].shape == (10, 1, 8, 8) and len(whole.arrays["classes"]) == 40
    assert not np.allclose(whole.arrays["images"], start.arrays["images"], atol=1e-4)

    def kill(done: int, total: int, figures: dict) -> None:
        if done == 3:
            raise KeyboardInterrupt

    resume = Resume(tmp_path / "resume", "tiles", every=0)
    with pytest.raises(KeyboardInterrupt):
        shard("killed", settings, resume=resume, progress=kill)
    found = shard("resumed", settings, resume=Resume(tmp_path / "resume", "tiles", every=0))
    for key, values in whole.arrays.items():
        np.testing.assert_array_equal(found.arrays[key], values)


def test_every_method_with_rounds_can_keep_its_images_as_tiles():
    names = sorted(known_methods())
    plan = Plan(
        RunSettings.of(
            {
                "distill": {"methods": names, "tiles": 2},
                "ipc": 10,
                "teachers": {"snapshots": True},
            }
        )
    )
    for name in names:
        settings = plan.distill(name)
        assert settings.tiles == 2 and "tiles" not in settings.options
        method = methods.build(settings)
        if isinstance(method, Method):
            inner = method.movers["images"]
            method.store_as(Tiles(2, NONE))
            assert method.movers["images"].inner is inner


def test_an_entry_has_tiles_of_its_own():
    entries = ["random", {"name": "tiled", "method": "random", "tiles": 2}]
    plan = Plan(RunSettings.of({"distill": {"methods": entries}}))
    assert [plan.distill(name).tiles for name in plan.entries] == [1, 2]


def test_tiles_need_as_many_real_images(shard, recipe_settings):
    with pytest.raises(DataError, match=r"needs 160: lower ipc or distill\.tiles"):
        shard("random", settings_of("random", recipe_settings).changed({"ipc": 40}))


@pytest.fixture
def tiled_set(tmp_path, shard, digits, teachers, cpu, recipe_settings):
    """Two stored digits per class, each with four tiles."""
    settings = settings_of("random", recipe_settings)
    files = [tmp_path / f"{number}.zarr.zip" for number in range(2)]
    for number, path in enumerate(files):
        distill_shard(path, settings, number, digits, None, Run(cpu))
    path = tmp_path / "digits_ipc2.random.zarr.zip"
    merged = MergeSettings(entry="random", labels="mean", recipe=recipe_settings)
    merge(path, merged, files, digits, teachers, cpu, "digits.whitening.zarr.zip")
    whitening_file.write(path.with_name("digits.whitening.zarr.zip"), digits)
    return distilled.load(path)


def test_a_set_of_tiles_is_labelled_and_read_image_by_image(tiled_set, digits, teachers, cpu):
    assert (len(tiled_set), tiled_set.ipc, tiled_set.tiles) == (80, 2, 2)
    assert tiled_set.image_bytes == 20 * 64 * 4 and tiled_set.label_bytes == 80 * 10 * 4
    assert tiled_set.shape == digits.shape
    expected = Tiles(2, digits.whitening).decode(tiled_set.stored)
    assert torch.equal(tiled_set.images, expected)
    torch.testing.assert_close(tiled_set.targets, teachers.logits(None, expected, cpu.exact()))
    images, targets = tiled_set.dataset().tensors
    assert torch.equal(images, expected) and torch.equal(targets, tiled_set.targets)


def test_the_pixels_of_both_forms(tiled_set):
    stored, decoded = tiled_set.images_rgb(stored=True), tiled_set.images_rgb()
    assert stored.shape == (20, 8, 8, 3) and decoded.shape == (80, 8, 8, 3)
    expected = (255 * tiled_set.stored).round().clamp(0, 255)
    np.testing.assert_array_equal(stored[..., 0], expected[:, 0].numpy())
    shown = Tiles(2, NONE).decode(tiled_set.stored)[:, 0]
    np.testing.assert_array_equal(decoded[..., 1], (255 * shown).round().clamp(0, 255).numpy())


def test_some_classes_and_images_of_a_set_of_tiles(tiled_set):
    some = tiled_set.select(classes=[7, 2], ipc=1)
    assert (len(some), some.ipc) == (8, 1) and some.classes.tolist() == [7] * 4 + [2] * 4
    whole = tiled_set.classes == 7
    assert torch.equal(some.images[:4], tiled_set.images[whole][:4])
    assert torch.equal(some.targets[:4], tiled_set.targets[whole][:4])
    assert len(some.images_rgb(stored=True)) == 2


def test_whole_images_are_decoded_by_nothing(real_set):
    assert real_set.tiles == 1 and real_set.images is real_set.stored
    assert real_set.artifact.info["tiles"] == 1
