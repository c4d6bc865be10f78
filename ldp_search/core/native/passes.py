"""The kernels of `passes.c`: the passes over whole tensors, each of which reads memory once."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .library import _I, _L, _P, _TYPES, _Grid, _grid, _library_of_kernels, _Shape, _threads

BLOCK = 2048  # elements of a packed tensor that share a range
_SIGNATURES = {
    "ldp_measure": (_P, _I, _Shape, _P, _P, _P, _I),
    "ldp_round": (_P, _I, _P, _I, _Shape, _Grid, _P, _I),
    "ldp_sums": (_P, _I, _P, _I, _Shape, _Grid, _P, _I),
    "ldp_pack": (_P, _L, _L, _P, _P, _P, _I),
    "ldp_unpack": (_P, _L, _L, _P, _P, _P, _I),
}


@cache
def _kernel(name: str):
    function = getattr(_library_of_kernels(), name)
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def measure(x: Tensor, shape: tuple, spread: bool) -> Tensor:
    """(2 or 3, channels): minimum, maximum, and mean magnitude."""
    out = torch.empty(2 + spread, shape[1])
    low = out.data_ptr()
    high, mean = low + 4 * shape[1], low + 8 * shape[1] if spread else None
    _kernel("ldp_measure")(x.data_ptr(), _TYPES[x.dtype], _Shape(*shape), low, high, mean, _threads(x.numel()))
    return out


def rounded(x: Tensor, grid, shape: tuple, dtype: torch.dtype) -> Tensor:
    """The values of the grid next to x, of `dtype`, in the memory layout of x."""
    y = torch.empty_like(x, dtype=dtype, requires_grad=False)
    types = _TYPES[x.dtype], _TYPES[dtype]
    _kernel("ldp_round")(x.data_ptr(), types[0], y.data_ptr(), types[1], _Shape(*shape), _grid(grid), None, _threads(x.numel()))
    return y


def codes(x: Tensor, grid, shape: tuple, shift: Tensor) -> Tensor:
    """The codes of x on the grid (x_q = scale * code + offset) minus `shift`, as int8."""
    y = torch.empty_like(x, dtype=torch.int8, requires_grad=False)
    _kernel("ldp_round")(
        x.data_ptr(), _TYPES[x.dtype], y.data_ptr(), 2, _Shape(*shape), _grid(grid), shift.data_ptr(), _threads(x.numel())
    )
    return y


def grid_gradients(g: Tensor, x: Tensor, grid, shape: tuple) -> Tensor:
    """dL/dscale in the shape of the grid, or of a clipping one dL/dscale, dL/dlow and dL/dhigh, stacked; g becomes 0 where x
    is clipped.
    """
    out = torch.empty(grid.scale.shape if grid.low is None else (3, *grid.scale.shape), dtype=torch.float32)
    types = _TYPES[x.dtype], _TYPES[g.dtype]
    _kernel("ldp_sums")(
        x.data_ptr(), types[0], g.data_ptr(), types[1], _Shape(*shape), _grid(grid), out.data_ptr(), _threads(x.numel())
    )
    return out


def pack(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int16 codes in the order of memory, (2, blocks) of lowest value and step) of an fp32 tensor."""
    numel = x.numel()
    codes, ranges = torch.empty(numel, dtype=torch.int16), torch.empty(2, -(-numel // BLOCK))
    low, step = ranges[0].data_ptr(), ranges[1].data_ptr()
    _kernel("ldp_pack")(x.data_ptr(), numel, BLOCK, codes.data_ptr(), low, step, _threads(numel))
    return codes, ranges


def unpack(codes: Tensor, ranges: Tensor, out: Tensor) -> Tensor:
    """The inverse, into a dense fp32 tensor of the same memory layout."""
    numel, low, step = out.numel(), ranges[0].data_ptr(), ranges[1].data_ptr()
    _kernel("ldp_unpack")(codes.data_ptr(), numel, BLOCK, low, step, out.data_ptr(), _threads(numel))
    return out
