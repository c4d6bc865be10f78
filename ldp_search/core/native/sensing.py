"""The kernels of `sensing.c`: what a step that senses asks at every number of bits at once, each in one call."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from .library import FLOATS, FP32, LONG, POINTER, SHAPE, Kernel, takes
from .memory import address, empty
from .shapes import Shape

LEVELS = 32  # numbers of bits that the kernels take, at most
_TOTAL_VARIANCES = Kernel("ldp_total_variances", FLOATS, SHAPE, LONG, FP32, LONG, FP32)
_SQUARED_ERRORS = Kernel("ldp_squared_errors", FP32, LONG, LONG, LONG, LONG, POINTER, FP32)


def total_variances(g: Tensor, shape: Shape, size: int, levels: Tensor) -> Tensor:
    """(levels,) the variance of rounding all of g stochastically, with one symmetric grid for each `size` values along the
    middle of `shape`, (outer, length, inner).
    """
    found = empty(len(levels), torch.float32)
    _TOTAL_VARIANCES(g.numel() * len(levels), g, shape, size, levels, len(levels), found)
    return found


class _Table(ctypes.Structure):
    """Where a value of a grid lies for a level, a bound and a channel."""

    _fields_ = [("value", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("by_level", "by_bound", "by_channel"))]


def squared_errors(x: Tensor, grid) -> Tensor | None:
    """Kernel of `least_squares._squared_error`: (levels, bounds), of a sample (channels, values)."""
    there = [t for t in grid if t is not None]
    shape = torch.broadcast_shapes(*(t.shape for t in there))
    # A quantizer of somebody's own may bound a range at one side alone.
    if x.dim() != 2 or len(shape) != 4 or shape[2:] not in ((1, 1), (len(x), 1)) or (grid.low is None) != (grid.high is None):
        return None
    if (
        not takes(x)
        or not x.is_contiguous()
        or x.dtype != torch.float32
        or not all(t.is_contiguous() and takes(t) for t in there)
    ):
        return None
    levels, bounds = shape[:2]
    tables = (_Table * 4)()
    for table, values in zip(tables, grid, strict=True):
        if values is not None:
            steps = (0 if size == 1 else step for size, step in zip(values.shape[:3], values.stride()[:3], strict=True))
            table.value, (table.by_level, table.by_bound, table.by_channel) = address(values, torch.float32), steps
    found = empty((levels, bounds), torch.float32)
    _SQUARED_ERRORS(math.prod(shape[:2]) * x.numel(), x, *x.shape, levels, bounds, ctypes.addressof(tables), found)
    return found
