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
    return torch.cat([getattr(p, attribute).flatten() for p in module.parameters()])


def shares_memory(flat):
    """Whether parameters and gradients still lie, in order, in the two vectors."""
    offset = 0
    for p in flat.module.parameters():
        for part, whole in ((p, flat.vector), (p.grad, flat.grad)):
            if part.data_ptr() != whole.data_ptr() + offset * whole.element_size():
                return False
        offset += p.numel()
    return offset == flat.size and flat.vector.grad is flat.grad


def train(forward, optimizer, zero_grad, dtype, steps=6):
    x, y = batch(dtype)
    for _ in range(steps):
        zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()


def test_wrapping_changes_nothing():
    plain, flat = net(), FlatNet(net())
    x, _ = batch()
    assert torch.equal(flat(x), plain(x))
    assert flat.size == sum(p.numel() for p in plain.parameters()) == len(flat.vector)
    assert torch.equal(flat.vector, gathered(plain, "data"))
    assert not flat.grad.any()
    names = [(n, p.shape) for n, p in flat.module.named_parameters()]
    assert names == [(n, p.shape) for n, p in plain.named_parameters()]
    assert all(isinstance(p, nn.Parameter) for p in flat.module.parameters())
    assert shares_memory(flat)


def test_gradient_is_the_ordinary_one_and_accumulates():
    plain, flat = net(), FlatNet(net())
    x, y = batch()
    for count in (1, 2):
        F.cross_entropy(plain(x), y).backward()
        F.cross_entropy(flat(x), y).backward()
        assert torch.equal(flat.grad, gathered(plain, "grad")), count
    assert flat.grad.abs().max() > 0.01
    assert shares_memory(flat)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_sgd_on_the_vector_is_sgd_on_the_parameters(dtype, tolerance, fused):
    start = net(dtype)
    plain, flat = copy.deepcopy(start), FlatNet(copy.deepcopy(start))
    ordinary = torch.optim.SGD(plain.parameters(), **SGD)
    train(plain, ordinary, ordinary.zero_grad, dtype)
    train(flat, torch.optim.SGD([flat.vector], fused=fused, **SGD), flat.zero_grad, dtype)
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
    reference = torch.optim.SGD(plain.parameters(), **SGD)
    train(plain, reference, reference.zero_grad, torch.float32)
    optimizer = torch.optim.SGD([flat.vector], **SGD)
    train(compiled, optimizer, flat.zero_grad, torch.float32)
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
    optimizer = torch.optim.SGD([flat.vector], **SGD)
    train(flat, optimizer, flat.zero_grad, torch.float64)
    assert not torch.allclose(flat(x), before)
    flat.load(start)
    assert torch.equal(flat(x), before)
    assert shares_memory(flat)
    # the next gradient is that of a fresh network, and training goes on from the loaded weights
    flat.zero_grad()
    F.cross_entropy(flat(x), y).backward()
    fresh = net()
    F.cross_entropy(fresh(x), y).backward()
    assert torch.equal(flat.grad, gathered(fresh, "grad"))
    optimizer.step()
    assert not torch.equal(flat.vector, start)
    assert torch.equal(start, gathered(fresh, "data"))  # the snapshot is nobody's view


def test_zero_grad_recovers_what_others_let_go():
    flat = FlatNet(net())
    x, y = batch()
    F.cross_entropy(flat(x), y).backward()
    torch.optim.SGD([flat.vector], lr=0.1).zero_grad()
    flat.module.zero_grad()
    assert flat.vector.grad is None
    flat.zero_grad()
    assert not flat.grad.any()
    assert shares_memory(flat)


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
