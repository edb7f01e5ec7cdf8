"""The network architectures, by name.

Weights start from the framework's defaults, drawn from the global generator: build inside
`streams.seeded(...)` for a network that depends on nothing but its seed.
"""

from torch import nn

from apm_core.errors import ConfigError
from apm_core.nets.alexnet import AlexNet
from apm_core.nets.base import Shape as Shape
from apm_core.nets.convnet import ConvNet
from apm_core.nets.flat import FlatNet as FlatNet
from apm_core.nets.frepo_conv import FRePoConv
from apm_core.nets.resnet import ResNet18
from apm_core.nets.vgg import VGG11
from apm_core.nets.vit import ViT

_REGISTRY = {
    "convnet": ConvNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "vit": ViT,
    "frepo_conv": FRePoConv,
}
ARCHITECTURES = tuple(_REGISTRY)
WITH_WIDTH = ("convnet", "resnet18")  # those that can be made narrower or wider


def why_not(name: str, shape: Shape) -> str | None:
    """The reason why architecture `name` cannot read `shape`, or None when it can.

    Raises ConfigError when there is no architecture of that name.
    """
    if name not in _REGISTRY:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"architecture {name!r} is unknown: choose one of {known}")
    return _REGISTRY[name].why_not(shape)


def require_fit(name: str, shape: Shape) -> None:
    """Raise ConfigError, naming the architectures that fit, unless `name` can read `shape`."""
    reason = why_not(name, shape)
    if reason is not None:
        fitting = [other for other in ARCHITECTURES if why_not(other, shape) is None]
        choice = ", ".join(fitting) or "none"
        raise ConfigError(f"{name} cannot read {shape}: {reason} (these can: {choice})")


def build(
    name: str, shape: Shape, *, width: int | None = None, depth: int | None = None
) -> nn.Module:
    """A network of freshly drawn weights, from images (N, channels, S, S) to logits (N, classes).

    `width` (default: as published) belongs to those of `WITH_WIDTH`, `depth` (default by
    resolution) to ConvNet alone. Raises ConfigError for an unknown name, for a shape that does not
    fit, or for a setting out of place.
    """
    require_fit(name, shape)
    owners = {"width": WITH_WIDTH, "depth": ("convnet",)}
    given = {key: n for key, n in (("width", width), ("depth", depth)) if n is not None}
    for key, value in given.items():
        if name not in owners[key]:
            known = " and ".join(owners[key])
            raise ConfigError(f"{key}={value} is a setting of {known}: remove it for {name}")
    return _REGISTRY[name](shape, **given)
