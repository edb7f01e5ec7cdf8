"""What stands behind the convolution of a block, with one reading of its map from memory.

In C++ for CPUs. In Triton for GPUs, where it is off by default (`compute.kernels`) until it has
been measured on a card.
"""

from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# Values of a map from which reading it once pays on a CPU: 8 MiB in bf16, more than a core's own
# cache holds. Smaller ones are faster in compiled plain layers.
LEAST = 1 << 22


def why_not(device: torch.device) -> str | None:
    """Why `norm_relu_pool` does not run on `device`, or None: a CPU needs a C++ compiler, a GPU
    bf16 and triton.
    """
    if device.type == "cpu":
        return code(device).why_not()
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU does not multiply in bf16"
    return None if find_spec("triton") else "triton is not installed"


def pays(x: Tensor) -> bool:
    """Whether `norm_relu_pool` of `x` is as fast as compiled plain layers, by its size alone, so
    that a resumed run takes the same path.
    """
    reads = x.dtype in (torch.bfloat16, torch.float32)
    return reads and (x.device.type != "cpu" or x.numel() >= LEAST)


def norm_relu_pool(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm with `scale` and `shift` (C,), ReLU and 2x2 average pooling of x (N, C, H, W).

    Equals `AvgPool2d(2)(relu(GroupNorm(C, C, eps)(x)))` up to rounding: statistics and sums are in
    float32, the result (N, C, H // 2, W // 2) has the type of x, bf16 or float32, and lies channels
    last in memory; x is copied if it does not. An odd side's last pixels count in the norm and are
    not pooled. The same input gives the same bits.

    With y = scale * xhat + shift, the gradient of the pooled result is spread over the pixels of
    its window, g = (y > 0) * grad / 4 (0 where a pixel is not pooled), and over the pixels of a map

        grad_shift = sum(g)        grad_scale = sum(g * xhat)
        grad_x = rstd * scale * (g - mean(g) - xhat * mean(g * xhat)).

    There are no second derivatives: asking for one raises NotImplementedError. A method that
    differentiates through training keeps the plain layers. Raises TypeError for another type of x
    and ValueError for a scale or shift that is not (C,).
    """
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"norm_relu_pool reads bfloat16 or float32, got {x.dtype}")
    if not scale.shape == shift.shape == x.shape[1:2]:
        raise ValueError(
            f"scale and shift need one value for each of the {x.shape[1]} channels, got "
            f"{tuple(scale.shape)} and {tuple(shift.shape)}"
        )
    return _forward(x, scale, shift, eps)[0]


def code(device: torch.device) -> ModuleType:
    """The module whose `forward` and `backward` work in the memory of `device`. They read maps that
    lie channels last, and contiguous vectors.
    """
    if device.type == "cpu":
        from apm_core.nets.kernels import cpu as found
    else:
        from apm_core.nets.kernels import gpu as found  # imports triton
    return found


# Opaque operators rather than traced ones: they are the same plain, compiled and captured.
@torch.library.custom_op("apm::norm_relu_pool", mutates_args=())
def _forward(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The pooled result, and mean and rstd (N, C) in float32 for the backward."""
    results = _results(x)
    code(x.device).forward(_last(x), scale.contiguous(), shift.contiguous(), eps, *results)
    return results


@_forward.register_fake
def _results(x: Tensor, *_: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what `_forward` returns."""
    count, channels, height, width = x.shape
    size = (count, channels, height // 2, width // 2)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean = x.new_empty((count, channels), dtype=torch.float32)
    return out, mean, torch.empty_like(mean)


@torch.library.custom_op("apm::norm_relu_pool_backward", mutates_args=())
def _backward(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, and of scale and shift for each image, (N, C) in float32."""
    gradients = _gradients(x)
    code(x.device).backward(
        *(_last(x), scale.contiguous(), shift.contiguous(), mean, rstd, _last(grad), *gradients)
    )
    return gradients


def _last(maps: Tensor) -> Tensor:
    """The maps (N, C, H, W) channels last in memory."""
    return maps.contiguous(memory_format=torch.channels_last)


@_backward.register_fake
def _gradients(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what `_backward` returns."""
    grad_scale = x.new_empty(x.shape[:2], dtype=torch.float32)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, grad_scale, torch.empty_like(grad_scale)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401
    x, scale, shift, _ = inputs
    _, mean, rstd = output
    ctx.set_materialize_grads(False)  # nobody differentiates mean and rstd
    ctx.save_for_backward(x, scale, shift, mean, rstd)


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
    grad_x, grad_scale, grad_shift = _backward(*ctx.saved_tensors, grad)
    return grad_x, grad_scale.sum(0), grad_shift.sum(0), None


def _refuse(ctx: Any, *_: Tensor | None) -> None:  # noqa: ANN401
    raise NotImplementedError(
        "norm_relu_pool has no second derivatives: use the plain layers to differentiate twice"
    )


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_refuse)
