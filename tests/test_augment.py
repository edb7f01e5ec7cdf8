"""Siamese augmentation against closed forms and an independent bilinear sampling."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.errors import ConfigError
from apm_core.runtime import streams
from apm_core.training.augment import Draw, augment, augment_by_number, draw, gathered, groups

ALL = "color_crop_cutout_flip_scale_rotate"
GROUPS = tuple(ALL.split("_"))
SIDE = 32
MANY = 4000


@pytest.fixture
def images() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, SIDE, SIDE, generator=random, dtype=torch.float64)


def drawn(group: str, *numbers: float, count: int = 5) -> Draw:
    """The same numbers for `count` images, 0.5 for those not given."""
    full = [*numbers, *[0.5] * (3 - len(numbers))]
    return Draw(group, torch.tensor(full, dtype=torch.float64)[:, None].repeat(1, count))


def random_draw(group: str, count: int, seed: int = 0) -> Draw:
    return draw(group, count, torch.Generator().manual_seed(seed))


def sampled(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bilinear samples of (C, S, S) at matrix @ (x, y), corners at -1 and 1, zeros outside."""
    side = image.shape[-1]
    result = np.zeros_like(image)
    for row in range(side):
        for column in range(side):
            x, y = matrix @ (np.array([column, row]) / (side - 1) * 2 - 1)
            at_x, at_y = (x + 1) / 2 * (side - 1), (y + 1) / 2 * (side - 1)
            for i in (math.floor(at_y), math.floor(at_y) + 1):
                for j in (math.floor(at_x), math.floor(at_x) + 1):
                    if 0 <= i < side and 0 <= j < side:
                        weight = (1 - abs(at_y - i)) * (1 - abs(at_x - j))
                        result[:, row, column] += weight * image[:, i, j]
    return result


def ramps(count: int) -> Tensor:
    """Images whose channels are the coordinates x and y of the sampling grid."""
    line = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
    x, y = line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE)
    return torch.stack([x, y]).expand(count, 2, SIDE, SIDE)


def is_uniform(values: Tensor, expected: range) -> bool:
    """Every value of `expected` is taken, no other, and all about as often (six deviations)."""
    counts = torch.bincount(values - expected.start, minlength=len(expected)).double()
    mean = len(values) / len(expected)
    return len(counts) == len(expected) and bool(((counts - mean).abs() < 6 * mean**0.5).all())


def test_brightness_keeps_spatial_differences(images):
    changed = augment(images, drawn("color", 0.9))
    torch.testing.assert_close(changed - images, torch.full_like(images, 0.4))


def test_saturation_keeps_the_channel_mean_of_each_pixel(images):
    changed = augment(images, drawn("color", 0.5, 0.8))
    torch.testing.assert_close(changed.mean(1), images.mean(1))
    spread = images - images.mean(1, keepdim=True)
    torch.testing.assert_close(changed - changed.mean(1, keepdim=True), 1.6 * spread)


def test_contrast_keeps_the_mean_of_each_image(images):
    changed = augment(images, drawn("color", 0.5, 0.5, 0.9))
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(changed, mean + 1.4 * (images - mean))


def test_color_applies_brightness_then_saturation_then_contrast(images):
    numbers = random_draw("color", 5)
    for image, (b, s, c), changed in zip(
        images.numpy(), numbers.uniform.T.double().numpy(), augment(images, numbers), strict=True
    ):
        x = image + b - 0.5
        x = (x - x.mean(0)) * 2 * s + x.mean(0)
        x = (x - x.mean()) * (c + 0.5) + x.mean()
        np.testing.assert_allclose(changed.numpy(), x, atol=1e-6)


def test_flip_twice_is_the_identity_and_once_is_a_mirror(images):
    chances = torch.tensor([0.2, 0.7, 0.4999, 0.5, 0.0])
    both = Draw("flip", torch.stack([chances, 1 - chances, 1 - chances]))
    once = augment(images, both)
    mirrored = [not torch.equal(a, b) for a, b in zip(once, images, strict=True)]
    assert mirrored == [True, False, True, False, True]
    assert torch.equal(once[0], torch.from_numpy(images[0].numpy()[:, :, ::-1].copy()))
    assert torch.equal(augment(once, both), images)


def test_flip_mirrors_half_of_the_images():
    ones = ramps(MANY)
    share = (augment(ones, random_draw("flip", MANY))[:, 0, 0, 0] > 0).double().mean()
    assert abs(float(share) - 0.5) < 0.05


@pytest.mark.parametrize(("down", "right"), [(0, 0), (4, -4), (-3, 1), (-4, 0)])
def test_crop_shifts_by_whole_pixels_with_zeros_outside(images, down, right):
    changed = augment(images, drawn("crop", (down + 4.5) / 9, (right + 4.5) / 9)).numpy()
    for row in range(SIDE):
        for column in range(SIDE):
            i, j = row + down, column + right
            inside = 0 <= i < SIDE and 0 <= j < SIDE
            expected = images[:, :, i, j].numpy() if inside else 0
            np.testing.assert_array_equal(changed[:, :, row, column], expected)


def test_crop_shifts_reach_an_eighth_of_the_side_both_ways():
    grid = torch.arange(SIDE).double() + 1
    images = torch.stack([grid[:, None].expand(SIDE, SIDE), grid.expand(SIDE, SIDE)])
    changed = augment(images.expand(MANY, 2, SIDE, SIDE), random_draw("crop", MANY))
    shifts = (changed[:, :, 16, 16] - 17).long()
    assert is_uniform(shifts[:, 0], range(-4, 5)) and is_uniform(shifts[:, 1], range(-4, 5))
    assert abs(float(torch.corrcoef(shifts.T.double())[0, 1])) < 0.1


def test_cutout_at_the_centre_zeroes_a_square_of_half_the_side(images):
    changed = augment(images, drawn("cutout", 16.5 / 33, 16.5 / 33))
    assert (changed == 0).sum() == 5 * 3 * 256
    assert (changed[:, :, 8:24, 8:24] == 0).all()


def test_cutout_is_cut_off_at_the_border(images):
    changed = augment(images, drawn("cutout", 0.0, 32.5 / 33))
    assert (changed == 0).sum() == 5 * 3 * 64
    assert (changed[:, :, :8, 24:] == 0).all()


@pytest.mark.parametrize(("side", "hole", "centres"), [(32, 16, range(33)), (9, 5, range(9))])
def test_cutout_centres_cover_the_side(side, hole, centres):
    changed = augment(torch.ones(MANY, 1, side, side), random_draw("cutout", MANY))[:, 0]
    for axis in (1, 2):
        gone = (changed == 0).any(axis).int()  # (N, S), one run of ones
        first, last = gone.argmax(1), side - 1 - gone.flip(1).argmax(1)
        centre = torch.where(first > 0, first + hole // 2, last + 1 - (hole - hole // 2))
        assert is_uniform(centre, centres)


@pytest.mark.parametrize("group", ["scale", "rotate"])
def test_no_scale_and_no_rotation_are_the_identity(images, group):
    still = (1 - 1 / 1.2) / (1.2 - 1 / 1.2) if group == "scale" else 0.5
    torch.testing.assert_close(augment(images, drawn(group, still, still)), images)


def test_scale_equals_bilinear_sampling_by_hand(images):
    numbers = random_draw("scale", 3)
    low = 1 / 1.2
    for image, (x, y, _), changed in zip(
        images[:3].numpy(), numbers.uniform.T.tolist(), augment(images[:3], numbers), strict=True
    ):
        matrix = np.diag([x * (1.2 - low) + low, y * (1.2 - low) + low])
        np.testing.assert_allclose(changed.numpy(), sampled(image, matrix), atol=1e-4)


def test_rotation_equals_bilinear_sampling_by_hand(images):
    numbers = random_draw("rotate", 3)
    for image, (u, _, _), changed in zip(
        images[:3].numpy(), numbers.uniform.T.tolist(), augment(images[:3], numbers), strict=True
    ):
        angle = math.radians((u - 0.5) * 30)
        cos, sin = math.cos(angle), math.sin(angle)
        expected = sampled(image, np.array([[cos, -sin], [sin, cos]]))
        np.testing.assert_allclose(changed.numpy(), expected, atol=1e-4)


def test_scale_factors_lie_between_the_inverse_and_the_factor_on_each_axis():
    changed = augment(ramps(MANY), random_draw("scale", MANY))
    at = ramps(1)[0, 0, 0, 20]
    factors = torch.stack([changed[:, 0, 20, 20] / at, changed[:, 1, 20, 20] / at])
    assert (factors >= 1 / 1.2 - 1e-6).all() and (factors <= 1.2 + 1e-6).all()
    assert (factors.amin(1) < 0.835).all() and (factors.amax(1) > 1.198).all()
    assert ((factors.mean(1) - (1.2 + 1 / 1.2) / 2).abs() < 0.01).all()
    assert abs(float(torch.corrcoef(factors)[0, 1])) < 0.1


def test_angles_lie_between_minus_and_plus_fifteen_degrees():
    changed = augment(ramps(MANY), random_draw("rotate", MANY))
    start, end = ramps(1)[0, :, 8, 20], changed[:, :, 8, 20]
    angle = torch.atan2(end[:, 1], end[:, 0]) - torch.atan2(start[1], start[0])
    degrees = torch.rad2deg(angle)
    assert degrees.abs().max() <= 15 + 1e-3
    assert degrees.min() < -14.9 and degrees.max() > 14.9 and abs(float(degrees.mean())) < 0.6


@pytest.mark.parametrize("group", GROUPS)
def test_a_siamese_draw_transforms_all_images_of_all_batches_alike(images, group):
    once = draw(group, 1, streams.generator(7, group))
    together = augment(images, once)
    assert torch.equal(together, torch.cat([augment(images[:2], once), augment(images[2:], once)]))
    alike = augment(images[:1].expand(4, -1, -1, -1), once)
    assert all(torch.equal(alike[0], other) for other in alike)
    assert torch.equal(together, augment(images, Draw(group, once.uniform.expand(3, 5))))


@pytest.mark.parametrize("group", GROUPS)
def test_each_image_has_numbers_of_its_own(images, group):
    changed = augment(images[:1].expand(8, -1, -1, -1), random_draw(group, 8))
    assert len(torch.unique(changed.flatten(1), dim=0)) == (2 if group == "flip" else 8)


def test_one_group_is_drawn_per_call_and_each_as_often():
    random = streams.generator("groups")
    found = [GROUPS.index(draw(ALL, 2, random).group) for _ in range(1200)]
    assert is_uniform(torch.tensor(found), range(6))


@pytest.mark.parametrize("group", GROUPS)
def test_the_draw_of_some_images_is_a_slice(images, group):
    numbers, index = random_draw(group, 5, seed=2), torch.tensor([4, 0, 2])
    expected = augment(images, numbers)[index]
    assert torch.equal(augment(images[index], numbers.at(index)), expected)


@pytest.mark.parametrize("group", GROUPS)
def test_gradients_equal_finite_differences(group):
    random = torch.Generator().manual_seed(1)
    images = torch.randn(3, 2, 6, 6, generator=random, dtype=torch.float64, requires_grad=True)
    numbers = random_draw(group, 3)
    numbers = Draw(group, numbers.uniform.double())
    assert torch.autograd.gradcheck(lambda x: augment(x, numbers), images)


def test_none_draws_nothing_and_changes_nothing(images):
    random = streams.generator(0)
    before = random.get_state()
    assert draw("none", 5, random) is None
    assert torch.equal(random.get_state(), before)
    assert augment(images, None) is images


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(ALL, 10, streams.generator(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_of_a_strategy():
    assert groups("none") == ()
    assert groups("crop_flip") == ("crop", "flip")


@pytest.mark.parametrize("strategy", ["crop_blur", "", "crop__flip", "crop flip"])
def test_unknown_group_is_refused_with_those_that_exist(strategy):
    known = "known: color, crop, cutout, flip, scale, rotate"
    with pytest.raises(ConfigError, match=f"augment: there is no group .*{known}"):
        groups(strategy)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_chosen_by_its_number_gives_the_same_bits(images, group):
    drawn = random_draw(group, 5)
    number = torch.tensor(GROUPS.index(group))
    found = augment_by_number(images, GROUPS, number, drawn.uniform)
    assert torch.equal(found, augment(images, drawn))
    assert torch.equal(augment_by_number(images, (), number, drawn.uniform), images)


def test_gathered_samples_and_their_gradient_are_those_of_grid_sample(images):
    random = torch.Generator().manual_seed(1)
    grid = 2.4 * torch.rand(5, SIDE, SIDE, 2, generator=random, dtype=torch.float64) - 1.2
    leaf = images.clone().requires_grad_()
    found, expected = gathered(leaf, grid), F.grid_sample(leaf, grid, align_corners=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slope = torch.randn(expected.shape, generator=random, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, leaf, slope)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
