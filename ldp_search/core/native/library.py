"""The compiled library: loaded at its first use, and which tensors its kernels take."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch
from torch import Tensor

from .compile import Unavailable, load
from .memory import address, intercepted, is_dense, is_real

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


def switched_off() -> bool:
    """Whether within `disabled()`."""
    return _off > 0


def _ready() -> bool:
    global _library, _reason
    if _library is None and _reason is None:
        try:
            if os.environ.get("LDP_NATIVE", "1") == "0":
                raise Unavailable("LDP_NATIVE=0")
            _library = load()
        except Unavailable as error:
            _reason = str(error)
    return _library is not None


def _library_of_kernels() -> ctypes.CDLL:
    if _library is None:
        raise Unavailable(f"The kernels are not there ({_reason}); ask takes() before one is called.")
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
        if value is not None and value.is_cpu and not is_real(value):
            return None
    axes = axes_of(grid.scale, x)
    return None if axes is None else shape_along(x, axes)


def _grid(grid) -> _Grid:
    return _Grid(*(address(value, torch.float32) for value in grid))


def _threads(numel: int) -> int:
    return 1 if numel < SMALL else torch.get_num_threads()
