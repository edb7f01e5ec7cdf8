"""The specification of a network: architecture, shape, width and depth."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from apm_core import nets
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.settings.training import Network


@dataclass(frozen=True)
class Spec:
    """Builds networks of one architecture for one shape of images.

    `width` and `depth` are those of `nets.build`.
    """

    name: str
    shape: Shape
    width: int | None = None
    depth: int | None = None

    @classmethod
    def of(cls, settings: Network, shape: Shape) -> "Spec":
        """The architecture that a stage's settings name."""
        return cls(settings.network, shape, settings.width, settings.depth)

    def build(self) -> nn.Module:
        """A module with freshly drawn weights; raises ConfigError when the shape does not fit."""
        return nets.build(self.name, self.shape, width=self.width, depth=self.depth)

    def network(self, device: torch.device) -> FlatNet:
        """A network on `device`, whose parameters are to be loaded."""
        return FlatNet(self.build().to(device))

    def fresh(self, *stream: streams.Key) -> Tensor:
        """Freshly drawn parameters (P,) of the network named by `stream`, on the CPU."""
        with streams.seeded(*stream):
            return parameters_to_vector(self.build().parameters()).detach()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; `Spec.from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Spec":
        """The spec that `to_dict` described."""
        return cls(**{**fields, "shape": Shape(**fields["shape"])})
