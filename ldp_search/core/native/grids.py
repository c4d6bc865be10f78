"""The kernels of `grids.c`: a built-in quantizer's whole grid from the tensor and its bits, with its slope in the bits.

Each equals formulas of quantize/quantizers.py, which stay for every other quantizer and wherever no kernel serves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .library import FLOAT, FLOATS, FP32, INT, LONG, POINTER, SHAPE, Kernel, takes
from .memory import address, empty, is_real
from .shapes import Shape

MINMAX, SYMMETRIC = 0, 1  # the forms that the kernels know
_GRID = Kernel("ldp_grid", FLOATS, SHAPE, INT, POINTER, FP32, FLOAT, FP32, FP32, FP32)
_SHIFT = Kernel("ldp_shift", FP32, FP32, FP32, LONG, FP32, FP32, threads=False)
_BITS_GRADIENT = Kernel("ldp_bits_gradient", FP32, FP32, LONG, FP32, FP32, FP32, threads=False)


def reads(bits: Tensor) -> bool:
    """Whether the kernels read bits from this tensor."""
    return bits.dtype == torch.float32 and is_real(bits)


class GridWithSlope(NamedTuple):
    """A tensor's own grid, fp32, broadcastable against it. offset: None where zero is on the grid. slope: flat dscale/dbits."""

    scale: Tensor
    offset: Tensor | None
    slope: Tensor


def grid(
    x: Tensor, shape: Shape, each: list[int], form: int, bits: Tensor, which: int, ranges: Tensor | None = None, momentum=0.0
) -> GridWithSlope:
    """Of x. ranges: (4,), moved towards the range of x in place. each: the grid's shape. bits[which]: its bits."""
    scale, low, slope = empty(each, torch.float32), empty(each, torch.float32), empty(shape[1:2], torch.float32)
    first: Any = address(bits, torch.float32)  # an address: None is for tensors that may be absent
    _GRID(x.numel(), x, shape, form, first + 4 * which, ranges, momentum, scale, low, slope)
    return GridWithSlope(scale, low if form == MINMAX else None, slope)


def shift(x: Tensor, grid, bits: Tensor) -> tuple[Tensor, Tensor] | None:
    """Kernel of `int8.matmul._shift`, where the grid has an offset: (half of the codes of so many bits, the offset of the
    grid whose codes are less by that).
    """
    scale, offset = grid.scale, grid.offset
    if offset is None or offset.shape != scale.shape or not takes(scale, offset) or not reads(bits):
        return None
    half, moved = empty((), torch.float32), empty(scale.shape, torch.float32)
    _SHIFT(scale.numel(), bits, scale, offset, scale.numel(), half, moved)
    return half, moved


def bits_gradient(w: Tensor | None, w_slope: Tensor, x: Tensor | None, x_slope: Tensor) -> Tensor:
    """(3,) dL/dbits from dL/dscale of weight and input; None: zero."""
    out = empty(3, torch.float32)
    _BITS_GRADIENT(3, None if w is None else w.contiguous(), w_slope, w_slope.numel(), x, x_slope, out)
    return out
