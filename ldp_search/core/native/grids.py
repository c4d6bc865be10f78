"""The kernels of `grids.c`: a built-in quantizer's whole grid from the tensor and its bits, with its slope in the bits.

Each equals formulas of quantize/quantizers.py, which stay for every other quantizer and wherever `native.takes` says no.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .library import _TYPES, _library_of_kernels, _Shape, _threads

MINMAX, SYMMETRIC = 0, 1  # the forms that the kernels know

_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "ldp_grid": (_P, _I, _Shape, _I, _P, _P, _F, _P, _P, _P, _I),
    "ldp_shift": (_P, _P, _P, _L, _P, _P),
    "ldp_bits_gradient": (_P, _P, _L, _P, _P, _P),
}


@cache
def _kernel(name: str):
    function = getattr(_library_of_kernels(), name)
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def reads(bits: Tensor) -> bool:
    """Whether the kernels read bits from this tensor."""
    return bits.is_cpu and bits.dtype == torch.float32


class GridWithSlope(NamedTuple):
    """A tensor's own grid, fp32, broadcastable against it. offset: None where zero is on the grid. slope: flat dscale/dbits."""

    scale: Tensor
    offset: Tensor | None
    slope: Tensor


def grid(
    x: Tensor, shape: tuple, each: list[int], form: int, bits: Tensor, which: int, ranges: Tensor | None = None, momentum=0.0
) -> GridWithSlope:
    """Of x. ranges: (4,), moved towards the range of x in place. each: the grid's shape. bits[which]: its bits."""
    scale, low, slope = (torch.empty(size, dtype=torch.float32) for size in (each, each, shape[1:2]))
    averages = None if ranges is None else ranges.data_ptr()
    _kernel("ldp_grid")(
        x.data_ptr(), _TYPES[x.dtype], _Shape(*shape), form, bits.data_ptr() + 4 * which, averages, momentum,
        scale.data_ptr(), low.data_ptr(), slope.data_ptr(), _threads(x.numel()),
    )  # fmt: skip
    return GridWithSlope(scale, low if form == MINMAX else None, slope)


def shift(bits: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """(half of the codes of so many bits, the offset of the grid whose codes are less by that)."""
    half, moved = torch.empty((), dtype=torch.float32), torch.empty(scale.shape, dtype=torch.float32)
    numbers = scale.data_ptr(), offset.data_ptr(), scale.numel()
    _kernel("ldp_shift")(bits.data_ptr(), *numbers, half.data_ptr(), moved.data_ptr())
    return half, moved


def bits_gradient(w: Tensor | None, w_slope: Tensor, x: Tensor | None, x_slope: Tensor) -> Tensor:
    """(3,) dL/dbits from dL/dscale of weight and input; None: zero."""
    out, w = torch.empty(3, dtype=torch.float32), None if w is None else w.contiguous()
    _kernel("ldp_bits_gradient")(
        None if w is None else w.data_ptr(), w_slope.data_ptr(), w_slope.numel(), None if x is None else x.data_ptr(),
        x_slope.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out
