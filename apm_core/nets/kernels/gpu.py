"""The Triton code of `norm_relu_pool`; importing this module needs triton.

Memory is channels last: an image is height * width pixels of `channels` values each. One program
works on one image and `LANES` of its channels, in tiles of at most `WINDOWS` windows of 2x2 pixels.
Each of the four pixels of all windows is one block (windows, lanes): pooling adds four blocks, and
its gradient is the same block for all four. An odd side has windows that are cut off: their pixels
count in the statistics and are not pooled.

The forward holds a map of one tile (32x32) in registers; of larger maps, and in the backward, the
second reading comes from the cache, as far as it holds them. Sizes are fixed: tuning them by the
clock would change the order of the sums, and with it the bits of a resumed run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 32  # channels of a program: 64 bytes in a row in bf16
WINDOWS = 256  # of a tile: 2^15 values with LANES, 64 for each of 512 threads
WINDOWS_PER_WARP = 16


@triton.jit
def _corner(
    tile: tl.tensor,
    corner: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    channel: tl.tensor,
    real: tl.tensor,
    windows: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Where one of the four pixels of each window lies: offsets and a mask (windows, lanes)."""
    across: tl.constexpr = (width + 1) // 2
    all_there: tl.constexpr = height % 2 + width % 2 + (height * width // 4) % windows == 0
    window = tile * windows + tl.arange(0, windows)
    row = window // across * 2 + corner // 2
    column = window % across * 2 + corner % 2
    there = (row < height) & (column < width) | all_there
    offsets = (row * width + column)[:, None] * channels + channel[None, :]
    return offsets, there[:, None] & real[None, :]


@triton.jit
def _pooled(
    tile: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    channel: tl.tensor,
    real: tl.tensor,
    windows: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Where the result of each window lies: offsets and a mask (windows, lanes)."""
    across: tl.constexpr = (width + 1) // 2
    all_there: tl.constexpr = height % 2 + width % 2 + (height * width // 4) % windows == 0
    window = tile * windows + tl.arange(0, windows)
    row, column = window // across, window % across
    there = (row < height // 2) & (column < width // 2) | all_there
    offsets = (row * (width // 2) + column)[:, None] * channels + channel[None, :]
    return offsets, there[:, None] & real[None, :]


@triton.jit
def _read(memory: tl.tensor, offsets: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """The values at `offsets` in float32, 0 where there are none."""
    return tl.load(memory + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _pixels_before(
    tile: tl.tensor, height: tl.constexpr, width: tl.constexpr, windows: tl.constexpr
) -> tl.tensor:
    """How many pixels the tiles before this one have, as a float."""
    across: tl.constexpr = (width + 1) // 2
    top = tl.minimum(tile * windows // across * 2, height)
    bottom = tl.minimum(top + 2, height)
    left = tile * windows % across * 2
    return (top * width + (bottom - top) * left).to(tl.float32)


@triton.jit
def _moments(
    x: tl.tensor,
    tile: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    channel: tl.tensor,
    real: tl.tensor,
    windows: tl.constexpr,
    lanes: tl.constexpr,
    pixels: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """The mean of a tile's `pixels`, and the sum of the squares around it, (lanes,)."""
    total = tl.zeros((windows, lanes), tl.float32)
    for corner in tl.static_range(4):
        offsets, mask = _corner(tile, corner, height, width, channels, channel, real, windows)
        total += _read(x, offsets, mask)
    middle = tl.sum(total, axis=0) / pixels
    spread = tl.zeros((windows, lanes), tl.float32)
    for corner in tl.static_range(4):
        offsets, mask = _corner(tile, corner, height, width, channels, channel, real, windows)
        centred = tl.where(mask, _read(x, offsets, mask) - middle[None, :], 0.0)
        spread += centred * centred
    return middle, tl.sum(spread, axis=0)


@triton.jit
def forward_kernel(
    x: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    out: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    eps: float,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    tiles: tl.constexpr,
    windows: tl.constexpr,
    lanes: tl.constexpr,
) -> None:
    """Writes the pooled `out`, and `mean` and `rstd` (N, C) for the backward.

    The statistics of tiles are joined by the formula of Chan, Golub & LeVeque (1979).
    """
    blocks: tl.constexpr = (channels + lanes - 1) // lanes
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * lanes + tl.arange(0, lanes)
    real = (channel < channels) | (channels % lanes == 0)
    x += image * height * width * channels
    out += image * (height // 2) * (width // 2) * channels
    factor = _read(scale, channel, real)
    offset = _read(shift, channel, real)

    seen = _pixels_before(1, height, width, windows)
    middle, squares = _moments(x, 0, height, width, channels, channel, real, windows, lanes, seen)
    for tile in range(1, tiles):
        pixels = _pixels_before(tile + 1, height, width, windows) - seen
        found, spread = _moments(
            x, tile, height, width, channels, channel, real, windows, lanes, pixels
        )
        apart, share = found - middle, pixels / (seen + pixels)
        middle += apart * share
        squares += spread + apart * apart * seen * share
        seen += pixels
    inverse = tl.rsqrt(squares / (height * width) + eps)

    factor *= inverse
    for tile in range(tiles):
        total = tl.zeros((windows, lanes), tl.float32)
        for corner in tl.static_range(4):
            offsets, mask = _corner(tile, corner, height, width, channels, channel, real, windows)
            centred = _read(x, offsets, mask) - middle[None, :]
            y = centred * factor[None, :] + offset[None, :]
            total += tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
        offsets, mask = _pooled(tile, height, width, channels, channel, real, windows)
        tl.store(out + offsets, (0.25 * total).to(out.dtype.element_ty), mask=mask)
    tl.store(mean + image * channels + channel, middle, mask=real)
    tl.store(rstd + image * channels + channel, inverse, mask=real)


@triton.jit
def _to_y(
    x: tl.tensor,
    offsets: tl.tensor,
    mask: tl.tensor,
    quarter: tl.tensor,
    middle: tl.tensor,
    inverse: tl.tensor,
    factor: tl.tensor,
    offset: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """The gradient of y, and xhat, (windows, lanes), at one pixel of each window."""
    xhat = (_read(x, offsets, mask) - middle[None, :]) * inverse[None, :]
    y = xhat * factor[None, :] + offset[None, :]
    return tl.where(y <= 0, 0.0, quarter), xhat


@triton.jit
def backward_kernel(
    x: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    grad: tl.tensor,
    grad_x: tl.tensor,
    grad_scale: tl.tensor,
    grad_shift: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    tiles: tl.constexpr,
    windows: tl.constexpr,
    lanes: tl.constexpr,
) -> None:
    """Writes `grad_x`, and `grad_scale` and `grad_shift` (N, C) of each image, from `grad`, the
    gradient of the pooled result; the formula is that of `norm_relu_pool`.
    """
    blocks: tl.constexpr = (channels + lanes - 1) // lanes
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * lanes + tl.arange(0, lanes)
    real = (channel < channels) | (channels % lanes == 0)
    x += image * height * width * channels
    grad_x += image * height * width * channels
    grad += image * (height // 2) * (width // 2) * channels
    middle = _read(mean, image * channels + channel, real)
    inverse = _read(rstd, image * channels + channel, real)
    factor = _read(scale, channel, real)
    offset = _read(shift, channel, real)

    plain = tl.zeros((windows, lanes), tl.float32)
    weighted = tl.zeros((windows, lanes), tl.float32)
    for tile in range(tiles):
        offsets, mask = _pooled(tile, height, width, channels, channel, real, windows)
        quarter = 0.25 * _read(grad, offsets, mask)
        for corner in tl.static_range(4):
            offsets, mask = _corner(tile, corner, height, width, channels, channel, real, windows)
            grad_y, xhat = _to_y(x, offsets, mask, quarter, middle, inverse, factor, offset)
            plain += grad_y
            weighted += grad_y * xhat
    sum_plain, sum_weighted = tl.sum(plain, axis=0), tl.sum(weighted, axis=0)
    slope = inverse * factor
    level = slope * sum_plain / (height * width)
    tilt = slope * sum_weighted / (height * width)

    for tile in range(tiles):
        offsets, mask = _pooled(tile, height, width, channels, channel, real, windows)
        quarter = 0.25 * _read(grad, offsets, mask)
        for corner in tl.static_range(4):
            offsets, mask = _corner(tile, corner, height, width, channels, channel, real, windows)
            grad_y, xhat = _to_y(x, offsets, mask, quarter, middle, inverse, factor, offset)
            result = slope[None, :] * grad_y - (level[None, :] + tilt[None, :] * xhat)
            tl.store(grad_x + offsets, result.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(grad_shift + image * channels + channel, sum_plain, mask=real)
    tl.store(grad_scale + image * channels + channel, sum_weighted, mask=real)


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
    with torch.cuda.device_of(x):
        forward_kernel[_grid(x)](x, scale, shift, out, mean, rstd, eps, **sizes(x))


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
    with torch.cuda.device_of(x):
        backward_kernel[_grid(x)](
            *(x, scale, shift, mean, rstd, grad, grad_x, grad_scale, grad_shift), **sizes(x)
        )


def _grid(x: Tensor) -> tuple[int]:
    """The programs for `x` (N, C, H, W): those of one image side by side, as they share lines."""
    return (len(x) * triton.cdiv(x.shape[1], LANES),)


def sizes(x: Tensor) -> dict[str, int]:
    """What the kernels are compiled for."""
    _, channels, height, width = x.shape
    every = triton.cdiv(height, 2) * triton.cdiv(width, 2)
    windows = min(WINDOWS, triton.next_power_of_2(every))
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "tiles": triton.cdiv(every, windows),
        "windows": windows,
        "lanes": LANES,
        "num_warps": max(1, windows // WINDOWS_PER_WARP),
    }
