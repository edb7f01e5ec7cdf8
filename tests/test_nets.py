"""Architectures: published sizes, independent re-computation, and messages that help.

Parameter counts are those of the official definitions of DC and APM for the same names.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18, vgg

from apm_core.errors import ConfigError
from apm_core.nets import Shape, build, require_fit, takers, why_not
from apm_core.nets.architectures.frepo_conv import FRePoConv
from apm_core.nets.base import MeanPool2d, NormalisedConv2d, instance_norm, mean_of_windows
from apm_core.runtime.streams import generator, seeded
from apm_core.settings.names import names_in

ARCHITECTURES = names_in("nets.architectures")
CIFAR = Shape(channels=3, resolution=32, classes=10)
COUNTS = [
    ("convnet", None, 32, 10, 320_010),
    ("convnet", None, 32, 100, 504_420),
    ("convnet", 4, 32, 10, 452_490),
    ("convnet", None, 64, 200, 857_160),
    ("convnet", None, 64, 1000, 2_496_360),
    ("convnet", 3, 64, 200, 1_938_120),
    ("alexnet", None, 32, 10, 1_872_202),
    ("alexnet", None, 32, 100, 2_148_772),
    ("vgg11", None, 32, 10, 9_231_114),
    ("vgg11", None, 32, 100, 9_277_284),
    ("vgg11", None, 64, 200, 9_635_784),
    ("vgg11", None, 64, 1000, 11_274_984),
    ("resnet18", None, 32, 10, 11_173_962),
    ("resnet18", None, 32, 100, 11_220_132),
    ("resnet18", None, 64, 200, 11_578_632),
    ("resnet18", None, 64, 1000, 13_217_832),
    ("vit", None, 32, 10, 3_221_514),
    ("vit", None, 32, 100, 3_267_684),
    ("vit", None, 64, 200, 3_417_288),
    ("vit", None, 64, 1000, 3_827_688),
    ("frepo_conv", None, 32, 10, 1_560_842),
    ("frepo_conv", None, 32, 100, 2_298_212),
    ("frepo_conv", None, 64, 200, 9_475_528),
]


def images(*shape, seed=0):
    return torch.randn(*shape, generator=generator("test", seed))


def make(name, shape, **options):
    """A network whose normalisations are not at their trivial start."""
    with seeded("test", name):
        net = build(name, shape, **options).eval()
        for module in net.modules():
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return net


@pytest.mark.parametrize(("name", "depth", "resolution", "classes", "count"), COUNTS)
def test_parameter_counts(name, depth, resolution, classes, count):
    with torch.device("meta"):
        net = build(name, Shape(3, resolution, classes), depth=depth)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        *(("convnet", resolution) for resolution in (2, 8, 28, 50)),
        *(("alexnet", resolution) for resolution in (8, 24)),
        *(("vgg11", resolution) for resolution in (32, 64)),
        *(("resnet18", resolution) for resolution in (16, 40, 64)),
        *(("vit", resolution) for resolution in (8, 28)),
        *(("frepo_conv", resolution) for resolution in (8, 28)),
    ],
)
def test_forward_shapes_and_every_image_counts(name, resolution, channels):
    net = make(name, Shape(channels, resolution, 7))
    x = images(3, channels, resolution, resolution)
    logits = net(x)
    assert logits.shape == (3, 7)
    # distinct images get distinct logits: nothing on the way erases them
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    # and no image sees another
    torch.testing.assert_close(net(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("resolution", "depth"), [(8, 1), (4, 1), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)]
)
def test_convnet_depth_follows_the_resolution(resolution, depth):
    net = build("convnet", Shape(1, resolution, 10), width=4)
    assert sum(isinstance(layer, nn.Conv2d) for layer in net.modules()) == depth


def test_instance_norm_is_instance_norm():
    norm = instance_norm(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = images(4, 5, 6, 6)
    expected = F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)
    torch.testing.assert_close(norm.train()(x), expected)
    torch.testing.assert_close(norm.eval()(x), expected)


@pytest.mark.parametrize(("resolution", "padding"), [(32, 1), (28, 3)])
def test_convnet_equals_its_definition(resolution, padding):
    net = make("convnet", Shape(3, resolution, 10), width=6)
    weights = list(net.parameters())
    x = hidden = images(2, 3, resolution, resolution)
    for block in range(3):
        kernel, bias, scale, shift = weights[4 * block : 4 * block + 4]
        hidden = F.conv2d(hidden, kernel, bias, padding=1 if block else padding)
        hidden = F.instance_norm(hidden, weight=scale, bias=shift, eps=1e-5).clamp(min=0)
        hidden = (
            hidden[..., ::2, ::2] + hidden[..., 1::2, ::2]
            + hidden[..., ::2, 1::2] + hidden[..., 1::2, 1::2]
        ) / 4  # fmt: skip
    features = hidden.reshape(2, 6 * 4 * 4)
    torch.testing.assert_close(net.embed(x), features)
    torch.testing.assert_close(net(x), features @ weights[-2].T + weights[-1])


def test_default_initialisation_is_uniform_in_the_fan_in():
    weight = make("convnet", CIFAR).features[4].weight  # the second convolution reads 128 * 9
    bound = (128 * 9) ** -0.5
    assert 0.999 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_alexnet_equals_its_definition():
    net = make("alexnet", Shape(3, 16, 10))
    weights = list(net.parameters())
    x = hidden = images(2, 3, 16, 16)
    for layer, pooled in enumerate([True, True, False, False, True]):
        kernel, bias = weights[2 * layer : 2 * layer + 2]
        hidden = F.conv2d(hidden, kernel, bias, padding=kernel.shape[-1] // 2).clamp(min=0)
        hidden = F.max_pool2d(hidden, 2) if pooled else hidden
    torch.testing.assert_close(net(x), hidden.flatten(1) @ weights[-2].T + weights[-1])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_frepo_conv_equals_its_definition(batch_norm):
    with seeded("frepo_conv"):
        net = FRePoConv(Shape(3, 16, 10), batch_norm=batch_norm).train()
    kernels = [p for p in net.features.parameters() if p.ndim == 4]
    assert [len(kernel) for kernel in kernels] == [128, 256]
    x = hidden = images(4, 3, 16, 16)
    for block, kernel in enumerate(kernels):
        if block and batch_norm:  # before the convolution, and not in the first block
            mean = hidden.mean((0, 2, 3), keepdim=True)
            deviation = (hidden - mean).square().mean((0, 2, 3), keepdim=True)
            hidden = (hidden - mean) / (deviation + 1e-5).sqrt()
        hidden = F.conv2d(hidden, kernel, padding=1).clamp(min=0)  # biases start at zero
        hidden = hidden.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    features = hidden.reshape(4, 256 * 4 * 4)
    torch.testing.assert_close(net.embed(x), features, rtol=1e-4, atol=1e-5)
    head = net.classifier.weight
    torch.testing.assert_close(net(x), features @ head.T, rtol=1e-4, atol=1e-4)


def test_frepo_conv_remembers_a_tenth_of_its_running_statistics():
    net = FRePoConv(Shape(1, 16, 10), batch_norm=True).train()
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean.fill_(5.0)
    x = images(4, 1, 16, 16)
    net(x)
    mean = net.features[:3](x).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.5 + 0.9 * mean)


def test_frepo_conv_starts_with_the_weights_of_flax():
    weight = make("frepo_conv", CIFAR).features[3].weight  # the second convolution reads 128 * 9
    std = (128 * 9) ** -0.5
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert 0.99 * 2 * std / 0.8796 < weight.abs().max() <= 2.0001 * std / 0.8796


def _copy(source, target):
    """Copy parameters in order, so that two definitions of one network can be compared."""
    pairs = zip(source.parameters(), target.parameters(), strict=True)
    for a, b in pairs:
        assert a.shape == b.shape
        b.data.copy_(a.data)


@pytest.mark.parametrize("resolution", [32, 64])
def test_vgg11_equals_torchvision(resolution):
    ours = make("vgg11", Shape(3, resolution, 10))
    features = vgg.make_layers(vgg.cfgs["A"], batch_norm=True)
    for index, layer in enumerate(features):
        if isinstance(layer, nn.BatchNorm2d):
            features[index] = nn.GroupNorm(layer.num_features, layer.num_features)
    theirs = nn.Sequential(features, nn.Flatten(), nn.LazyLinear(10))
    x = images(2, 3, resolution, resolution)
    theirs(x)  # sizes the lazy layer
    _copy(ours, theirs)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("resolution", "side"), [(32, 1), (64, 2)])
def test_resnet18_equals_torchvision(resolution, side):
    ours = make("resnet18", Shape(3, resolution, 10))
    theirs = resnet18(norm_layer=lambda c: nn.GroupNorm(c, c), num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.avgpool = nn.AdaptiveAvgPool2d(side)
    theirs.fc = nn.Linear(512 * side**2, 10)
    _copy(ours, theirs)
    x = images(2, 3, resolution, resolution)
    torch.testing.assert_close(ours(x), theirs(x))


def test_resnet18_of_a_quarter_of_the_width_has_a_quarter_of_all_channels():
    narrow = build("resnet18", CIFAR, width=16)
    shapes = [tuple(p.shape) for p in build("resnet18", CIFAR).parameters()]
    quarter = [tuple(n // 4 if n >= 64 else n for n in shape) for shape in shapes]
    assert [tuple(p.shape) for p in narrow.parameters()] == quarter
    assert narrow(images(2, 3, 32, 32)).shape == (2, 10)


def test_resnet18_at_8_px_would_be_constant():
    """Why 8 px are refused although 8 divides 8."""
    from apm_core.nets.architectures.resnet18 import ResNet18

    a, b = ResNet18(Shape(3, 8, 10))(images(2, 3, 8, 8))
    torch.testing.assert_close(a, b)


def _vit_by_hand(net, x):
    """The transformer once more, token by token and head by head."""
    state = net.state_dict()
    tokens = [state["class_token"][0, 0]]
    for row in range(0, x.shape[1], 4):
        for column in range(0, x.shape[2], 4):
            patch = x[:, row : row + 4, column : column + 4].movedim(0, 2).reshape(-1)
            tokens.append(state["patch_embedding.weight"] @ patch + state["patch_embedding.bias"])
    h = torch.stack(tokens) + state["positions"][0]  # (T, 512)
    for block in range(3):
        w = {k.removeprefix(f"blocks.{block}."): v for k, v in state.items()}
        z = F.layer_norm(h, (512,), w["attention.norm.weight"], w["attention.norm.bias"])
        query, key, value = (z @ w["attention.qkv.weight"].T).chunk(3, dim=1)  # (T, 256) each
        heads = []
        for head in range(4):
            part = slice(64 * head, 64 * head + 64)
            scores = query[:, part] @ key[:, part].T / 8  # the square root of the head's width
            heads.append(torch.softmax(scores, dim=1) @ value[:, part])
        z = torch.cat(heads, dim=1) @ w["attention.project.weight"].T
        h = h + z + w["attention.project.bias"]
        z = F.layer_norm(h, (512,), w["mlp.0.weight"], w["mlp.0.bias"])
        z = F.gelu(z @ w["mlp.1.weight"].T + w["mlp.1.bias"])
        h = h + z @ w["mlp.4.weight"].T + w["mlp.4.bias"]
    z = F.layer_norm(h[0], (512,), state["classifier.0.weight"], state["classifier.0.bias"])
    return state["classifier.1.weight"] @ z + state["classifier.1.bias"]


def test_vit_equals_its_definition():
    net = make("vit", Shape(3, 12, 10))
    x = images(2, 3, 12, 12)
    expected = torch.stack([_vit_by_hand(net, image) for image in x])
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


def test_vit_drops_out_in_training_and_starts_at_unit_variance():
    net = make("vit", Shape(3, 32, 10))
    assert net.positions.std().item() == pytest.approx(1, abs=0.02)
    assert net.class_token.std().item() == pytest.approx(1, abs=0.15)
    x = images(1, 3, 32, 32)
    with seeded("dropout"):
        assert not torch.equal(net.train()(x), net(x))
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.1] * 10


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_same_seed_same_network(name):
    first, second = ([p.sum() for p in make(name, CIFAR).parameters()] for _ in range(2))
    assert torch.equal(torch.stack(first), torch.stack(second))


@pytest.mark.parametrize(
    ("resolution", "fitting"),
    [
        (1, set()),
        (8, {"convnet", "alexnet", "vit", "frepo_conv"}),
        (16, {"convnet", "alexnet", "resnet18", "vit", "frepo_conv"}),
        (28, {"convnet", "vit", "frepo_conv"}),
        (30, {"convnet", "frepo_conv"}),
        (32, set(ARCHITECTURES)),
        (64, set(ARCHITECTURES)),
    ],
)
def test_why_not(resolution, fitting):
    shape = Shape(1, resolution, 10)
    assert {name for name in ARCHITECTURES if why_not(name, shape) is None} == fitting


@pytest.mark.parametrize(
    ("name", "resolution", "message"),
    [
        (
            "vgg11",
            28,
            r"^vgg11 cannot read 28x28 images with 1 channels: it needs a resolution that is a "
            r"multiple of 32, got 28 \(these can: convnet, frepo_conv, vit\)$",
        ),
        ("alexnet", 30, r"multiple of 8, got 30 \(these can: convnet, frepo_conv\)"),
        ("resnet18", 30, r"multiple of 8, got 30"),
        ("vit", 30, r"multiple of 4, got 30"),
        ("resnet18", 8, r"instance norm erases the image.*: alexnet, convnet, frepo_conv, vit"),
        ("convnet", 1, r"at least 2 pixels per side, got 1 \(these can: none\)"),
    ],
)
def test_a_shape_that_does_not_fit(name, resolution, message):
    with pytest.raises(ConfigError, match=message):
        build(name, Shape(1, resolution, 10))


def test_unknown_architecture():
    message = r"'VGG' is none of the architectures: choose one of alexnet, convnet, frepo_conv, res"
    with pytest.raises(ConfigError, match=message):
        build("VGG", CIFAR)
    with pytest.raises(ConfigError, match=message):
        why_not("VGG", CIFAR)


@pytest.mark.parametrize(
    ("name", "key", "owners"),
    [("resnet18", "depth", "convnet")]
    + [
        (name, *setting)
        for name in ("alexnet", "vgg11", "vit", "frepo_conv")
        for setting in (("width", "convnet and resnet18"), ("depth", "convnet"))
    ],
)
def test_settings_of_other_networks(name, key, owners):
    with pytest.raises(
        ConfigError, match=rf"{key}=3 is a setting of {owners}: set it to null for {name}"
    ):
        build(name, CIFAR, **{key: 3})


def test_the_architectures_that_take_a_setting():
    assert takers("width") == ("convnet", "resnet18") and takers("depth") == ("convnet",)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whether_a_network_fits_is_told_without_drawing_weights(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    require_fit(name, CIFAR)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_that_do_not_fit_are_refused_before_anything_is_built():
    require_fit("convnet", CIFAR, width=8, depth=2)
    with pytest.raises(ConfigError, match="width=8 is a setting of convnet and resnet18: set it"):
        require_fit("vgg11", CIFAR, width=8)
    with pytest.raises(ConfigError, match="depth=6 halves 32 px to nothing"):
        require_fit("convnet", CIFAR, depth=6)
    with pytest.raises(ConfigError, match=r"vgg11 cannot read 8x8 .* \(these can: alex"):
        require_fit("vgg11", Shape(3, 8, 10))


@pytest.mark.parametrize(
    ("name", "key"), [("convnet", "width"), ("convnet", "depth"), ("resnet18", "width")]
)
def test_settings_of_a_network_must_be_positive(name, key):
    with pytest.raises(ConfigError, match=rf"{key} must be a positive integer, got 0"):
        build(name, CIFAR, **{key: 0})


def test_convnet_too_deep():
    assert build("convnet", CIFAR, depth=5, width=2)(images(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(ConfigError, match=r"depth=6 halves 32 px to nothing: use at most 5"):
        build("convnet", CIFAR, depth=6)


@pytest.mark.parametrize("key", ["channels", "resolution", "classes"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_shape_must_be_positive(key, value):
    with pytest.raises(ConfigError, match=rf"{key} must be a positive integer, got {value!r}"):
        Shape(**{"channels": 3, "resolution": 32, "classes": 10, key: value})


@pytest.mark.parametrize(("window", "side"), [(2, 8), (2, 7), (3, 8), (4, 4)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_mean_pooling_equals_average_pooling(window, side, memory):
    x = images(3, 5, side, side + 1).double().contiguous(memory_format=memory).requires_grad_()
    found, expected = mean_of_windows(x, window), F.avg_pool2d(x, window)
    assert torch.equal(MeanPool2d(window)(x), expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slope = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, x, slope)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_a_norm_takes_the_bias_of_a_convolution_away():
    with seeded("bias"):
        left_out = nn.Sequential(NormalisedConv2d(3, 4, 3, padding=1), instance_norm(4)).double()
        added = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), instance_norm(4)).double()
    added.load_state_dict(left_out.state_dict())
    assert left_out[0].bias.abs().max() > 0.1
    x = images(2, 3, 8, 8).double()
    found, expected = left_out(x), added(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slope = images(2, 4, 8, 8).double()
    ours, theirs = (
        torch.autograd.grad(y, list(net.parameters()), slope, materialize_grads=True)
        for net, y in ((left_out, found), (added, expected))
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
