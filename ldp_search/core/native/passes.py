"""The kernels of `passes.c`: the passes over whole tensors, each of which reads memory once."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .library import _I, _L, _P, _TYPES, FLOATS, _Grid, _grid, _library_of_kernels, _Shape, _threads
from .memory import address, empty

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
    out = empty((2 + spread, shape[1]), torch.float32)
    low = out.data_ptr()
    high, mean = low + 4 * shape[1], low + 8 * shape[1] if spread else None
    _kernel("ldp_measure")(address(x, *FLOATS), _TYPES[x.dtype], _Shape(*shape), low, high, mean, _threads(x.numel()))
    return out


def rounded(x: Tensor, grid, shape: tuple, dtype: torch.dtype) -> Tensor:
    """The values of the grid next to x, of `dtype`, in the memory layout of x."""
    y = torch.empty_like(x, dtype=dtype, requires_grad=False)
    types = _TYPES[x.dtype], _TYPES[dtype]
    _kernel("ldp_round")(
        address(x, *FLOATS), types[0], y.data_ptr(), types[1], _Shape(*shape), _grid(grid), None, _threads(x.numel())
    )
    return y


def codes(x: Tensor, grid, shape: tuple, shift: Tensor) -> Tensor:
    """The codes of x on the grid (x_q = scale * code + offset) minus `shift`, as int8."""
    y = torch.empty_like(x, dtype=torch.int8, requires_grad=False)
    _kernel("ldp_round")(
        address(x, *FLOATS), _TYPES[x.dtype], y.data_ptr(), 2, _Shape(*shape), _grid(grid), address(shift, torch.float32),
        _threads(x.numel()),
    )  # fmt: skip
    return y


def grid_gradients(g: Tensor, x: Tensor, grid, shape: tuple) -> Tensor:
    """dL/dscale in the shape of the grid, or of a clipping one dL/dscale, dL/dlow and dL/dhigh, stacked; g becomes 0 where x
    is clipped.
    """
    out = empty(grid.scale.shape if grid.low is None else (3, *grid.scale.shape), torch.float32)
    types = _TYPES[x.dtype], _TYPES[g.dtype]
    _kernel("ldp_sums")(
        address(x, *FLOATS), types[0], address(g, *FLOATS), types[1], _Shape(*shape), _grid(grid), out.data_ptr(),
        _threads(x.numel()),
    )  # fmt: skip
    return out


def pack(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int16 codes in the order of memory, (2, blocks) of lowest value and step) of an fp32 tensor."""
    numel = x.numel()
    codes, ranges = empty(numel, torch.int16), empty((2, -(-numel // BLOCK)), torch.float32)
    low, step = ranges[0].data_ptr(), ranges[1].data_ptr()
    _kernel("ldp_pack")(address(x, torch.float32), numel, BLOCK, codes.data_ptr(), low, step, _threads(numel))
    return codes, ranges


def unpack(codes: Tensor, ranges: Tensor, out: Tensor) -> Tensor:
    """The inverse, into a dense fp32 tensor of the same memory layout."""
    numel, (low, step) = out.numel(), (address(values, torch.float32) for values in ranges)
    at = address(codes, torch.int16), address(out, torch.float32)
    _kernel("ldp_unpack")(at[0], numel, BLOCK, low, step, at[1], _threads(numel))
    return out
