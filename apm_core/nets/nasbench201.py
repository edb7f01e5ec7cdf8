"""The networks of NAS-Bench-201 (Dong & Yang, ICLR 2020): 15,625 cells in one fixed frame.

A cell has nodes 0 (input) to 3 (output); node i is the sum over j < i of an operation on node j.
Six edges with five operations each give 5^6 cells. An architecture is written either as six indices
into OPS, in the order of EDGES, or as the benchmark's string |op~0|+|op~0|op~1|+|op~0|op~1|op~2|.
Batch norm has a scale and a shift everywhere, as in the benchmark's own trainings.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from apm_core.errors import ConfigError
from apm_core.nets.base import MeanPool2d, Shape, check_positive, instance_norm, multiple_of
from apm_core.runtime.streams import generator

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # (node, the earlier node it reads)
SPACE = len(OPS) ** len(EDGES)

Ops = tuple[int, int, int, int, int, int]
Norm = Callable[[int], nn.Module]

_FORM = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
_PATTERN = re.compile(re.escape(_FORM).replace("op", f"({'|'.join(OPS)})"))
_NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "instance": instance_norm}


def parse(arch: str) -> Ops:
    """The six operation indices of an architecture string; ConfigError when it is not one."""
    match = _PATTERN.fullmatch(arch)
    if match is None:
        raise ConfigError(
            f"{arch!r} is not a NAS-Bench-201 architecture: "
            f"expected {_FORM} with each op one of {', '.join(OPS)}"
        )
    return tuple(OPS.index(name) for name in match.groups())


def format_arch(ops: Sequence[int]) -> str:
    """The benchmark's string of six operation indices; ConfigError unless there are six in 0..4."""
    names = [OPS[index] for index in _checked(ops)]
    return "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*names)


def is_constant(ops: Sequence[int]) -> bool:
    """Whether no path of operations other than `none` leads from the cell's input to its output.

    Such a network gives the same logits for every image, so its rank among others means nothing.
    """
    nodes = {0}
    for (node, source), op in zip(EDGES, _checked(ops), strict=True):
        if OPS[op] != "none" and source in nodes:
            nodes.add(node)
    return 3 not in nodes


def sample(n: int, seed: int) -> list[str]:
    """`n` distinct architectures, uniform over the space without its constant networks.

    The same seed gives the same list, and a larger `n` extends it. Raises ConfigError unless `n` is
    positive and no larger than the number of networks that are not constant.
    """
    check_positive("n", n)
    order = torch.randperm(SPACE, generator=generator("nasbench201", seed)).tolist()
    usable = [ops for ops in map(_digits, order) if not is_constant(ops)]
    if n > len(usable):
        raise ConfigError(f"n={n} networks asked for: only {len(usable)} are not constant")
    return [format_arch(ops) for ops in usable[:n]]


def network(
    ops: Sequence[int], shape: Shape, *, stem: int = 16, cells: int = 5, norm: str = "batch"
) -> nn.Module:
    """Build the network of one cell: images (N, channels, S, S) to logits (N, classes).

    Three stages of `cells` equal cells at `stem`, 2 `stem` and 4 `stem` channels and S, S/2 and S/4
    pixels, with a residual block of stride 2 between them. `norm` is "batch" or "instance"; the
    latter suits images that were distilled on networks with instance norm. Raises ConfigError when
    an argument is out of bounds, S is no multiple of 4, or S is 4 with instance norm.
    """
    ops = _checked(ops)
    check_positive("stem", stem)
    check_positive("cells", cells)
    if norm not in _NORMS:
        raise ConfigError(f"norm must be one of {', '.join(_NORMS)}, got {norm!r}")
    reason = multiple_of(4, shape.resolution)
    if shape.resolution == 4 and norm == "instance":
        reason = "its last map would be 1x1, where instance norm erases the image"
    if reason is not None:
        raise ConfigError(f"nasbench201 cannot read {shape}: {reason}")
    make, width = _NORMS[norm], stem
    layers: list[nn.Module] = [
        nn.Conv2d(shape.channels, width, 3, padding=1, bias=False),
        make(width),
    ]
    for stage in range(3):
        if stage:
            layers.append(Reduction(width, make))
            width *= 2
        layers += [Cell(ops, width, make) for _ in range(cells)]
    layers += [make(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers.append(nn.Linear(width, shape.classes))
    return ChannelsLast(*layers) if norm == "batch" else nn.Sequential(*layers)


class ChannelsLast(nn.Sequential):
    """Layers whose maps lie channels last in memory, where few channels and batch norm take two
    thirds of the time that they take elsewhere, on a CPU; instance norm there takes longer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to logits (N, classes)."""
        return super().forward(x.contiguous(memory_format=torch.channels_last))


class Cell(nn.Module):
    """One cell, (N, width, S, S) to the same shape; edges of `none` cost nothing."""

    def __init__(self, ops: Ops, width: int, norm: Norm) -> None:
        super().__init__()
        # (node, source) of every edge that carries something, beside its operation in `self.ops`
        self.edges = [edge for edge, op in zip(EDGES, ops, strict=True) if OPS[op] != "none"]
        self.ops = nn.ModuleList(
            _operation(OPS[op], width, norm) for op in ops if OPS[op] != "none"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, S, S) to (N, width, S, S)."""
        nodes = [x]
        for node in (1, 2, 3):
            edges = zip(self.edges, self.ops, strict=True)
            terms = [operation(nodes[source]) for (end, source), operation in edges if end == node]
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        return nodes[3]


class Reduction(nn.Module):
    """The residual block between stages: (N, width, S, S) to (N, 2 width, S/2, S/2)."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.main = nn.Sequential(
            _relu_conv_norm(width, 2 * width, 3, norm, stride=2),
            _relu_conv_norm(2 * width, 2 * width, 3, norm),
        )
        self.shortcut = nn.Sequential(MeanPool2d(2), nn.Conv2d(width, 2 * width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, S, S) to (N, 2 width, S/2, S/2)."""
        return self.main(x) + self.shortcut(x)


def _operation(name: str, width: int, norm: Norm) -> nn.Module:
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return _relu_conv_norm(width, width, 1 if name == "nor_conv_1x1" else 3, norm)


def _relu_conv_norm(
    inputs: int, outputs: int, kernel: int, norm: Norm, *, stride: int = 1
) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, norm(outputs))


def _digits(index: int) -> Ops:
    """The index-th cell: its six digits in base 5."""
    return tuple(index // len(OPS) ** place % len(OPS) for place in range(len(EDGES)))


def _checked(ops: Sequence[int]) -> Ops:
    if len(ops) != len(EDGES) or any(op not in range(len(OPS)) for op in ops):
        raise ConfigError(f"ops must be six indices from 0 to {len(OPS) - 1}, got {ops!r}")
    return tuple(ops)
