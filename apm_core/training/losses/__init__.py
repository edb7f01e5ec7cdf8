"""The losses of a training: one module for each, whose name is that of the module.

A module defines `loss(logits, targets) -> Tensor`, a plain function, which is compiled together
with the network.
"""

from collections.abc import Callable

from torch import Tensor

from apm_core.settings.names import module_of

FOLDER = "training.losses"
Loss = Callable[[Tensor, Tensor], Tensor]


def loss_of(name: str) -> Loss:
    """The function from logits (N, C) and targets to the scalar loss `name`; raises ConfigError for
    an unknown name.
    """
    return module_of(FOLDER, name).loss
