"""The kernels of `passes.c`: the passes over whole tensors, each of which reads memory once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .library import FLOATS, FP32, GRID, INT16, LONG, POINTER, SHAPE, Kernel, serves, takes
from .memory import address, empty
from .shapes import Shape

BLOCK = 2048  # elements of a packed tensor that share a range
VALUES = (*FLOATS, torch.int8)
_MEASURE = Kernel("ldp_measure", FLOATS, SHAPE, POINTER, POINTER, POINTER)
_ROUND = Kernel("ldp_round", FLOATS, VALUES, SHAPE, GRID, FP32)
_GRID_GRADIENTS = Kernel("ldp_sums", FLOATS, FLOATS, SHAPE, GRID, FP32)
_PACK = Kernel("ldp_pack", FP32, LONG, LONG, INT16, POINTER, POINTER)
_UNPACK = Kernel("ldp_unpack", INT16, LONG, LONG, POINTER, POINTER, FP32)


def measure(x: Tensor, shape: Shape, spread: bool) -> Tensor:
    """(2 or 3, channels): minimum, maximum, and mean magnitude."""
    out = empty((2 + spread, shape[1]), torch.float32)
    low, size = out.data_ptr(), 4 * shape[1]
    _MEASURE(x.numel(), x, shape, low, low + size, low + 2 * size if spread else None)
    return out


def rounded(x: Tensor, grid, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The values of the grid next to x, of `dtype`, in the memory layout of x."""
    y = torch.empty_like(x, dtype=dtype, requires_grad=False)
    _ROUND(x.numel(), x, y, shape, grid, None)
    return y


def codes(x: Tensor, grid, shape: Shape, shift: Tensor) -> Tensor:
    """The codes of x on the grid (x_q = scale * code + offset) minus `shift`, as int8."""
    y = torch.empty_like(x, dtype=torch.int8, requires_grad=False)
    _ROUND(x.numel(), x, y, shape, grid, shift)
    return y


def grid_gradients(g: Tensor, x: Tensor, grid, shape: Shape) -> Tensor:
    """dL/dscale in the shape of the grid, or of a clipping one dL/dscale, dL/dlow and dL/dhigh, stacked; g becomes 0 where x
    is clipped.
    """
    out = empty(grid.scale.shape if grid.low is None else (3, *grid.scale.shape), torch.float32)
    _GRID_GRADIENTS(x.numel(), x, g, shape, grid, out)
    return out


def pack(flat: Tensor) -> tuple[Tensor, Tensor] | None:
    """Kernel of `saved_activations.pack`: (int16 codes, (2, blocks) of lowest value and step) of flat fp32 memory."""
    if not takes(flat):
        return None
    numel = flat.numel()
    codes, ranges = empty(numel, torch.int16), empty((2, -(-numel // BLOCK)), torch.float32)
    low = ranges.data_ptr()
    _PACK(numel, flat, numel, BLOCK, codes, low, low + 4 * ranges.shape[1])
    return codes, ranges


def unpack(codes: Tensor, ranges: Tensor) -> Tensor | None:
    """Kernel of `saved_activations.unpack`: the inverse, flat."""
    if not serves(codes):
        return None
    out = empty(codes.shape, torch.float32)
    low: Any = address(ranges, torch.float32)
    _UNPACK(out.numel(), codes, out.numel(), BLOCK, low, low + 4 * ranges.shape[1], out)
    return out
