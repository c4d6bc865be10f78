"""The kernels of `int8.c`: what stands before and after a product of 8-bit integers, each in one pass.

Each takes the arguments of the formula of its name in backends/int8/, and returns None for a call that it does not serve.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import passes
from .library import FLOAT, FLOATS, FP32, INT, INT8, INT32, LONG, POINTER, UINT8, Kernel, serves, takes
from .memory import empty
from .shapes import grid_shape

_QUANTIZE = Kernel("ldp8_input", FLOATS, LONG, *[FP32] * 5, INT8, UINT8)
_ROW_SUMS = Kernel("ldp8_row_sums", INT8, LONG, LONG, INT32)
_COLUMN_SUMS = Kernel("ldp8_column_sums", INT8, LONG, LONG, INT32)
_FLOATS = Kernel("ldp8_floats", INT8, FP32, LONG, LONG, FP32, INT, FP32)
_VALUES = Kernel("ldp8_values", INT32, FLOATS, LONG, LONG, FP32, FP32, FP32, FP32, LONG)
_PRODUCT = Kernel("ldp8_product", INT32, FLOATS, LONG, LONG, FP32, FP32, INT32, FP32, FP32, INT, INT32, LONG, FP32, FP32)
_INPUT_GRADIENT = Kernel(
    "ldp8_input_gradient", (torch.int32, torch.float32), INT, FLOATS, LONG, LONG, FP32, INT, FP32, LONG, INT8, UINT8, INT, FP32
)  # fmt: skip
_COLUMNS = Kernel("ldp8_columns", INT8, POINTER, INT8)
_PLANES = Kernel("ldp8_planes", FP32, LONG, LONG, FLOAT, FP32, POINTER, POINTER, LONG)


def codes(x: Tensor, grid, shift: Tensor, cells: bool) -> tuple[Tensor, Tensor | None] | None:
    """(int8 codes less `shift`, packed cells of the rounding error where they are asked for)."""
    if not takes(x) or (shape := grid_shape(x, grid)) is None:
        return None
    if grid.scale.dim() == 0 and x.is_contiguous():
        values = empty(x.shape, torch.int8)
        packed = empty((x.numel() + 1) // 2, torch.uint8) if cells else None
        _QUANTIZE(x.numel(), x, x.numel(), *grid, shift, values, packed)
        return values, packed
    return None if shift.dim() or cells else (passes.codes(x, grid, shape, shift), None)


def code_sums(values: Tensor, dim: int) -> Tensor | None:
    """values.sum(dim) of an int8 matrix, int32."""
    if not serves(values):
        return None
    if not values.is_contiguous():
        values, dim = values.t(), 1 - dim
    if not values.is_contiguous():
        return None
    rows, columns = values.shape
    out = empty(rows if dim else columns, torch.int32)
    (_ROW_SUMS if dim else _COLUMN_SUMS)(values.numel(), values, rows, columns, out)
    return out


def to_float(values: Tensor, scale: Tensor, offset: Tensor) -> Tensor | None:
    """values * scale + offset, fp32; scale: one for all, or one for each index of dimension 0."""
    one_a_row = offset.numel() == 1 and scale.numel() in (1, scale.shape[:1].numel())
    if not one_a_row or not values.is_contiguous() or not serves(values) or not takes(scale) or not takes(offset):
        return None
    y, rows = empty(values.shape, torch.float32), len(values)
    _FLOATS(values.numel(), values, y, rows, values.numel() // rows, scale, scale.numel() > 1, offset)
    return y


def _in_place_of(accumulators: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for as many values; fp32 takes the memory of `accumulators`."""
    return accumulators.view(torch.float32) if dtype == torch.float32 else empty(accumulators.shape, dtype)


def _turns(column: Tensor, columns: int) -> tuple[Tensor, int]:
    """Rows that are added in turn, and how many there are."""
    if column.shape[-1] != columns or not column.is_contiguous():
        column = column.expand(*column.shape[:-1], columns).contiguous()
    return column, column.numel() // columns


def to_values(
    accumulators: Tensor, by: Tensor, row: Tensor, across: Tensor, column: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """accumulators * by + row[:, None] * across + column."""
    if dtype not in FLOATS or not takes(by):
        return None
    y, (rows, columns) = _in_place_of(accumulators, dtype), accumulators.shape
    column, period = _turns(column, columns)
    by, across, row = by.expand(columns).contiguous(), across.expand(columns).contiguous(), row.expand(rows).contiguous()
    _VALUES(accumulators.numel(), accumulators, y, rows, columns, by, row, across, column, period)
    return y


def to_product(
    accumulators: Tensor, left, left_sums: Tensor, right, right_sums: Tensor, length: int, bias: Tensor | None, dtype
) -> Tensor | None:
    """left_q @ right_q + bias from the accumulators of two matrices of codes."""
    if dtype not in FLOATS or not takes(left.scale):
        return None
    y, (rows, columns) = _in_place_of(accumulators, dtype), accumulators.shape
    bias = None if bias is None else bias.float().contiguous()
    _PRODUCT(
        accumulators.numel(), accumulators, y, rows, columns, left.scale, left.offset, left_sums, right.scale, right.offset,
        right.scale.numel() > 1, right_sums, length, bias, empty(3 * columns + rows, torch.float32),
    )  # fmt: skip
    return y


def input_backward(gx, x, packed: Tensor | None, grid, need_grid: bool, dtype: torch.dtype) -> tuple[Tensor, tuple] | None:
    """(dL/dx of `dtype`, gradients of the grid)."""
    accumulators, planes, scale, column = gx
    if dtype not in FLOATS or not takes(column) or not x.values.is_contiguous():
        return None
    rows, columns, clip = accumulators.shape[0], accumulators.shape[1] // planes, grid.low is not None
    y = _in_place_of(accumulators, dtype) if planes == 1 else empty((rows, columns), dtype)
    (column, period), found = _turns(column, columns), empty(3 if clip else 1, torch.float32)
    _INPUT_GRADIENT(
        accumulators.numel(), accumulators, planes, y, rows, columns, scale, scale.numel() > 1, column, period, x.values,
        packed, clip, found,
    )  # fmt: skip
    if packed is None or not need_grid:
        return y, (None, None, None)
    return y, tuple(t.view(grid.scale.shape) for t in found.unbind()) if clip else (found.view(grid.scale.shape), None, None)


def planes(w_q: Tensor, number: int, most: int) -> tuple[Tensor, Tensor] | None:
    """(round(w_q / scale), at most `most`, in `number` int8 planes side by side, scale)."""
    transposed = not w_q.is_contiguous()
    w = w_q.t() if transposed else w_q
    if not takes(w) or not w.is_contiguous() or w.dtype != torch.float32:
        return None
    rows, columns = w.shape
    out = empty((number * rows, columns) if transposed else (rows, number * columns), torch.int8)
    high, scale = out.data_ptr(), empty((), torch.float32)
    low = high + (rows * columns if transposed else columns) if number == 2 else None
    _PLANES(w.numel(), w, rows, columns, most, scale, high, low, columns if transposed else number * columns)
    return out.t() if transposed else out, scale


def window(shape, kernel, stride, padding, dilation, places) -> ctypes.Array:
    """The struct of `window.h`, of codes of this shape, (samples, height, width, channels)."""
    return (LONG * 14)(*shape, *kernel, *stride, *padding, *dilation, *places)


def columns(values: Tensor, kernel, stride, padding, dilation, places) -> Tensor | None:
    """Of codes (samples, height, width, channels), what lies under a kernel at each place, padded with zeros."""
    if values.dtype != torch.int8 or not values.is_contiguous() or not serves(values):
        return None
    seen = window(values.shape, kernel, stride, padding, dilation, places)
    out = empty((len(values) * places[0] * places[1], kernel[0] * kernel[1] * values.shape[3]), torch.int8)
    _COLUMNS(out.numel(), values, ctypes.addressof(seen), out)
    return out
