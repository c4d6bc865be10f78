"""The passes over whole tensors on CUDA: Triton kernels (`triton_kernels.py`), each of which reads memory once.

The same passes as the CPU's (`passes.c`), with the same names, arguments and results, on the same view of memory: a dense
tensor is (outer, channels, inner), with one grid a channel, or one for all where channels is 1. Slices of dimension 0 are
channels with outer 1, so a scale a sample is a scale a channel too.

Nothing waits for the device: a captured graph holds every pass, and draws anew at each replay, since the seed of the noise lies
in device memory. Importing this needs triton; `cuda.py` says when it is used.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .grids import GridWithSlope
from .triton_blocks import blocks_kernel
from .triton_kernels import COLUMN, ONE, ROW

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 2**31 - 2**16  # elements: positions are 32-bit integers
TILE = 2048  # elements that a program rounds
SUM_TILE = 4096  # elements that a program reads at a time, to reduce them
ALONE = 8  # tiles that one program reads by itself, so that a small tensor takes one launch
SPLITS = 512  # programs, at most, that share a reduction of more


def _power(n: int) -> int:
    """The least power of two from n on."""
    return 1 << (n - 1).bit_length()


def options(elements: int) -> dict:
    """Of a launch whose programs have tiles of so many elements."""
    return {"num_warps": min(8, max(1, elements // 512)), "enable_fp_fusion": False}


def _launch(kernel, x: Tensor, programs: tuple[int, ...], elements: int, *arguments, **constants) -> None:
    """On the device of x, whichever is the current one. Waits for nothing."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        kernel[programs](*arguments, **constants, **options(elements))
        return
    with torch.cuda.device(x.device):
        kernel[programs](*arguments, **constants, **options(elements))


def _rows(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(rows, length, what has a grid of its own) of a tensor of this shape."""
    outer, channels, inner = shape
    if channels == 1:
        return 1, outer * inner, ONE.value
    return (outer, channels, COLUMN.value) if inner == 1 else (outer * channels, inner, ROW.value)


def rounded(x: Tensor, grid, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """The values of the grid next to x, of `dtype`, in the memory layout of x."""
    y = torch.empty_like(x, dtype=dtype, requires_grad=False)
    rows, length, each = _rows(shape)
    c = TILE if each == ONE.value else min(_power(length), TILE)
    r = min(_power(rows), TILE // c)
    blocks = triton.cdiv(length, c)
    programs = triton.cdiv(rows, r) * blocks
    _launch(
        kernels.round_kernel, x, (programs,), r * c, x, y, *grid, rows, length, shape[1], blocks, EACH=each, R=r, C=c
    )  # fmt: skip
    return y


def draw_seed(device: torch.device) -> Tensor:
    """0-d int64 on the device, from its torch generator: `torch.manual_seed` repeats it, and a captured graph draws anew."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def stochastic(
    x: Tensor, scale: Tensor, offset: Tensor | None, most: Tensor, seed: Tensor, dtype: torch.dtype,
    shape: tuple[int, int, int] | None = None, variance: bool = False,
):  # fmt: skip
    """x on the grid of scale and offset, rounded up with the probability of the fraction, to codes of at most `most`.

    Codes lie within 0 and `most` where there is an offset, else within -most and most.

    Args:
        scale, offset: fp32, one value, or one a channel of `shape` (None: the tensor has one). most: 0-d fp32.
        seed: of `draw_seed`. variance: also return the sum over each channel of s^2 f (1 - f), f the fraction: (channels,)
            fp32, the variance of what is drawn.
    """
    y = torch.empty_like(x, dtype=dtype, requires_grad=False)
    shape = shape or (1, 1, x.numel())
    rows, length, each = _rows(shape)
    wide, high = (1, 4) if each == COLUMN.value else (4, 1)  # tiles of a program
    c = TILE // 4 if each == ONE.value else min(_power(triton.cdiv(length, wide)), TILE // 4)
    r = min(_power(triton.cdiv(rows, high)), TILE // 4 // c)
    down, blocks = triton.cdiv(rows, high * r), triton.cdiv(length, wide * c)
    sums = None
    if variance:
        size = (down, length) if each == COLUMN.value else (rows, blocks)
        sums = torch.empty(size, dtype=torch.float32, device=x.device)
    _launch(
        kernels.stochastic_kernel, x, (down * blocks,), 4 * r * c, x, y, seed, scale, offset, most, sums, rows, length,
        shape[1], blocks, EACH=each, R=r, C=c,
    )  # fmt: skip
    if sums is None:
        return y
    if each == COLUMN.value:
        return y, sums.sum(0)
    return y, sums.view(-1, shape[1], blocks).sum((0, 2)) if sums.numel() > shape[1] else sums.view(-1)


def _split(shape: tuple[int, int, int]) -> tuple:
    """How a reduction is shared: (units, splits, tiles, wide, A, B, what has a grid of its own)."""
    outer, channels, inner = shape
    rows, length, each = _rows(shape)
    if each == ONE.value:
        outer, inner = 1, length
    if each == COLUMN.value:
        b = min(_power(channels), 64)
        units, wide = triton.cdiv(channels, b), 1
    else:
        b = SUM_TILE if each == ONE.value else min(_power(inner), SUM_TILE)
        units, wide = channels, triton.cdiv(inner, b)
    a = min(_power(outer), SUM_TILE // b)
    tiles = triton.cdiv(outer, a) * wide
    splits = 1 if tiles <= ALONE else min(tiles, max(1, SPLITS // units))
    return units, splits, tiles, wide, a, b, each, (outer, channels, inner)


def _reduce(
    x: Tensor, shape: tuple[int, int, int], spread: bool, form, bits=None, which=0, averages=None, momentum=0.0
) -> Tensor:
    """(2, channels) minimum and maximum, with `spread` the mean magnitude, or (3, channels) of what `form` makes of them."""
    units, splits, tiles, wide, a, b, each, (outer, channels, inner) = _split(shape)
    rows = 2 + spread if form == kernels.RANGE else 3
    out = torch.empty(rows, channels, dtype=torch.float32, device=x.device)
    parts = None if splits == 1 else torch.empty(3, splits, channels, dtype=torch.int32, device=x.device)
    made = float(outer * inner), bits, which, averages, momentum
    constants = {"SPREAD": spread, "FORM": form.value}
    _launch(
        kernels.range_kernel, x, (units, splits), a * b, x, out, parts, outer, channels, inner, splits, tiles, wide, *made,
        **constants, EACH=each, A=a, B=b,
    )  # fmt: skip
    if parts is not None:
        s = _power(splits)
        c = min(_power(channels), SUM_TILE // s)
        programs = (triton.cdiv(channels, c),)
        _launch(kernels.fold_range_kernel, x, programs, s * c, parts, out, channels, splits, *made, **constants, S=s, C=c)
    return out


def measure(x: Tensor, shape: tuple[int, int, int], spread: bool) -> Tensor:
    """(2 or 3, channels): minimum, maximum, and mean magnitude."""
    return _reduce(x, shape, spread, kernels.RANGE)


def grid_gradients(g: Tensor, x: Tensor, grid, shape: tuple[int, int, int]) -> Tensor:
    """dL/dscale in the shape of the grid, or of a clipping one dL/dscale, dL/dlow and dL/dhigh, stacked; g becomes 0 where x
    is clipped.
    """
    units, splits, tiles, wide, a, b, each, (outer, channels, inner) = _split(shape)
    out = torch.empty(1 if grid.low is None else 3, splits, channels, dtype=torch.float32, device=x.device)
    _launch(
        kernels.grid_gradients_kernel, x, (units, splits), a * b, x, g, *grid, out, outer, channels, inner, splits, tiles, wide,
        EACH=each, A=a, B=b,
    )  # fmt: skip
    out = out[:, 0] if splits == 1 else out.sum(1)
    return out.view(grid.scale.shape if grid.low is None else (3, *grid.scale.shape))


# -- grids in closed form, as those of grids.py and gradients.py: made with the range, without small operations ---------------


def grid(
    x: Tensor, shape: tuple, each: list[int], form: int, bits: Tensor, which: int, ranges: Tensor | None = None, momentum=0.0
) -> GridWithSlope:
    """Of x. ranges: (4,), moved towards the range of x in place. each: the grid's shape. bits[which]: its bits."""
    form = (kernels.MINMAX, kernels.SYMMETRIC)[form]
    scale, low, slope = _reduce(x, shape, False, form, bits, which, ranges, momentum).unbind()
    return GridWithSlope(scale.view(each), low.view(each) if form == kernels.MINMAX else None, slope)


def bits_gradient(w: Tensor | None, w_slope: Tensor, x: Tensor | None, x_slope: Tensor) -> Tensor:
    """(3,) dL/dbits from dL/dscale of weight and input; None: zero."""
    out, w = torch.empty(3, dtype=torch.float32, device=w_slope.device), None if w is None else w.contiguous()
    channels = w_slope.numel()
    c = min(_power(channels), 1024)
    _launch(kernels.bits_gradient_kernel, w_slope, (1,), c, w, w_slope, x, x_slope, out, channels, C=c)
    return out


def affine(g: Tensor, bits: Tensor, seed: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(g between its minimum and maximum on 2^bits levels, (scale, offset))."""
    made = _reduce(g, (1, 1, g.numel()), False, kernels.GRAD_AFFINE, bits)
    return stochastic(g, made[0], made[1], made[2], seed, dtype), made[:2].flatten()


def symmetric(g: Tensor, shape, bits: Tensor, seed: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(g with one symmetric grid a channel of `shape` = (outer, channels, inner), the (channels,) scales)."""
    made = _reduce(g, shape, False, kernels.GRAD_SYMMETRIC, bits)
    return stochastic(g, made[0], None, made[2], seed, dtype, shape), made[0]


def blocks(g: Tensor, shape: tuple, size: int, bits: Tensor, seed: Tensor, dtype: torch.dtype) -> Tensor | None:
    """g with one symmetric grid for each `size` values along the middle of `shape`, (outer, length, inner).

    None: a block is larger than a tile.
    """
    outer, length, inner = shape
    size = min(size, length)
    s, across = _power(size), inner > 1
    if s > SUM_TILE:
        return None
    count = triton.cdiv(length, size)
    p = min(_power(inner if across else outer * count), max(1, TILE // s))
    wide = triton.cdiv(inner, p)
    programs = outer * count * wide if across else triton.cdiv(outer * count, p)
    y = torch.empty_like(g, dtype=dtype, requires_grad=False)
    _launch(
        blocks_kernel, g, (programs,), p * s, g, y, seed, bits, outer, length, inner, size, count, wide, ACROSS=across, P=p,
        S=s,
    )  # fmt: skip
    return y
