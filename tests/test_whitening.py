import numpy as np
import pytest
import torch

from apm_core.data import channel_constants, read
from apm_core.data.whitening import Whitening
from apm_core.errors import ArtifactError, ConfigError, DataError

SHAPE = (40, 3, 4, 5)  # H differs from W, so that a wrong order of axes shows


@pytest.fixture
def images():
    """Correlated uint8 images, fewer of them than they have values."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(SHAPE[0], 60)) @ rng.normal(size=(60, 60)) * 8
    brightness = rng.normal(size=(SHAPE[0], 1)) * 40
    return np.clip(mixed + brightness + 120, 0, 255).astype(np.uint8).reshape(SHAPE)


def closed_form(images, eps):
    """ZCA in float64 numpy, by singular values of the covariance."""
    x = images.reshape(len(images), -1) / 255.0
    mean = x.mean(0)
    u, s, _ = np.linalg.svd((x - mean).T @ (x - mean) / (len(x) - 1))
    return mean, u @ np.diag((s + eps) ** -0.5) @ u.T, u @ np.diag((s + eps) ** 0.5) @ u.T


@pytest.mark.parametrize("eps", [0.1, 0.003])
def test_zca_equals_closed_form(images, eps):
    mean, matrix, inverse = closed_form(images, eps)
    zca = Whitening.fit(images, "zca", eps=eps)
    np.testing.assert_allclose(zca.mean.numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(zca.matrix.numpy(), matrix, rtol=1e-4, atol=1e-5 * matrix.max())
    np.testing.assert_allclose(zca.inverse.numpy(), inverse, rtol=1e-4, atol=1e-5)
    of_matrix = np.linalg.inv(zca.matrix.numpy().astype(np.float64))
    np.testing.assert_allclose(zca.inverse.numpy(), of_matrix, rtol=1e-6, atol=1e-9)
    assert torch.equal(zca.inverse, zca.inverse.T)
    expected = (images.reshape(len(images), -1) / 255.0 - mean) @ matrix
    found = zca.apply(torch.from_numpy(images))
    assert found.shape == SHAPE and found.dtype == torch.float32
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, atol=1e-4)


def test_default_eps_is_a_tenth(images):
    np.testing.assert_allclose(
        Whitening.fit(images, "zca").matrix.numpy(), closed_form(images, 0.1)[1], atol=1e-4
    )


@pytest.mark.parametrize("kind", ["channel", "zca"])
def test_chunk_size_does_not_matter(images, kind):
    reference = Whitening.fit(images, kind).arrays()
    for chunk in (1, 7, 40):
        for name, value in Whitening.fit(images, kind, chunk=chunk).arrays().items():
            np.testing.assert_allclose(value, reference[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["channel", "zca"])
def test_fit_takes_tensors_and_read_only_arrays(images, kind):
    reference = Whitening.fit(images, kind).arrays()
    frozen = images.copy()
    frozen.setflags(write=False)
    for given in (torch.from_numpy(images), frozen):
        for name, value in Whitening.fit(given, kind).arrays().items():
            np.testing.assert_array_equal(value, reference[name])


@pytest.mark.parametrize("kind", ["none", "channel", "zca"])
def test_inverse_undoes_apply(images, kind):
    whitening = Whitening.fit(images, kind)
    pixels = torch.from_numpy(images)
    whitened = whitening.apply(pixels)
    torch.testing.assert_close(whitening.invert(whitened), pixels / 255, atol=1e-4, rtol=0)
    assert torch.equal(whitening.to_uint8(whitened), pixels)
    # floating-point input counts as scaled already, and carries gradients
    scaled = (pixels / 255).requires_grad_()
    torch.testing.assert_close(whitening.apply(scaled), whitened, atol=1e-5, rtol=0)
    whitening.apply(scaled).sum().backward()
    assert scaled.grad is not None


def test_invert_does_not_clip_and_to_uint8_does():
    whitening = Whitening("channel", mean=torch.tensor([0.5]), std=torch.tensor([0.25]))
    whitened = torch.tensor([-4.0, 0.0, 4.0]).reshape(3, 1, 1, 1)
    assert whitening.invert(whitened).flatten().tolist() == [-0.5, 0.5, 1.5]
    assert whitening.to_uint8(whitened).flatten().tolist() == [0, 128, 255]


def test_channel_uses_true_moments(images):
    whitening = Whitening.fit(images, "channel")
    np.testing.assert_allclose(whitening.mean, (images / 255.0).mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(whitening.std, (images / 255.0).std((0, 2, 3)), atol=1e-6)
    whitened = whitening.apply(torch.from_numpy(images))
    torch.testing.assert_close(whitened.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    spread = whitened.std((0, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.ones(3), atol=1e-5, rtol=0)


def test_channel_constants_replace_the_measured_ones(images):
    mean, std = channel_constants("tiny_imagenet")
    whitened = Whitening.fit(images, "channel", constants=(mean, std)).apply(torch.tensor(images))
    expected = (images[3, 2, 1, 4] / 255 - mean[2]) / std[2]
    assert whitened[3, 2, 1, 4].item() == pytest.approx(expected, abs=1e-5)


def test_none_only_scales(images):
    whitened = Whitening.fit(images, "none").apply(torch.from_numpy(images))
    np.testing.assert_allclose(whitened.numpy(), images / 255.0, atol=1e-7)


@pytest.mark.parametrize("kind", ["none", "channel", "zca"])
def test_arrays_round_trip(images, kind):
    whitening = Whitening.fit(images, kind)
    arrays = whitening.arrays()
    assert all(value.dtype == np.float32 for value in arrays.values())
    again = Whitening.from_arrays(kind, arrays).to("cpu")
    pixels = torch.from_numpy(images)
    assert torch.equal(again.apply(pixels), whitening.apply(pixels))
    assert torch.equal(again.invert(pixels / 255), whitening.invert(pixels / 255))


def test_the_inverse_is_not_stored_and_computed_once(images, monkeypatch):
    zca = Whitening.fit(images, "zca")
    assert set(zca.arrays()) == {"whitening_mean", "whitening_matrix"}
    inverse = zca.inverse
    monkeypatch.setattr(torch.linalg, "inv", lambda _: 1 / 0)
    assert zca.inverse is inverse
    zca.to_uint8(zca.apply(torch.from_numpy(images)))


def test_an_inverse_that_an_earlier_version_stored_is_left_alone(images):
    zca = Whitening.fit(images, "zca")
    stored = {**zca.arrays(), "whitening_inverse": np.zeros((60, 60), np.float32)}
    again = Whitening.from_arrays("zca", stored)
    assert torch.equal(again.matrix, zca.matrix) and torch.equal(again.inverse, zca.inverse)


def test_errors_say_what_to_do(images):
    with pytest.raises(ConfigError, match=r"dataset.whitening must be one of none, .* not 'pca'"):
        Whitening.fit(images, "pca")
    images[:, 1] = 9
    with pytest.raises(DataError, match=r"channel 1 has std 0.0: set dataset.whitening: none"):
        Whitening.fit(images, "channel")
    with pytest.raises(DataError, match="at least 2 images, found 1"):
        Whitening.fit(images[:1], "zca")
    with pytest.raises(ArtifactError, match="'zca' has arrays mean, expected mean, matrix: run"):
        Whitening.from_arrays("zca", {"whitening_mean": np.zeros(3, np.float32)})


def test_images_of_another_shape_are_refused(images):
    channel, zca = Whitening.fit(images, "channel"), Whitening.fit(images, "zca")
    grey = torch.zeros(2, 1, 4, 5)
    with pytest.raises(DataError, match=r"fitted to 3 channels .* \(1, 4, 5\) have 1"):
        channel.apply(grey)
    with pytest.raises(DataError, match=r"fitted to 60 values .* \(1, 4, 5\) have 20"):
        zca.invert(grey)


def test_zca_refuses_to_start_without_memory(images):
    needed = 6 * 8 * 60**2 + 4 * 40 * 60
    Whitening.fit(images, "zca", available_bytes=needed)
    with pytest.raises(
        DataError, match=r"needs 0.0 GB .* available: set dataset.whitening: channel"
    ):
        Whitening.fit(images, "zca", available_bytes=needed - 1)
    # ImageNet's size must be refused before anything of it is read or allocated
    large = np.broadcast_to(np.uint8(0), (1_281_167, 3, 64, 64))
    with pytest.raises(DataError, match=r"12288 values .* needs 7.3 GB .* 7.0 GB are available"):
        Whitening.fit(large, "zca", available_bytes=7_000_000_000)


@pytest.fixture(scope="module")
def cifar10(cifar10_dir):
    return read("cifar10", data_dir=cifar10_dir, download=False)


def test_channel_constants_are_the_true_ones_of_cifar10(cifar10):
    whitening = Whitening.fit(cifar10.train.images, "channel")
    mean, std = channel_constants("cifar10")
    np.testing.assert_allclose(whitening.mean, mean, atol=1e-4)
    np.testing.assert_allclose(whitening.std, std, atol=1e-4)


def test_zca_golden_numbers_of_cifar10(cifar10):
    """Expected figures: float64 computations by others from the 50,000 training images."""
    zca = Whitening.fit(cifar10.train.images, "zca")
    values = torch.linalg.eigvalsh(zca.inverse.double()) ** 2 - 0.1
    assert values.sum().item() == pytest.approx(190.405, abs=2e-3)
    assert values.mean().item() == pytest.approx(0.06198, abs=1e-5)
    leading = [55.363, 21.427, 12.747, 7.000, 6.871]
    assert values.flip(0)[:5].tolist() == pytest.approx(leading, abs=1e-3)
    assert (values > 0.1).sum() == 129
    assert (values / (values + 0.1)).sum().item() == pytest.approx(209.70, abs=5e-3)
    diagonal = zca.matrix.diagonal()
    found = [diagonal.mean(), diagonal.min(), diagonal.max()]
    assert [value.item() for value in found] == pytest.approx([3.0310, 2.9901, 3.0705], abs=1e-4)
    assert zca.matrix.double().norm().item() == pytest.approx(169.18, abs=5e-3)

    test = zca.apply(torch.from_numpy(cifar10.test.images))
    found = [test.double().mean(), test.std(), test.min(), test.max()]
    expected = [0.00045, 0.26188, -2.016, 2.192]
    assert [value.item() for value in found] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert torch.equal(zca.to_uint8(test), torch.from_numpy(cifar10.test.images))
