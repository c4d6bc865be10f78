"""The kernels of `int8.c`: what stands before and after a product of 8-bit integers, each in one pass.

Each equals a formula of backends/int8/matmul.py or backends/int8/rounding_error.py, which asks `native.takes` first.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from .library import _TYPES, _library_of_kernels, _threads

_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "ldp8_input": (_P, _I, _L, _P, _P, _P, _P, _P, _P, _P, _I),
    "ldp8_row_sums": (_P, _L, _L, _P, _I),
    "ldp8_column_sums": (_P, _L, _L, _P, _I),
    "ldp8_floats": (_P, _P, _L, _L, _P, _I, _P, _I),
    "ldp8_values": (_P, _P, _I, _L, _L, _P, _P, _P, _P, _L, _I),
    "ldp8_product": (_P, _P, _I, _L, _L, _P, _P, _P, _P, _P, _I, _P, _L, _P, _P, _I),
    "ldp8_input_gradient": (_P, _I, _P, _I, _L, _L, _P, _I, _P, _L, _P, _P, _I, _P, _I),
    "ldp8_columns": (_P, _P, _P, _I),
    "ldp8_planes": (_P, _L, _L, _F, _P, _P, _P, _L, _I),
}


@cache
def _kernel(name: str):
    function = getattr(_library_of_kernels(), name)
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def quantize(x: Tensor, grid, shift: Tensor, cells: bool) -> tuple[Tensor, Tensor | None]:
    """(int8 codes less `shift`, packed cells of the rounding error) of a contiguous tensor with one grid."""
    values = torch.empty(x.shape, dtype=torch.int8)
    packed = torch.empty((x.numel() + 1) // 2, dtype=torch.uint8) if cells else None
    _kernel("ldp8_input")(
        x.data_ptr(), _TYPES[x.dtype], x.numel(), *map(_at, grid), shift.data_ptr(), values.data_ptr(), _at(packed),
        _threads(x.numel()),
    )  # fmt: skip
    return values, packed


def code_sums(values: Tensor, dim: int) -> Tensor:
    """values.sum(dim) of a contiguous int8 matrix, int32."""
    rows, columns = values.shape
    out = torch.empty(columns if dim == 0 else rows, dtype=torch.int32)
    kernel = _kernel("ldp8_column_sums" if dim == 0 else "ldp8_row_sums")
    kernel(values.data_ptr(), rows, columns, out.data_ptr(), _threads(values.numel()))
    return out


def to_float(values: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """values * scale + offset of contiguous codes, fp32; scale: one for all, or one for each index of dimension 0."""
    y = torch.empty(values.shape, dtype=torch.float32)
    rows = len(values)
    _kernel("ldp8_floats")(
        values.data_ptr(), y.data_ptr(), rows, values.numel() // rows, scale.data_ptr(), scale.numel() > 1, offset.data_ptr(),
        _threads(values.numel()),
    )  # fmt: skip
    return y


def _turns(column: Tensor, columns: int) -> tuple[Tensor, int]:
    """Rows that are added in turn, and how many there are."""
    if column.shape[-1] != columns or not column.is_contiguous():
        column = column.expand(*column.shape[:-1], columns).contiguous()
    return column, column.numel() // columns


def to_values(accumulators: Tensor, by: Tensor, row: Tensor, across: Tensor, column: Tensor, dtype: torch.dtype) -> Tensor:
    """accumulators * by + row[:, None] * across + column; fp32 takes the memory of `accumulators`."""
    y = accumulators.view(torch.float32) if dtype == torch.float32 else torch.empty(accumulators.shape, dtype=dtype)
    by, across = (t.expand(accumulators.shape[1]).contiguous() for t in (by, across))
    column, period = _turns(column, accumulators.shape[1])
    row = row.expand(accumulators.shape[0]).contiguous()
    _kernel("ldp8_values")(
        accumulators.data_ptr(), y.data_ptr(), _TYPES[dtype], *accumulators.shape, by.data_ptr(), row.data_ptr(),
        across.data_ptr(), column.data_ptr(), period, _threads(accumulators.numel()),
    )  # fmt: skip
    return y


def product(
    accumulators: Tensor, left, left_sums: Tensor, right, right_sums: Tensor, length: int, bias: Tensor | None, dtype
) -> Tensor:
    """What `to_values` makes of the products of two matrices of codes; fp32 takes the memory of `accumulators`."""
    y = accumulators.view(torch.float32) if dtype == torch.float32 else torch.empty(accumulators.shape, dtype=dtype)
    rows, columns = accumulators.shape
    bias = None if bias is None else bias.float().contiguous()
    space = torch.empty(3 * columns + rows, dtype=torch.float32)
    _kernel("ldp8_product")(
        accumulators.data_ptr(), y.data_ptr(), _TYPES[dtype], rows, columns, left.scale.data_ptr(), left.offset.data_ptr(),
        left_sums.data_ptr(), right.scale.data_ptr(), right.offset.data_ptr(), right.scale.numel() > 1, right_sums.data_ptr(),
        length, _at(bias), space.data_ptr(), _threads(accumulators.numel()),
    )  # fmt: skip
    return y


def input_gradient(
    accumulators: Tensor,
    planes: int,
    scale: Tensor,
    column: Tensor,
    values: Tensor,
    packed: Tensor | None,
    clip: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(dL/dx of `dtype`, and where there are cells (1,) dL/dscale, or (3,) with dL/dlow and dL/dhigh where values are cut)."""
    rows, columns = accumulators.shape[0], accumulators.shape[1] // planes
    in_place = planes == 1 and dtype == torch.float32
    gx = accumulators.view(torch.float32) if in_place else torch.empty(rows, columns, dtype=dtype)
    (column, period), results = _turns(column, columns), torch.empty(3 if clip else 1, dtype=torch.float32)
    _kernel("ldp8_input_gradient")(
        accumulators.data_ptr(), planes, gx.data_ptr(), _TYPES[dtype], rows, columns, scale.data_ptr(), scale.numel() > 1,
        column.data_ptr(), period, values.data_ptr(), _at(packed), clip, results.data_ptr(), _threads(accumulators.numel()),
    )  # fmt: skip
    return gx, results


def planes(w: Tensor, number: int, most: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """(round(w / scale) in `number` int8 planes, at most `most`; scale); w: contiguous (outputs, inputs), or its transpose."""
    rows, columns = w.shape
    out = torch.empty((number * rows, columns) if transposed else (rows, number * columns), dtype=torch.int8)
    low = out.data_ptr() + (rows * columns if transposed else columns) if number == 2 else None
    scale, stride = torch.empty((), dtype=torch.float32), columns if transposed else number * columns
    found = scale.data_ptr()
    _kernel("ldp8_planes")(w.data_ptr(), rows, columns, most, found, out.data_ptr(), low, stride, _threads(w.numel()))
    return out.t() if transposed else out, scale


def columns(values: Tensor, kernel, stride, padding, dilation, places) -> Tensor:
    """Of contiguous codes (samples, height, width, channels), what lies under a kernel at each place, padded with zeros."""
    window = (_L * 14)(*values.shape, *kernel, *stride, *padding, *dilation, *places)
    rows = len(values) * places[0] * places[1]
    out = torch.empty(rows, kernel[0] * kernel[1] * values.shape[3], dtype=torch.int8)
    _kernel("ldp8_columns")(values.data_ptr(), ctypes.addressof(window), out.data_ptr(), _threads(out.numel()))
    return out
