"""The C++ code of `norm_relu_pool`: compiled for this CPU when it is first used, and kept for later
processes in torch's cache of compiled code.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("cpu.cpp")
REASON = 200  # characters of a compiler's message


@cache
def library() -> ctypes.CDLL:
    """The compiled code; raises RuntimeError when there is no compiler, or it refuses, and OSError
    when what it made cannot be loaded.
    """
    from torch._inductor.codecache import CppCodeCache  # a second of imports

    return CppCodeCache.load(SOURCE.read_text())


@cache
def why_not() -> str | None:
    """Why the code does not run here, in one line, or None."""
    try:
        library()
    except (RuntimeError, OSError) as error:
        return " ".join(str(error).split())[:REASON]
    return None


def forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """Fill `out` (N, C, H // 2, W // 2), channels last, and `mean` and `rstd` (N, C), float32."""
    _function("forward", x)(
        *_sizes(x), *_places(x, scale, shift), ctypes.c_float(eps), *_places(out, mean, rstd)
    )


def backward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad: Tensor,
    grad_x: Tensor,
    grad_scale: Tensor,
    grad_shift: Tensor,
) -> None:
    """Fill `grad_x` (N, C, H, W), channels last, and `grad_scale` and `grad_shift` of each image,
    (N, C) in float32, from `grad`, the gradient of the pooled result.
    """
    _function("backward", x)(
        *_sizes(x), *_places(x, scale, shift, mean, rstd, grad, grad_x, grad_scale, grad_shift)
    )


def _function(name: str, x: Tensor) -> ctypes._CFuncPtr:
    """The function `name` of the library for the type of `x`."""
    return getattr(library(), f"{name}_{str(x.dtype).removeprefix('torch.')}")


def _sizes(x: Tensor) -> list[ctypes.c_int64]:
    """The threads to use, and N, C, H and W."""
    return [ctypes.c_int64(size) for size in (torch.get_num_threads(), *x.shape)]


def _places(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
