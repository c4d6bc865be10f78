"""The kernels of `grids.c`: a built-in quantizer's whole grid from the tensor and its bits, with its slope in the bits.

Each equals formulas of quantize/quantizers.py, which stay for every other quantizer and wherever `native.takes` says no.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .library import _TYPES, FLOATS, _library_of_kernels, _Shape, _threads
from .memory import address, empty, is_real

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
    return bits.dtype == torch.float32 and is_real(bits)


class GridWithSlope(NamedTuple):
    """A tensor's own grid, fp32, broadcastable against it. offset: None where zero is on the grid. slope: flat dscale/dbits."""

    scale: Tensor
    offset: Tensor | None
    slope: Tensor


def grid(
    x: Tensor, shape: tuple, each: list[int], form: int, bits: Tensor, which: int, ranges: Tensor | None = None, momentum=0.0
) -> GridWithSlope:
    """Of x. ranges: (4,), moved towards the range of x in place. each: the grid's shape. bits[which]: its bits."""
    scale, low, slope = (empty(size, torch.float32) for size in (each, each, shape[1:2]))
    first: Any = address(bits, torch.float32)  # an address: None is for tensors that may be absent
    _kernel("ldp_grid")(
        address(x, *FLOATS), _TYPES[x.dtype], _Shape(*shape), form, first + 4 * which, address(ranges, torch.float32), momentum,
        scale.data_ptr(), low.data_ptr(), slope.data_ptr(), _threads(x.numel()),
    )  # fmt: skip
    return GridWithSlope(scale, low if form == MINMAX else None, slope)


def shift(bits: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """(half of the codes of so many bits, the offset of the grid whose codes are less by that)."""
    half, moved = empty((), torch.float32), empty(scale.shape, torch.float32)
    numbers = address(scale, torch.float32), address(offset, torch.float32), scale.numel()
    _kernel("ldp_shift")(address(bits, torch.float32), *numbers, half.data_ptr(), moved.data_ptr())
    return half, moved


def bits_gradient(w: Tensor | None, w_slope: Tensor, x: Tensor | None, x_slope: Tensor) -> Tensor:
    """(3,) dL/dbits from dL/dscale of weight and input; None: zero."""
    out, w = empty(3, torch.float32), None if w is None else w.contiguous()
    _kernel("ldp_bits_gradient")(
        address(w, torch.float32), address(w_slope, torch.float32), w_slope.numel(), address(x, torch.float32),
        address(x_slope, torch.float32), out.data_ptr(),
    )  # fmt: skip
    return out
