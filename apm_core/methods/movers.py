"""Movers: optimizers of the tensors that a method learns, such as images, labels, learning rate.

A method states a mover for each tensor of its state that it gives gradients for. The mover's own
state for a tensor `NAME` is part of the method's, as `NAME_velocity`, `NAME_first` and so on, so
that a resumed run gives the same bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apm_core.training.optimizers import Moments, adabelief_, adam_, lamb_

State = dict[str, Any]  # tensors and numbers: all that a later round depends on
Rate = float | Callable[[int], float]  # constant, or by the index of the round


@dataclass(frozen=True)
class Rows:
    """The gradient of some rows of a tensor; that of the others is zero."""

    index: Tensor  # (B,) int64
    values: Tensor  # (B, ...)

    def to(self, device: torch.device) -> "Rows":
        """The same on `device`."""
        return Rows(self.index.to(device), self.values.to(device))


def whole(gradient: Tensor | Rows, tensor: Tensor) -> Tensor:
    """The gradient of all rows of `tensor`, zero where `gradient` has none."""
    if isinstance(gradient, Tensor):
        return gradient
    return torch.zeros_like(tensor).index_copy(0, gradient.index, gradient.values)


@dataclass(frozen=True)
class Average:
    """The moving average of a tensor over the rounds, a <- share a + (1 - share) tensor.

    It begins at the tensor's first value, or (`from_zero`) at zero with the bias corrected at the
    end.
    """

    share: float
    from_zero: bool = False


class Mover(ABC):
    """Moves one tensor of a state along its gradient.

    Attributes: at_home: the tensor is as large as the whole shard, and it and its mover's state are
    kept in `job.home`; others are kept on the device.
    """

    at_home: bool

    @abstractmethod
    def rate_at(self, index: int) -> float:
        """The rate of round `index`."""

    @abstractmethod
    def start(self, name: str, tensor: Tensor) -> State:
        """The mover's state for `tensor` before the first step."""

    @abstractmethod
    def move(self, state: State, name: str, gradient: Tensor | Rows, index: int) -> State:
        """The entries of the state that round `index` changes; those at home may do so in place."""

    @abstractmethod
    def product(self, state: State, name: str) -> Tensor:
        """The final tensor."""


@dataclass(frozen=True)
class _Optimizer(Mover):
    """A mover with a rate, and perhaps an average.

    Attributes:
        rate: step, or share of the tensor's norm (LAMB).
        average: of the tensor over the rounds, if it is the product.
    """

    rate: Rate
    average: Average | None = None
    at_home: bool = False

    def rate_at(self, index: int) -> float:
        """The rate of round `index`."""
        return self.rate(index) if callable(self.rate) else self.rate

    def start(self, name: str, tensor: Tensor) -> State:
        """The mover's state for `tensor` before the first step."""
        state = {f"{name}_{key}": value for key, value in self._rest(tensor).items()}
        if self.average:
            state[f"{name}_average"] = tensor.clone()
            if self.average.from_zero:
                state[f"{name}_average"].zero_()
                state[f"{name}_averaged"] = torch.zeros((), dtype=torch.int64)  # rounds
        return state

    def move(self, state: State, name: str, gradient: Tensor | Rows, index: int) -> State:
        """The entries of the state that round `index` changes; those at home may do so in place."""
        gradient = gradient.to(state[name].device)
        moved = self._moved(state, name, gradient, self.rate_at(index))
        if self.average:
            key, share = f"{name}_average", self.average.share
            moved[key] = share * state[key] + (1 - share) * moved[name]
            if self.average.from_zero:
                moved[f"{name}_averaged"] = state[f"{name}_averaged"] + 1
        return moved

    def product(self, state: State, name: str) -> Tensor:
        """The final tensor: its average, if there is one."""
        if not self.average:
            return state[name]
        if not self.average.from_zero:
            return state[f"{name}_average"]
        weight = 1 - self.average.share ** int(state[f"{name}_averaged"])
        return state[f"{name}_average"] / weight if weight else state[name]

    @abstractmethod
    def _rest(self, tensor: Tensor) -> State:
        """The optimizer's state before the first step, by its own names."""

    @abstractmethod
    def _moved(self, state: State, name: str, gradient: Tensor | Rows, rate: float) -> State:
        """The tensor and its optimizer's state after a step."""


@dataclass(frozen=True)
class Momentum(_Optimizer):
    """Moves a tensor by SGD with momentum: v <- m v + g, x <- x - rate v.

    Rows without a gradient move on by their momentum.
    """

    momentum: float = 0.0
    least: float | None = None  # the tensor stays above

    def _rest(self, tensor: Tensor) -> State:
        return {"velocity": torch.zeros_like(tensor)}

    def _moved(self, state: State, name: str, gradient: Tensor | Rows, rate: float) -> State:
        tensor, velocity = state[name], state[f"{name}_velocity"]
        if self.at_home:  # in place: a copy may exceed the memory
            velocity *= self.momentum
            if isinstance(gradient, Rows):
                velocity[gradient.index] += gradient.values
            else:
                velocity += gradient
            tensor.sub_(velocity, alpha=rate)
            if self.least is not None:
                tensor.clamp_min_(self.least)
            return {name: tensor, f"{name}_velocity": velocity}
        velocity = self.momentum * velocity + whole(gradient, tensor)
        tensor = tensor - rate * velocity
        if self.least is not None:
            tensor = tensor.clamp_min(self.least)
        return {name: tensor, f"{name}_velocity": velocity}


@dataclass(frozen=True)
class _Adaptive(_Optimizer):
    """A mover with two moments and a count of steps."""

    def _rest(self, tensor: Tensor) -> State:
        return dict(vars(Moments.at_rest(tensor)))

    def _moved(self, state: State, name: str, gradient: Tensor | Rows, rate: float) -> State:
        tensor = state[name].clone()
        moments = Moments(*(state[f"{name}_{key}"].clone() for key in ("first", "second", "count")))
        self._descend(tensor, whole(gradient, tensor), moments, rate)
        return {name: tensor, **{f"{name}_{key}": value for key, value in vars(moments).items()}}

    @abstractmethod
    def _descend(self, tensor: Tensor, gradient: Tensor, moments: Moments, rate: float) -> None:
        """Update `tensor` and `moments` by one step, in place."""


@dataclass(frozen=True)
class Adam(_Adaptive):
    """Moves a tensor by Adam."""

    def _descend(self, tensor: Tensor, gradient: Tensor, moments: Moments, rate: float) -> None:
        adam_(tensor, gradient, moments, rate)


@dataclass(frozen=True)
class Lamb(_Adaptive):
    """Moves a tensor by LAMB; `rate` is the share of its norm that the tensor moves."""

    def _descend(self, tensor: Tensor, gradient: Tensor, moments: Moments, rate: float) -> None:
        lamb_(tensor, gradient, moments, rate)


@dataclass(frozen=True)
class AdaBelief(_Adaptive):
    """Moves a tensor by AdaBelief."""

    def _descend(self, tensor: Tensor, gradient: Tensor, moments: Moments, rate: float) -> None:
        adabelief_(tensor, gradient, moments, rate)
