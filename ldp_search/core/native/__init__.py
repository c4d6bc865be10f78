"""The CPU's fast path: the passes over whole tensors as a few C kernels (`kernels.c`), each of which reads memory once.

Fake quantization is bound by memory. torch makes six passes of what is one: subtract, divide, round, multiply, add, and a
minimum and maximum. Here a pass is one function, equal to the formula that it stands for: `measure` (quantizers.measure),
`rounded` and `sums` (fake_quantize.rounded and .backward), `stochastic` (a counter-based generator seeded by torch's own, so
that a resumed run draws the same), `pack` and `unpack` (saved.py), codes instead of values, what stands around integer
products (`integers.py`, `int8.c`), and the small arithmetic of built-in grids (`grids.py`, `grids.c`).

Who calls asks first: `takes(x)` says whether the kernels serve a tensor. They do not where there is no compiler, on other
devices, for other types than fp32 and bf16, for strided and wrapped tensors, while compiling or tracing, and within
`disabled()` or with LDP_NATIVE=0; the torch formulas then do. `status()` tells why.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch
from torch import Tensor

from .build import Unavailable, load
from .memory import address, empty, intercepted, is_dense, is_real

BLOCK = 2048  # elements of a packed tensor that share a range
SMALL = 1 << 15  # elements below which one thread is faster than waking others
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
FLOATS = (torch.float32, torch.bfloat16)

_library: ctypes.CDLL | None = None
_reason: str | None = None  # why there is none; None: not tried yet
_off = 0


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("outer", "channels", "inner")]


class _Grid(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("scale", "offset", "low", "high")]


_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "ldp_measure": (_P, _I, _Shape, _P, _P, _P, _I),
    "ldp_round": (_P, _I, _P, _I, _Shape, _Grid, _P, _I),
    "ldp_sums": (_P, _I, _P, _I, _Shape, _Grid, _P, _I),
    "ldp_stochastic": (_P, _I, _P, _I, _L, _P, _P, _P, ctypes.c_uint64, _F, _I),
    "ldp_pack": (_P, _L, _L, _P, _P, _P, _I),
    "ldp_unpack": (_P, _L, _L, _P, _P, _P, _I),
}


def status() -> str:
    """'on', or why not."""
    if _off:
        return "switched off by disabled()"
    return "on" if _ready() else f"off: {_reason}"


@contextlib.contextmanager
def disabled():
    """Within this context the torch formulas serve."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


def _ready() -> bool:
    global _library, _reason
    if _library is None and _reason is None:
        try:
            if os.environ.get("LDP_NATIVE", "1") == "0":
                raise Unavailable("LDP_NATIVE=0")
            library = load()
            for name, arguments in _SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, None
            _library = library
        except Unavailable as error:
            _reason = str(error)
    return _library is not None


def _library_of_kernels() -> ctypes.CDLL:
    return _library


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels serve these tensors (of the same memory layout)."""
    if _off or intercepted() or not (_library or _ready()):
        return False
    first = tensors[0]
    for x in tensors:
        if x.dtype not in FLOATS or not is_real(x) or (x is not first and x.stride() != first.stride()):
            return False
    return first.numel() > 0 and is_dense(first)


def takes_codes(codes: Tensor) -> bool:
    """The same of the codes of a packed tensor."""
    return not _off and not intercepted() and codes.numel() > 0 and is_real(codes) and _ready()


def shape_along(x: Tensor, axes: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(outer, channels, inner) of a dense tensor; axes: of the channels, () for none; None where it has no such form."""
    if not axes or x.numel() == 1:
        return 1, 1, x.numel()
    if len(axes) > 1:
        return None
    channels, inner = x.shape[axes[0]], x.stride(axes[0])
    return (1, 1, x.numel()) if channels == 1 else (x.numel() // (channels * inner), channels, inner)


def axes_of(grid_tensor: Tensor, x: Tensor) -> tuple[int, ...] | None:
    """The axes along which a grid differs; None where it is not broadcast the way that quantizers make it."""
    if grid_tensor.numel() == 1:
        return ()
    if grid_tensor.dim() != x.dim():
        return None
    axes = tuple(d for d, size in enumerate(grid_tensor.shape) if size > 1)
    return axes if all(grid_tensor.shape[d] == x.shape[d] for d in axes) else None


def grid_shape(x: Tensor, grid) -> tuple[int, int, int] | None:
    """The shape of x as the kernels see it with this grid; None where they do not take it."""
    for value in grid:
        if value is not None and (value.dtype != torch.float32 or value.shape != grid.scale.shape or not value.is_contiguous()):
            return None
        if value is not None and not is_real(value):
            return None
    axes = axes_of(grid.scale, x)
    return None if axes is None else shape_along(x, axes)


def _grid(grid) -> _Grid:
    return _Grid(*(address(value, torch.float32) for value in grid))


def _threads(numel: int) -> int:
    return 1 if numel < SMALL else torch.get_num_threads()


def measure(x: Tensor, shape: tuple, spread: bool) -> Tensor:
    """(2 or 3, channels): minimum, maximum, and mean magnitude."""
    out = empty((2 + spread, shape[1]), torch.float32)
    low = out.data_ptr()
    high, mean = low + 4 * shape[1], low + 8 * shape[1] if spread else None
    _library.ldp_measure(address(x, *FLOATS), _TYPES[x.dtype], _Shape(*shape), low, high, mean, _threads(x.numel()))
    return out


def rounded(x: Tensor, grid, shape: tuple, dtype: torch.dtype) -> Tensor:
    """The values of the grid next to x, of `dtype`, in the memory layout of x."""
    y = torch.empty_like(x, dtype=dtype, requires_grad=False)
    types = _TYPES[x.dtype], _TYPES[dtype]
    _library.ldp_round(address(x, *FLOATS), types[0], y.data_ptr(), types[1], _Shape(*shape), _grid(grid), None, _threads(x.numel()))
    return y


def codes(x: Tensor, grid, shape: tuple, shift: Tensor) -> Tensor:
    """The codes of x on the grid (x_q = scale * code + offset) minus `shift`, as int8."""
    y = torch.empty_like(x, dtype=torch.int8, requires_grad=False)
    _library.ldp_round(
        address(x, *FLOATS), _TYPES[x.dtype], y.data_ptr(), 2, _Shape(*shape), _grid(grid), address(shift, torch.float32),
        _threads(x.numel()),
    )  # fmt: skip
    return y


def sums(g: Tensor, x: Tensor, grid, shape: tuple) -> Tensor:
    """dL/dscale in the shape of the grid, or of a clipping one dL/dscale, dL/dlow and dL/dhigh, stacked; g becomes 0 where x
    is clipped.
    """
    out = empty(grid.scale.shape if grid.low is None else (3, *grid.scale.shape), torch.float32)
    types = _TYPES[x.dtype], _TYPES[g.dtype]
    _library.ldp_sums(
        address(x, *FLOATS), types[0], address(g, *FLOATS), types[1], _Shape(*shape), _grid(grid), out.data_ptr(),
        _threads(x.numel()),
    )  # fmt: skip
    return out


def stochastic(
    x: Tensor, scale: Tensor, offset: Tensor | None, most: Tensor, seed: int, dtype: torch.dtype, shift: float = 0.0
) -> Tensor:
    """x on the grid of scale and offset, rounded up with the probability of the fraction, to codes of at most `most`.

    dtype int8: the codes themselves minus `shift`.
    """
    y = torch.empty_like(x, dtype=dtype, requires_grad=False)
    _library.ldp_stochastic(
        address(x, *FLOATS), _TYPES[x.dtype], y.data_ptr(), _TYPES[dtype], x.numel(), address(scale, torch.float32),
        address(offset, torch.float32), address(most, torch.float32), seed, shift, _threads(x.numel()),
    )  # fmt: skip
    return y


def pack(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int16 codes in the order of memory, (2, blocks) of lowest value and step) of an fp32 tensor."""
    numel = x.numel()
    codes, ranges = empty(numel, torch.int16), empty((2, -(-numel // BLOCK)), torch.float32)
    low, step = ranges[0].data_ptr(), ranges[1].data_ptr()
    _library.ldp_pack(address(x, torch.float32), numel, BLOCK, codes.data_ptr(), low, step, _threads(numel))
    return codes, ranges


def unpack(codes: Tensor, ranges: Tensor, out: Tensor) -> Tensor:
    """The inverse, into a dense fp32 tensor of the same memory layout."""
    numel, (low, step) = out.numel(), (address(values, torch.float32) for values in ranges)
    _library.ldp_unpack(
        address(codes, torch.int16), numel, BLOCK, low, step, address(out, torch.float32), _threads(numel)
    )  # fmt: skip
    return out
