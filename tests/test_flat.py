"""FlatNet: one vector, one gradient, and the same training as the ordinary one."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apm_core.errors import ConfigError
from apm_core.nets import Shape, build
from apm_core.nets.flat import FlatNet
from apm_core.runtime.streams import generator, seeded

SHAPE = Shape(channels=1, resolution=8, classes=3)
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-3}


def net(dtype=torch.float64):
    with seeded("flat"):
        return build("convnet", SHAPE, width=6, depth=2).to(dtype)


def batch(dtype=torch.float64):
    draws = generator("flat", "batch")
    x = torch.randn(5, 1, 8, 8, generator=draws, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (5,), generator=draws)


def gathered(module, attribute):
    """Of all parameters, as one vector; zeros for the gradients that autograd left out."""
    found = [(getattr(p, attribute), p) for p in module.parameters()]
    return torch.cat([(torch.zeros_like(p) if a is None else a).flatten() for a, p in found])


def shares_memory(flat):
    """Whether the parameters still lie, in order, in the vector."""
    offset = 0
    for p in flat.module.parameters():
        if p.data_ptr() != flat.vector.data_ptr() + offset * flat.vector.element_size():
            return False
        offset += p.numel()
    return offset == flat.size


def train(forward, net, dtype, steps=6):
    """SGD, on the vector of a FlatNet or on the parameters of a module."""
    x, y = batch(dtype)
    flat = isinstance(net, FlatNet)
    optimizer = torch.optim.SGD([net.vector] if flat else net.parameters(), **SGD)
    for _ in range(steps):
        loss = F.cross_entropy(forward(x), y)
        if flat:
            net.vector.grad = net.gradient(loss)
        else:
            optimizer.zero_grad()
            loss.backward()
            for p in net.parameters():
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        optimizer.step()


def test_wrapping_changes_nothing():
    plain, flat = net(), FlatNet(net())
    x, _ = batch()
    assert torch.equal(flat(x), plain(x))
    assert flat.size == sum(p.numel() for p in plain.parameters()) == len(flat.vector)
    assert torch.equal(flat.vector, gathered(plain, "data"))
    names = [(n, p.shape) for n, p in flat.module.named_parameters()]
    assert names == [(n, p.shape) for n, p in plain.named_parameters()]
    assert all(isinstance(p, nn.Parameter) for p in flat.module.parameters())
    assert shares_memory(flat)


def test_gradient_is_the_ordinary_one():
    plain, flat = net(), FlatNet(net())
    x, y = batch()
    F.cross_entropy(plain(x), y).backward()
    gradient = flat.gradient(F.cross_entropy(flat(x), y))
    assert torch.equal(gradient, gathered(plain, "grad"))
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_sgd_on_the_vector_is_sgd_on_the_parameters(dtype, tolerance):
    start = net(dtype)
    plain, flat = copy.deepcopy(start), FlatNet(copy.deepcopy(start))
    train(plain, plain, dtype)
    train(flat, flat, dtype)
    expected = gathered(plain, "data")
    assert (expected - gathered(start, "data")).abs().max() > 0.1
    torch.testing.assert_close(flat.vector, expected, rtol=0, atol=tolerance)
    assert shares_memory(flat)


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_training_keeps_the_views():
    plain, flat = net(torch.float32), FlatNet(net(torch.float32))
    compiled = torch.compile(flat.module)
    train(plain, plain, torch.float32)
    train(compiled, flat, torch.float32)
    torch.testing.assert_close(flat.vector, gathered(plain, "data"), rtol=0, atol=1e-5)
    assert shares_memory(flat)
    # a load reaches the compiled network as well
    x, _ = batch(torch.float32)
    flat.load(torch.zeros(flat.size))
    assert not compiled(x).any()


def test_load_and_snapshot():
    flat = FlatNet(net())
    x, y = batch()
    start, before = flat.snapshot(), flat(x).detach()
    train(flat, flat, torch.float64)
    assert not torch.allclose(flat(x), before)
    assert torch.equal(start, gathered(net(), "data"))  # the snapshot is nobody's view
    flat.load(start)
    assert torch.equal(flat(x), before)
    assert shares_memory(flat)
    # the next gradient is that of a fresh network
    fresh = net()
    F.cross_entropy(fresh(x), y).backward()
    assert torch.equal(flat.gradient(F.cross_entropy(flat(x), y)), gathered(fresh, "grad"))


def test_shared_parameters_appear_once():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    flat = FlatNet(nn.Sequential(first, second))
    assert flat.size == 16
    flat.load(2 * torch.eye(4).flatten())
    assert torch.equal(flat(torch.ones(1, 4)), torch.full((1, 4), 4.0))


def test_load_refuses_another_architecture():
    flat = FlatNet(net())
    message = rf"has {flat.size} parameters but the vector has shape \(7,\): load a snapshot"
    with pytest.raises(ConfigError, match=message):
        flat.load(torch.zeros(7))
    with pytest.raises(ConfigError, match=r"vector has shape \(1, "):
        flat.load(flat.snapshot()[None])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), r"^the network has no parameters to flatten$"),
        (nn.Linear(2, 2).half(), r"must be float32, or all float64.*found torch.float16 on cpu"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
            r"found torch.float32 on cpu, torch.float64 on cpu",
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")),
            r"on one device; found torch.float32 on cpu, torch.float32 on meta",
        ),
    ],
)
def test_what_cannot_be_flattened(module, message):
    with pytest.raises(ConfigError, match=message):
        FlatNet(module)
