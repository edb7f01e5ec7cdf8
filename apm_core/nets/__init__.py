"""The network architectures, by name: one module of `apm_core.nets.architectures` for each.

Weights start from the framework's defaults, drawn from the global generator: build inside
`streams.seeded(...)` for a network that depends on nothing but its seed.
"""

import inspect

import torch
from torch import nn

from apm_core.errors import ConfigError
from apm_core.nets.base import Shape as Shape
from apm_core.nets.flat import FlatNet as FlatNet
from apm_core.settings.names import module_of, names_in

FOLDER = "nets.architectures"


def why_not(name: str, shape: Shape) -> str | None:
    """The reason why architecture `name` cannot read `shape`, or None when it can.

    Raises ConfigError when there is no architecture of that name.
    """
    return _class(name).why_not(shape)


def takers(setting: str) -> tuple[str, ...]:
    """The architectures whose constructor takes `setting`, "width" or "depth"."""
    return tuple(
        name for name in names_in(FOLDER) if setting in inspect.signature(_class(name)).parameters
    )


def require_fit(
    name: str, shape: Shape, *, width: int | None = None, depth: int | None = None
) -> None:
    """Raise ConfigError where `build` would, without drawing or holding any weights."""
    with torch.device("meta"):
        build(name, shape, width=width, depth=depth)


def require_embedding(key: str, name: str, net: nn.Module | None = None) -> None:
    """Raise ConfigError, naming `key`, unless `net` (None: architecture `name`) has an `embed`."""
    if not hasattr(net or _class(name), "embed"):
        owners = [other for other in names_in(FOLDER) if hasattr(_class(other), "embed")]
        raise ConfigError(f"{key}: {name} has no embedding: use {' or '.join(owners)}")


def build(
    name: str, shape: Shape, *, width: int | None = None, depth: int | None = None
) -> nn.Module:
    """A network of freshly drawn weights, from images (N, channels, S, S) to logits (N, classes).

    `width` and `depth` (None: as published, or by resolution) belong to the architectures whose
    constructor takes them. Raises ConfigError for an unknown name, for a shape that does not fit,
    or for a setting out of place or out of bounds.
    """
    _check_shape(name, shape)
    sizes = {key: n for key, n in (("width", width), ("depth", depth)) if n is not None}
    for key, value in sizes.items():
        owners = takers(key)
        if name not in owners:
            listing = " and ".join(owners)
            raise ConfigError(f"{key}={value} is a setting of {listing}: set it to null for {name}")
    return _class(name)(shape, **sizes)


def _class(name: str) -> type[nn.Module]:
    return module_of(FOLDER, name).NETWORK


def _check_shape(name: str, shape: Shape) -> None:
    """Raise ConfigError, naming the architectures that fit, unless `name` can read `shape`."""
    reason = why_not(name, shape)
    if reason is not None:
        fitting = [other for other in names_in(FOLDER) if why_not(other, shape) is None]
        choice = ", ".join(fitting) or "none"
        raise ConfigError(f"{name} cannot read {shape}: {reason} (these can: {choice})")
