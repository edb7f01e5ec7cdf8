"""The kernels behind a convolution against the plain layers.

The same tests run on a GPU or a CPU, whichever is there, and on the CPU by Triton's interpreter.
Triton reads the variable that asks for the interpreter when it is imported, so those run in a
process of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apm_core.nets import kernels
from apm_core.nets.architectures.convnet import ConvNet
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.kernels import cpu, norm_relu_pool
from apm_core.runtime.device import Graphs
from apm_core.runtime.streams import generator, seeded

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_A_GPU = not INTERPRETED and torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_A_GPU else "cpu")
TRITON = find_spec("triton") is not None

WHY_NOT = None if INTERPRETED else kernels.why_not(DEVICE)
runs = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
on_a_gpu = pytest.mark.skipif(not ON_A_GPU or WHY_NOT is not None, reason=WHY_NOT or "no GPU")
compiling = pytest.mark.skipif(INTERPRETED or not TRITON, reason="triton is not installed")

SHAPES = [
    (2, 32, 8, 8),
    (1, 48, 7, 7),  # half of the second block of channels is empty
    (3, 1, 5, 9),
    (1, 33, 32, 32),
    (1, 3, 39, 39),  # the second tile is cut off
    (1, 2, 64, 64),  # four whole tiles
    (1, 32, 2, 2),
]
# the last rounding; that of the interpreter is a truncation
DTYPES = {torch.float32: 0.0, torch.bfloat16: 2.0**-7 if INTERPRETED else 2.0**-8}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """The code for GPUs works in the memory of the CPU."""
    if INTERPRETED:
        from apm_core.nets.kernels import gpu

        monkeypatch.setattr(kernels, "code", lambda _: gpu)
        monkeypatch.setattr(kernels, "why_not", lambda _: None)


def case(shape, dtype, seed=0):
    """x, scale, shift and the gradient of the result."""
    count, channels, height, width = shape
    random = generator("test", seed)
    x = torch.randn(shape, generator=random) * 2 + torch.randn(channels, 1, 1, generator=random)
    scale, shift = torch.randn(2, channels, generator=random)
    grad = torch.randn(count, channels, height // 2, width // 2, generator=random)
    x, grad = (t.to(DEVICE, dtype, memory_format=torch.channels_last) for t in (x, grad))
    return x, scale.to(DEVICE), shift.to(DEVICE), grad


def plain(x, scale, shift):
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], scale, shift, eps=1e-5)), 2)


def both_ways(function, x, scale, shift, grad):
    """The result and the gradients of x, scale and shift."""
    inputs = [t.detach().requires_grad_() for t in (x, scale, shift)]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def assert_exact(found, given, rounding=0.0):
    """`found` equals the plain layers in float64 up to sums in float32 and a last `rounding`."""
    expected = both_ways(plain, *(t.double() for t in given))
    for one, other, rtol in zip(found, expected, [rounding, rounding, 0, 0], strict=True):
        atol = 3e-6 * float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=atol)


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_plain_layers(shape, dtype):
    given = case(shape, dtype)
    found = both_ways(norm_relu_pool, *given)
    for tensor in found[:2]:
        assert tensor.dtype == dtype
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert_exact(found, given, DTYPES[dtype])


@runs
def test_is_exact_where_the_mean_is_far_from_zero():
    x, *others = case((1, 2, 36, 36), torch.float32)
    x += 4000  # the mean of squares would lose all digits of the variance
    found = both_ways(norm_relu_pool, x, *others)[0].double()
    expected = plain(x.double(), *(t.double() for t in others[:2]))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


@runs
@pytest.mark.parametrize("value", [0.0, 0.7, -300.0])
def test_a_constant_map_becomes_its_shift(value):
    x, scale, shift, grad = case((2, 4, 6, 6), torch.float32)
    given = torch.full_like(x, value), scale, shift, grad
    found = both_ways(norm_relu_pool, *given)
    for one, other in zip(found, both_ways(plain, *(t.double() for t in given)), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)


@runs
def test_reads_any_memory_format():
    x, scale, shift, grad = case((2, 5, 6, 6), torch.float32)
    given = x.contiguous(), scale[:1].expand_as(scale), shift, grad[:1].expand_as(grad)
    assert_exact(both_ways(norm_relu_pool, *given), given)


@runs
def test_the_same_input_gives_the_same_bits():
    given = case((3, 5, 6, 6), torch.bfloat16)
    first, second = (both_ways(norm_relu_pool, *given) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@runs
def test_divergence_stays_visible():
    given = case((2, 3, 4, 4), torch.float32)
    given[0][1, 2, 0, 0] = torch.nan
    found, expected = both_ways(norm_relu_pool, *given), both_ways(plain, *given)
    assert found[0][1, 2].isnan().all()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())


@runs
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck's own
def test_is_a_sound_operator():
    x, scale, shift, _ = case((2, 3, 6, 6), torch.bfloat16)
    inputs = [t.requires_grad_() for t in (x, scale, shift)]
    torch.library.opcheck(torch.ops.apm.norm_relu_pool.default, (*inputs, 1e-5))


@runs
def test_is_compiled_without_a_break():
    given = case((2, 32, 8, 8), torch.bfloat16)
    backend = "aot_eager" if INTERPRETED else "inductor"
    compiled = torch.compile(norm_relu_pool, backend=backend, fullgraph=True, dynamic=False)
    for found, expected in zip(
        both_ways(compiled, *given), both_ways(norm_relu_pool, *given), strict=True
    ):
        assert torch.equal(found, expected)


@runs
def test_a_second_derivative_is_refused():
    x, scale, shift, _ = case((2, 3, 4, 4), torch.float32)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(norm_relu_pool(x, scale, shift).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives: use the plain layers"):
        slope.square().sum().backward()


def test_other_types_are_refused():
    x = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"reads bfloat16 or float32, got torch\.float64"):
        norm_relu_pool(x, torch.ones(2), torch.zeros(2))


def test_a_scale_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"each of the 3 channels, got \(2,\) and \(3,\)"):
        norm_relu_pool(torch.zeros(1, 3, 4, 4), torch.ones(2), torch.zeros(3))


@runs
def test_on_a_cpu_only_maps_beyond_its_cache_are_worth_it():
    worth = torch.empty(kernels.LEAST, dtype=torch.bfloat16, device=DEVICE)
    assert kernels.pays(worth) and kernels.pays(worth.float())
    assert kernels.pays(worth[1:]) == ON_A_GPU
    assert not kernels.pays(worth.double())


@runs
@pytest.mark.skipif(INTERPRETED or ON_A_GPU, reason="of the code for CPUs")
@pytest.mark.parametrize("shape", [(5, 16, 6, 6), (1, 130, 9, 4)], ids=str)
def test_the_number_of_threads_does_not_matter(shape):
    given, found = case(shape, torch.bfloat16), []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(both_ways(norm_relu_pool, *given))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert_exact(found[0], given, DTYPES[torch.bfloat16])


@pytest.mark.skipif(INTERPRETED, reason="of the code for CPUs")
@pytest.mark.parametrize("error", [RuntimeError("no  compiler\nfound"), OSError("noexec")])
def test_without_its_code_a_network_keeps_plain_layers_and_says_so(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(cpu, "library", fail)
    cpu.why_not.cache_clear()
    net, notes = FlatNet(ConvNet(Shape(3, 16, 4), width=8, depth=2)), []
    net.use_kernels(True, notes.append)
    cpu.why_not.cache_clear()
    assert not net.module.kernels
    text = " ".join(str(error).split())
    assert notes == [f"norm, ReLU and pooling run in plain layers, slower: {text}"]


@runs
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_network_with_the_kernel_equals_the_plain_one(precision, monkeypatch):
    monkeypatch.setattr(kernels, "LEAST", 4 * 8 * 16**2)  # the first of its two maps
    with seeded("kernel"):
        net = FlatNet(ConvNet(Shape(3, 16, 4), width=8, depth=2).to(DEVICE))
    images = torch.randn(4, 3, 16, 16, generator=generator("images")).to(DEVICE)
    bf16 = precision == "bf16"
    found = []
    for wanted in (False, True):
        net.use_kernels(wanted)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=bf16):
            out = net.module(images)
        found.append((out.detach().float(), net.gradient(out.float().square().sum())))
    assert net.module.kernels
    tolerance = 0.05 if bf16 else 1e-5
    for plain, other in zip(*found, strict=True):
        scale = float(plain.abs().max())
        torch.testing.assert_close(other, plain, rtol=0, atol=tolerance * scale)


def test_networks_without_such_blocks_have_no_kernel():
    net = FlatNet(nn.Linear(2, 2))
    net.use_kernels(True)
    assert not hasattr(net.module, "kernels")


@on_a_gpu
@pytest.mark.parametrize("shape", [(8, 128, 32, 32), (8, 48, 7, 7), (2, 32, 64, 64)], ids=str)
def test_is_captured_with_a_compiled_step(shape):
    x, scale, shift, grad = case(shape, torch.bfloat16)
    compiled = torch.compile(norm_relu_pool, fullgraph=True, dynamic=False)
    found = [torch.zeros_like(t) for t in (grad, x, scale, shift)]

    def step():
        for place, value in zip(found, both_ways(compiled, x, scale, shift, grad), strict=True):
            place.copy_(value)

    graphs = Graphs()
    graphs.play("step", step, found)
    x.copy_(case(shape, torch.bfloat16, seed=1)[0])
    graphs.play("step", step, found)
    for one, other in zip(found, both_ways(norm_relu_pool, x, scale, shift, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)


@compiling
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["forward_kernel", "backward_kernel"])
def test_is_accepted_by_the_compiler_for_gpus(kernel, capability, tmp_path, monkeypatch):
    """The interpreter accepts more than the compiler, which needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget

    from apm_core.nets.kernels import gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = gpu.sizes(torch.empty(1, 48, 36, 36))
    options = {"num_warps": sizes.pop("num_warps")}
    kernel = getattr(gpu, kernel)
    maps = {"x", "out", "grad", "grad_x"}
    types = {name: "*bf16" if name in maps else "*fp32" for name in kernel.arg_names}
    types |= {"eps": "fp32"} | dict.fromkeys(sizes, "constexpr")
    types = {name: types[name] for name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, types, sizes)
    target = GPUTarget("cuda", capability, 32)
    assert triton.compile(source, target=target, options=options).asm["cubin"]


@compiling
def test_on_the_cpu_by_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
