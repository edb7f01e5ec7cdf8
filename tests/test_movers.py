"""How the house moves a tensor, against torch's optimizers and formulas in numpy."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from apm_core.methods.movers import AdaBelief, Adam, Average, Lamb, Momentum, Mover, Rows, State

STEPS = 6
MOVERS = {
    "momentum": Momentum(0.3, momentum=0.5),
    "adam": Adam(0.1),
    "lamb": Lamb(0.02),
    "adabelief": AdaBelief(0.05),
}
MOMENTS = ("first", "second", "count")
every_mover = pytest.mark.parametrize("name", MOVERS)


def tensor() -> Tensor:
    return torch.linspace(-1, 2, 12, dtype=torch.float64).view(4, 3)


def gradients() -> Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.randn(STEPS, 4, 3, generator=random, dtype=torch.float64)


def begun(mover: Mover) -> State:
    """A state that holds the tensor as `x`, and what is remembered of it."""
    state = {"x": tensor()}
    return state | mover.start("x", state["x"])


def followed(mover: Mover, given: list[Tensor | Rows] | Tensor | None = None) -> list[State]:
    """The states after each gradient."""
    state, found = begun(mover), []
    for index, gradient in enumerate(gradients() if given is None else given):
        state = state | mover.move(state, "x", gradient, index)
        found.append(copy.deepcopy(state))
    return found


def by_torch(kind: type, **options: Any) -> list[Tensor]:
    leaf, found = tensor().requires_grad_(), []
    optimizer = kind([leaf], **options)
    for gradient in gradients():
        leaf.grad = gradient.clone()
        optimizer.step()
        found.append(leaf.detach().clone())
    return found


def by_formula(step: Callable[..., np.ndarray]) -> list[Tensor]:
    """`step` gives the next tensor from tensor, gradient, number, and moments it may change."""
    x, m, v, found = tensor().numpy(), np.zeros((4, 3)), np.zeros((4, 3)), []
    for t, g in enumerate(gradients().numpy(), start=1):
        x = step(x, g, t, m, v)
        found.append(torch.from_numpy(x))
    return found


def lamb(x: np.ndarray, g: np.ndarray, t: int, m: np.ndarray, v: np.ndarray) -> np.ndarray:
    m[:], v[:] = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    r = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
    return x - 0.02 * np.linalg.norm(x) / np.linalg.norm(r) * r


def adabelief(x: np.ndarray, g: np.ndarray, t: int, m: np.ndarray, v: np.ndarray) -> np.ndarray:
    m[:] = 0.9 * m + 0.1 * g
    v[:] = 0.999 * v + 0.001 * (g - m) ** 2 + 1e-16
    return x - 0.05 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-16)


REFERENCES = {
    "momentum": lambda: by_torch(torch.optim.SGD, lr=0.3, momentum=0.5),
    "adam": lambda: by_torch(torch.optim.Adam, lr=0.1),
    "lamb": lambda: by_formula(lamb),
    "adabelief": lambda: by_formula(adabelief),
}


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@every_mover
def test_a_mover_moves_as_its_optimizer_does(name):
    states = followed(MOVERS[name])
    for state, expected in zip(states, REFERENCES[name](), strict=True):
        assert_close(state["x"], expected)


def test_without_momentum_it_is_plain_descent():
    for state, expected in zip(
        followed(Momentum(0.3)), by_torch(torch.optim.SGD, lr=0.3), strict=True
    ):
        assert_close(state["x"], expected)


@every_mover
@pytest.mark.parametrize("average", [None, Average(0.9), Average(0.9, from_zero=True)])
def test_all_that_is_remembered_lies_in_the_state_under_the_tensors_name(name, average):
    mover = type(MOVERS[name])(0.1, average)
    names = {"velocity"} if name == "momentum" else {*MOMENTS}
    names |= {"average"} if average else set()
    names |= {"averaged"} if average and average.from_zero else set()
    state = begun(mover)
    assert state.keys() == {"x", *(f"x_{key}" for key in names)}
    changed = mover.move(state, "x", gradients()[0], 0)
    assert changed.keys() == state.keys()


@every_mover
def test_a_move_leaves_the_state_that_it_is_given(name):
    """Not at home: a round that is not finished must be repeatable."""
    for average in (None, Average(0.5), Average(0.5, from_zero=True)):
        mover = type(MOVERS[name])(0.1, average)
        state = begun(mover)
        for gradient in gradients()[:2]:
            before = copy.deepcopy(state)
            moved = mover.move(state, "x", gradient, 0)
            torch.testing.assert_close(state, before, rtol=0, atol=0)
            state = state | moved


@every_mover
def test_a_mover_goes_on_from_a_state_that_was_saved(name, tmp_path):
    mover = type(MOVERS[name])(0.1, Average(0.9, from_zero=True))
    whole = followed(mover)
    torch.save(followed(mover, gradients()[:3])[-1], tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    for index in range(3, STEPS):
        state |= mover.move(state, "x", gradients()[index], index)
    assert torch.equal(mover.product(state, "x"), mover.product(whole[-1], "x"))
    assert torch.equal(state["x"], whole[-1]["x"])


# Averages


@pytest.mark.parametrize("at_home", [False, True])
def test_an_average_from_the_start_begins_at_the_tensor(at_home):
    mover = Momentum(0.3, Average(0.75), at_home, momentum=0.5)
    expected = tensor()
    assert torch.equal(mover.product(begun(mover), "x"), expected)
    path = by_torch(torch.optim.SGD, lr=0.3, momentum=0.5)
    for state, at in zip(followed(mover), path, strict=True):
        expected = 0.75 * expected + 0.25 * at
        assert_close(state["x"], at)
        assert_close(mover.product(state, "x"), expected)


@every_mover
def test_an_average_from_zero_is_freed_from_its_start(name):
    """It is then the mean of the tensors so far, the later the more."""
    options = {"momentum": 0.5} if name == "momentum" else {}
    mover = type(MOVERS[name])(MOVERS[name].rate, Average(0.75, from_zero=True), **options)
    assert torch.equal(mover.product(begun(mover), "x"), tensor())  # no round yet
    path = REFERENCES[name]()
    for count, state in enumerate(followed(mover), start=1):
        weights = np.array([0.75 ** (count - 1 - at) for at in range(count)])
        mean = sum(w * x for w, x in zip(weights / weights.sum(), path, strict=False))
        assert_close(mover.product(state, "x"), mean)
        assert_close(state["x_average"], 0.25 * weights.sum() * mean)


def test_without_an_average_the_product_is_the_tensor():
    state = begun(Adam(0.1))
    assert Adam(0.1).product(state, "x") is state["x"]


# Rows


def some_rows() -> tuple[list[Rows], list[Tensor]]:
    """Gradients of other rows in every round, and the same as whole tensors."""
    rows, whole = [], []
    for index, gradient in enumerate(gradients()):
        members = torch.tensor([[0, 2], [1, 0], [3, 1], [2, 3], [0, 1], [3, 0]][index])
        rows.append(Rows(members, gradient[members]))
        mask = torch.zeros(4, 1, dtype=torch.float64)
        mask[members] = 1.0
        whole.append(mask * gradient)
    return rows, whole


@pytest.mark.parametrize("at_home", [False, True])
@every_mover
def test_the_gradient_of_rows_is_the_whole_one_with_zeros_elsewhere(name, at_home):
    options = {"momentum": 0.5} if name == "momentum" else {}
    mover = type(MOVERS[name])(0.1, None, at_home, **options)
    rows, whole = some_rows()
    for state, expected in zip(followed(mover, rows), followed(mover, whole), strict=True):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items())


@pytest.mark.parametrize("at_home", [False, True])
def test_rows_without_a_gradient_move_on_by_their_momentum(at_home):
    mover = Momentum(0.4, None, at_home, momentum=0.5)
    gradient = gradients()[0]
    first, second = followed(
        mover, [gradient, Rows(torch.tensor([1]), torch.full((1, 3), 7.0, dtype=torch.float64))]
    )
    others = [0, 2, 3]
    assert_close(first["x"], tensor() - 0.4 * gradient)
    assert_close(second["x"][others], first["x"][others] - 0.4 * 0.5 * gradient[others])
    assert_close(second["x_velocity"][others], 0.5 * gradient[others])
    assert_close(second["x_velocity"][1], 0.5 * gradient[1] + 7.0)


# At home


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_at_home_a_tensor_moves_in_place_and_to_the_same_values(kind):
    away = Momentum(0.3, momentum=0.5)
    home = Momentum(0.3, momentum=0.5, at_home=True)
    for given in (list(gradients()), some_rows()[0]):
        states = []
        for mover in (away, home):
            x = tensor().to(kind)
            state = {"x": x} | mover.start("x", x)
            places = {key: value.data_ptr() for key, value in state.items()}
            for index, gradient in enumerate(given):
                gradient = (
                    Rows(gradient.index, gradient.values.to(kind))
                    if isinstance(gradient, Rows)
                    else gradient.to(kind)
                )
                state |= mover.move(state, "x", gradient, index)
            stayed = {key: value.data_ptr() == places[key] for key, value in state.items()}
            assert set(stayed.values()) == {mover.at_home}
            states.append(state)
        few = 8 * torch.finfo(kind).eps
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=few, atol=few)


# Bounds and rates


@pytest.mark.parametrize("at_home", [False, True])
def test_a_tensor_stays_above_its_least_value(at_home):
    mover = Momentum(0.5, None, at_home, momentum=0.9, least=0.25)
    x, v = tensor().numpy().copy(), 0.0
    reached = False
    for state, gradient in zip(followed(mover), gradients().numpy(), strict=True):
        v = 0.9 * v + gradient
        reached = reached or bool((x - 0.5 * v < 0.25).any())
        x = np.maximum(x - 0.5 * v, 0.25)
        assert_close(state["x"], torch.from_numpy(x))
        assert_close(state["x_velocity"], torch.from_numpy(v))  # the momentum is not cut
    assert reached


@every_mover
def test_the_rate_may_follow_the_index_of_the_round(name):
    options = {"momentum": 0.5} if name == "momentum" else {}
    mover = type(MOVERS[name])(lambda index: 0.1 / (1 + index), **options)
    assert [mover.rate_at(index) for index in (0, 1, 4)] == [0.1, 0.05, 0.02]
    assert MOVERS[name].rate_at(0) == MOVERS[name].rate_at(99) == MOVERS[name].rate
    state = begun(mover)
    for index, gradient in enumerate(gradients()):
        constant = type(mover)(0.1 / (1 + index), **options)
        expected = constant.move(state, "x", gradient, 0)
        state |= mover.move(state, "x", gradient, index)
        assert all(torch.equal(state[key], value) for key, value in expected.items())
