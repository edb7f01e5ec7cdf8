"""A network as one vector: its parameters are views into a flat tensor.

A snapshot is then a single copy, a teacher is loaded by a single copy, and an optimizer updates the
network in one kernel instead of one per parameter.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from apm_core.errors import ConfigError
from apm_core.nets import kernels


class FlatNet:
    """Moves the parameters of `module` into one vector.

    The module stays usable by itself; its parameters keep their names and shapes. Wrap it after
    the last `.to(...)`. Not in the vector: buffers, such as the running statistics of batch norm.

    Raises ConfigError when the module has no parameters, or has them in several types, on several
    devices or in a type other than float32 and float64.

    Attributes: module, the network itself; vector (P,), its parameters in the order of
    `module.parameters()`, each in row-major order.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        _check(parameters)
        self.module = module
        self._parameters = parameters
        self.vector = torch.cat([p.detach().flatten() for p in parameters])
        for parameter, view in zip(parameters, self._split(self.vector, parameters), strict=True):
            parameter.data = view

    @staticmethod
    def _split(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
        pieces = flat.split([p.numel() for p in parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return self.vector.numel()

    @property
    def matrices(self) -> Tensor:
        """Which parameters (P,) stand in matrices and kernels, bool; not those of biases and norms,
        which have one dimension.
        """
        device = self.vector.device
        return torch.cat(
            [torch.full((p.numel(),), p.dim() > 1, device=device) for p in self._parameters]
        )

    @property
    def compile_from_s(self) -> float:
        """Seconds of plain work on a CPU from which compiling the module saves time, as its class
        states; infinite where it states none (ViT and AlexNet run as fast plain, or faster).
        """
        return getattr(self.module, "compile_from_s", math.inf)

    @property
    def draws(self) -> bool:
        """Whether the module draws random numbers when it is trained."""
        return any(isinstance(one, nn.Dropout) and one.p > 0 for one in self.module.modules())

    def use_kernels(self, wanted: bool, report: Callable[[str], None] = lambda _: None) -> None:
        """Let the module's blocks run in kernels of our own, where it has such; these have no
        second derivatives. Where they cannot run, `report` receives why, and plain layers stay.
        """
        if not hasattr(self.module, "kernels"):
            return
        reason = kernels.why_not(self.vector.device) if wanted else None
        if reason:
            report(f"norm, ReLU and pooling run in plain layers, slower: {reason}")
        self.module.kernels = wanted and not reason

    def __call__(self, x: Tensor) -> Tensor:
        """The module's output for `x`."""
        return self.module(x)

    def at(self, vector: Tensor, x: Tensor) -> Tensor:
        """The module's output for `x` with the parameters `vector` (P,), differentiable in both."""
        pieces = self._split(vector, self._parameters)
        names = [name for name, _ in self.module.named_parameters()]
        return functional_call(self.module, dict(zip(names, pieces, strict=True)), (x,))

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient (P,) of `loss`, 0-d, in the parameters; zero in those that it does not
        depend on.
        """
        pieces = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        return torch.cat([piece.flatten() for piece in pieces])

    def load(self, vector: Tensor) -> None:
        """Copy `vector` (P,) into the parameters, in place.

        Autograd does not see the change, so do not call it between a forward and its backward.
        Raises ConfigError when the shape is not (P,): it was then taken from another architecture.
        """
        if vector.shape != self.vector.shape:
            raise ConfigError(
                f"the network has {self.size} parameters but the vector has shape "
                f"{tuple(vector.shape)}: load a snapshot of the same architecture"
            )
        self.vector.copy_(vector)

    def snapshot(self) -> Tensor:
        """A copy (P,) of the parameters that later training leaves alone."""
        return self.vector.clone()


def _check(parameters: list[nn.Parameter]) -> None:
    if not parameters:
        raise ConfigError("the network has no parameters to flatten")
    kinds = {(p.dtype, p.device) for p in parameters}
    if len(kinds) > 1 or parameters[0].dtype not in (torch.float32, torch.float64):
        listing = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ConfigError(
            f"all parameters must be float32, or all float64, on one device; found {listing}"
        )
