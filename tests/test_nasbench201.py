"""NAS-Bench-201: strings, sampling, published sizes and a cell recomputed node by node."""

import csv
import gzip
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apm_core.errors import ConfigError
from apm_core.nets import Shape
from apm_core.nets.nasbench201 import OPS, Cell, format_arch, is_constant, network, parse, sample
from apm_core.runtime.streams import generator, seeded

TABLE = Path(__file__).parents[2] / "shared/data/nasbench201_accuracy.csv.gz"
CIFAR = Shape(channels=3, resolution=32, classes=10)
SPACE = list(itertools.product(range(5), repeat=6))
MIXED = (3, 3, 3, 1, 3, 3)
RESNET = (3, 0, 3, 1, 0, 0)
COUNTS = [
    ((3,) * 6, 1_531_546, 364_954),
    ((2,) * 6, 241_306, 106_906),
    ((1,) * 6, 73_306, 73_306),
    ((0,) * 6, 73_306, 73_306),
    ((4,) * 6, 73_306, 73_306),
    (MIXED, 1_288_506, 316_346),
    (RESNET, 559_386, 170_522),
]


def size(net):
    return sum(p.numel() for p in net.parameters())


def test_string_form():
    text = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
    assert parse(text) == (3, 0, 2, 1, 4, 3)
    assert format_arch([3, 0, 2, 1, 4, 3]) == text
    assert OPS == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def test_every_architecture_round_trips():
    strings = {format_arch(ops) for ops in SPACE}
    assert len(strings) == 15_625
    assert all(parse(format_arch(ops)) == ops for ops in SPACE)


@pytest.mark.skipif(not TABLE.exists(), reason="the benchmark's table of accuracies is not here")
def test_the_benchmark_has_exactly_these_strings():
    with gzip.open(TABLE, "rt") as file:
        strings = [row["arch_str"] for row in csv.DictReader(file)]
    assert len(strings) == 15_625
    assert set(strings) == {format_arch(ops) for ops in SPACE}
    assert all(format_arch(parse(text)) == text for text in strings)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|",  # no such operation
        "|none~1|+|none~0|none~1|+|none~0|none~1|none~2|",  # no such edge
        "|none~0|+|none~0|none~1|",  # a node short
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|\n",
        "x|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    ],
)
def test_parse_says_what_it_expected(text):
    message = (
        r"is not a NAS-Bench-201 architecture: expected \|op~0\|\+.*op~2\| with each op one of"
    )
    with pytest.raises(ConfigError, match=message + " none, skip_connect"):
        parse(text)


@pytest.mark.parametrize("ops", [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, -1)])
@pytest.mark.parametrize("function", [format_arch, is_constant, lambda ops: network(ops, CIFAR)])
def test_six_indices_are_wanted(function, ops):
    with pytest.raises(ConfigError, match=r"ops must be six indices from 0 to 4, got \(0, 1, 2"):
        function(ops)


def test_is_constant_means_every_path_is_cut():
    paths = [(3,), (0, 4), (1, 5), (0, 2, 5)]  # 0-3, 0-1-3, 0-2-3, 0-1-2-3 as edge numbers
    for ops in SPACE:
        assert is_constant(ops) == all(any(ops[edge] == 0 for edge in path) for path in paths)


@pytest.mark.parametrize(
    ("ops", "constant"),
    [((0,) * 6, True), ((0, 0, 3, 0, 3, 3), True), ((3, 0, 0, 0, 1, 0), False)],
)
def test_a_constant_network_ignores_its_images(ops, constant):
    assert is_constant(ops) == constant
    with seeded("constant"):
        net = network(ops, Shape(1, 8, 3), stem=4, cells=1).eval()
    a, b = net(torch.randn(2, 1, 8, 8, generator=generator("constant")))
    assert torch.allclose(a, b, atol=1e-6) == constant


def test_sample_is_nested_distinct_and_never_constant():
    many = sample(300, seed=1)
    assert sample(40, seed=1) == many[:40]
    assert sample(300, seed=2) != many
    assert len(set(many)) == 300
    assert not any(is_constant(parse(arch)) for arch in many)


def test_sample_is_uniform():
    """The whole space is reached, and each operation of the first edge as often as it should be."""
    usable = [ops for ops in SPACE if not is_constant(ops)]
    assert {parse(arch) for arch in sample(len(usable), seed=0)} == set(usable)
    drawn = [parse(arch)[0] for arch in sample(2000, seed=0)]
    for op in range(5):
        share = sum(ops[0] == op for ops in usable) / len(usable)
        assert drawn.count(op) / 2000 == pytest.approx(share, abs=4 * (share / 2000) ** 0.5)


def test_sample_bounds():
    constant = sum(is_constant(ops) for ops in SPACE)
    message = rf"n=15625 networks asked for: only {15_625 - constant} are not constant"
    with pytest.raises(ConfigError, match=message):
        sample(15_625, seed=0)
    with pytest.raises(ConfigError, match=r"n must be a positive integer, got 0"):
        sample(0, seed=0)


@pytest.mark.parametrize(("ops", "five", "one"), COUNTS)
def test_parameter_counts(ops, five, one):
    with torch.device("meta"):
        assert size(network(ops, CIFAR)) == five
        assert size(network(ops, CIFAR, cells=1)) == one
        assert size(network(ops, CIFAR, norm="instance")) == five


def _edge(x, op, weights):
    """One operation, written out: `weights` is (kernel, scale, shift) for the convolutions."""
    if op in (2, 3):
        kernel, scale, shift = weights
        y = F.conv2d(x.clamp(min=0), kernel, padding=op - 2)
        return F.batch_norm(y, None, None, scale, shift, training=True)
    if op == 4:  # the mean over the pixels that exist
        ones = torch.ones(1, 1, 3, 3).expand(x.shape[1], 1, 3, 3)
        total = F.conv2d(x, ones, padding=1, groups=x.shape[1])
        return total / F.conv2d(torch.ones_like(x), ones, padding=1, groups=x.shape[1])
    return x if op == 1 else 0 * x


@pytest.mark.parametrize(
    "ops",
    [(3, 4, 2, 1, 0, 3), (2, 3, 0, 0, 4, 1), (0, 3, 2, 4, 3, 2), (1, 1, 1, 1, 1, 1), (0,) * 6],
)
def test_cell_equals_its_definition(ops):
    with seeded("cell"):
        cell = Cell(ops, 4, nn.BatchNorm2d)
        for parameter in cell.parameters():
            nn.init.normal_(parameter)
        x = torch.randn(3, 4, 6, 6)
    weights = iter(cell.parameters())
    a, b, c, d, e, f = ([next(weights) for _ in range(3)] if op in (2, 3) else () for op in ops)
    one = _edge(x, ops[0], a)
    two = _edge(x, ops[1], b) + _edge(one, ops[2], c)
    three = _edge(x, ops[3], d) + _edge(one, ops[4], e) + _edge(two, ops[5], f)
    torch.testing.assert_close(cell(x), three, rtol=1e-4, atol=1e-4)


def test_frame_equals_its_definition():
    """With skips as operations, cells multiply by 4 and only the frame remains to be checked."""
    with seeded("frame"):
        net = network((1,) * 6, Shape(3, 8, 5), stem=4, cells=2, norm="instance")
        x = torch.randn(2, 3, 8, 8)
    weights = iter(net.parameters())

    def conv_norm(h, stride=1):
        kernel, scale, shift = next(weights), next(weights), next(weights)
        h = F.conv2d(h, kernel, stride=stride, padding=1)
        return F.instance_norm(h, weight=scale, bias=shift)

    h = 16 * conv_norm(x)
    for _ in range(2):
        main = conv_norm(conv_norm(h.clamp(min=0), stride=2).clamp(min=0))
        h = 16 * (main + F.conv2d(F.avg_pool2d(h, 2), next(weights)))
    h = F.instance_norm(h, weight=next(weights), bias=next(weights)).clamp(min=0)
    expected = h.mean(dim=(2, 3)) @ next(weights).T + next(weights)
    assert h.shape == (2, 16, 2, 2)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("instance", nn.GroupNorm)])
def test_norms(norm, kind):
    layers = list(network(MIXED, CIFAR, cells=1, norm=norm).modules())
    found = [m for m in layers if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    # stem, 5 convolutions in each of 3 cells, 2 in each of 2 reductions, tail
    assert len(found) == 1 + 3 * 5 + 2 * 2 + 1
    assert all(type(m) is kind and m.weight.requires_grad for m in found)
    assert all(m.num_groups == m.num_channels for m in found if kind is nn.GroupNorm)


@pytest.mark.parametrize(("resolution", "norm"), [(4, "batch"), (8, "instance"), (28, "batch")])
def test_small_images(resolution, norm):
    with seeded("small"):
        net = network(MIXED, Shape(1, resolution, 7), stem=4, cells=1, norm=norm)
        a, b = net(torch.randn(2, 1, resolution, resolution))
    assert a.shape == (7,)
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("resolution", "options", "message"),
    [
        (30, {}, r"nasbench201 cannot read 30x30 images with 1 channels: .*multiple of 4, got 30"),
        (4, {"norm": "instance"}, r"last map would be 1x1, where instance norm erases the image"),
        (32, {"norm": "layer"}, r"norm must be one of batch, instance, got 'layer'"),
        (32, {"stem": 0}, r"stem must be a positive integer, got 0"),
        (32, {"cells": 0}, r"cells must be a positive integer, got 0"),
    ],
)
def test_network_refuses(resolution, options, message):
    with pytest.raises(ConfigError, match=message):
        network(MIXED, Shape(1, resolution, 10), **options)
