"""The three products of a linear layer on integers of 8 bits, with exact 32-bit sums.

A tensor on a grid is  scale * code + offset  with an offset of its own, since a min/max grid has no exact zero. So the product
of two such tensors is the product of the codes and terms of rank one, made of the sums of the codes over rows or columns:

    sum_k (s_x a_ik + o_x)(s_j c_jk + o_j)  =  s_x s_j (A C^T)_ij  +  s_x o_j sum_k a_ik  +  o_x (s_j sum_k c_jk + K o_j)

The weight's scale s_j belongs to the output channel j. In dL/dw that is a row of the result; in dL/dx = g w_q it is the axis
summed over, where no scale can be taken out of the sum. There the weight stands as integers of 16 bits with one scale for
all, in two planes of 8 bits: 256 * high + low. One product with both planes side by side gives both sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...native import amx, grids, with_kernel
from ...native import int8 as kernels
from ...quantize.gradient_codes import GradCodes
from ...quantize.grid import Grid
from . import rounding_error

LARGEST = {1: 127, 2: 127 * 256 + 127}
"""Planes -> the largest integer that they hold with either sign."""
LONGEST_SUM = 2**31 // 128**2 - 1
"""Products of two codes that 32 bits hold the sum of, whatever the codes."""


class Codes(NamedTuple):
    """A matrix on a grid: scale * values + offset. values: int8 (rows, columns); scale, offset: fp32, broadcastable."""

    values: Tensor
    scale: Tensor
    offset: Tensor

    @property
    def by_row(self) -> bool:
        """Whether rows have scales of their own, which a sum over rows mixes."""
        return self.scale.numel() > 1 and self.scale.numel() > self.scale.shape[-1]

    @property
    def by_column(self) -> bool:
        """Whether columns have scales of their own, which a sum over columns mixes."""
        return self.scale.numel() > 1 and self.scale.shape[-1] > 1

    def to_float(self) -> Tensor:
        """The values on the grid, fp32."""
        return to_float(*self)

    def sum(self, dim: int) -> Tensor:
        """Of the values over rows (0) or columns (1); int32."""
        return code_sums(self.values, dim)


@with_kernel(kernels.to_float)
def to_float(values: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """The values of these codes, fp32."""
    return values.float().mul_(scale).add_(offset)


@with_kernel(kernels.code_sums)
def code_sums(values: Tensor, dim: int) -> Tensor:
    """Of an int8 matrix over rows (0) or columns (1); int32."""
    return values.sum(dim, dtype=torch.int32)


@with_kernel(amx.product)
def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b of int8 matrices, in int32; out: contiguous, where the result is to be written."""
    a, b = (_plain_strides(t) if 1 in t.shape else t for t in (a, b))
    return torch._int_mm(a, b) if out is None else torch._int_mm(a, b, out=out)


def _plain_strides(t: Tensor) -> Tensor:
    """With the stride of a row even where there is one row: torch takes it for a leading dimension, and oneDNN then writes
    nothing, without an error (pytorch issue 195066; a transposed column has a stride of 1 there).
    """
    return t.contiguous().as_strided(t.shape, (t.shape[1], 1))


def quantize(x: Tensor, grid: Grid, bits: Tensor, cells: bool = False) -> tuple[Codes, Tensor | None]:
    """A matrix in integers: the values of `fake_quantize.rounded`, as codes; and `rounding_error.pack` of it, where asked for.

    Codes of an affine grid start at 0, those of a symmetric one too where the data is never negative; they are moved by half
    of their range, so that 8 bits fit a signed byte and sums stay small.
    """
    shift, offset = _shift(x, grid, bits)
    values, packed = _codes(x, grid, shift, cells)
    return Codes(values, grid.scale, offset), packed


@with_kernel(kernels.codes)
def _codes(x: Tensor, grid: Grid, shift: Tensor, cells: bool) -> tuple[Tensor, Tensor | None]:
    """(codes on the grid less `shift`, what `quantize` says of cells)."""
    place = x.float()
    if grid.low is not None and grid.high is not None:
        place = torch.maximum(torch.minimum(place, grid.high), grid.low)
    place = (place if grid.offset is None else place - grid.offset) / grid.scale
    values = torch.round(place).sub_(shift).clamp_(-128, 127).to(torch.int8)
    return values, rounding_error.pack(place, x, grid) if cells else None


@with_kernel(grids.shift)
def _shift(x: Tensor, grid: Grid, bits: Tensor) -> tuple[Tensor, Tensor]:
    """(what codes are moved by, the offset that follows)."""
    half = torch.exp2(bits - 1)
    shift = half if grid.offset is not None else torch.where(_lowest(x, grid) < 0, 0, half)
    return shift, shift * grid.scale if grid.offset is None else shift * grid.scale + grid.offset


def _lowest(x: Tensor, grid: Grid) -> Tensor:
    """What tells whether the data has both signs: the grid's bound, or the smallest value of all that share a scale."""
    if grid.low is not None:
        return grid.low
    return x.amin([d for d in range(x.dim()) if grid.scale.shape[d] == 1], keepdim=True) if grid.scale.dim() else x.amin()


def as_matrix(g: GradCodes) -> Codes:
    """A gradient (..., channels) in codes as a matrix; scale: of all (0-d), a row (rows, 1), a column (1, columns), a value."""
    values, scale = g.values.reshape(-1, g.values.shape[-1]), g.scale
    if scale.numel() == 1:
        scale = scale.view(())
    elif scale.shape[-1] == 1:
        scale = scale.expand(*g.values.shape[:-1], 1).reshape(-1, 1)
    else:
        scale = scale.reshape(-1, scale.shape[-1])
    return Codes(values, scale, g.offset)


@with_kernel(kernels.to_values)
def to_values(accumulators: Tensor, by: Tensor, row: Tensor, across: Tensor, column: Tensor, dtype: torch.dtype) -> Tensor:
    """accumulators * by + row[:, None] * across + column, for vectors of rows and columns. Overwrites `accumulators`.

    column: the same for all rows, or a matrix whose rows take turns.
    """
    y = accumulators.float().mul_(by).addcmul_(row[:, None], across)
    y.view(-1, *column.shape).add_(column) if column.dim() == 2 else y.add_(column)
    return y.to(dtype)


def forward(x: Codes, w: Codes, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x_q @ w_q^T + bias from codes (rows, inputs) and (outputs, inputs)."""
    accumulators = product(x.values, w.values.t())
    return to_product(accumulators, x, x.sum(1), w, w.sum(1), x.values.shape[1], bias, dtype)


@with_kernel(kernels.to_product)
def to_product(
    accumulators: Tensor,
    left: Codes,
    left_sums: Tensor,
    right: Codes,
    right_sums: Tensor,
    length: int,
    bias: Tensor | None,
    dtype,
) -> Tensor:
    """left_q @ right_q + bias from the product of their codes, and their codes summed over the `length` summed over. Overwrites
    `accumulators`. left: with one scale for all; right: with one for all or one a column.
    """
    scale, offset = right.scale.view(-1), right.offset.view(-1)
    column = left.offset * (scale * right_sums + length * offset)
    column = column if bias is None else column + bias.float()
    return to_values(accumulators, left.scale * scale, left.scale * left_sums, offset, column, dtype)


def weight_gradient(g: Codes, x: Codes, transposed: bool) -> Tensor:
    """g_q^T @ x_q (outputs, inputs) from codes, or its transpose; fp32. A gradient with a scale a column has no offset."""
    scale = g.scale.view(1, -1) if transposed else g.scale.view(-1, 1)  # of the result's outputs, where it is one a column
    if scale.numel() > 1:
        g = g._replace(scale=torch.ones_like(g.offset))
    left, right = (x, g) if transposed else (g, x)
    accumulators = product(left.values.t(), right.values)
    gw = to_product(accumulators, left, left.sum(0), right, right.sum(0), len(g.values), None, torch.float32)
    return gw.mul_(scale) if scale.numel() > 1 else gw


def planes(w_q: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """(int8, `number` planes side by side, scale): w_q = scale * (256 * high + low) to half a scale. One: high alone."""
    return _planes(w_q, number, LARGEST[number])


@with_kernel(kernels.planes)
def _planes(w_q: Tensor, number: int, most: int) -> tuple[Tensor, Tensor]:
    low, high = torch.aminmax(w_q)
    scale = torch.maximum(-low, high).div_(most).clamp_min_(torch.finfo(torch.float32).tiny)
    whole = torch.round(w_q / scale)
    if number == 1:
        return whole.to(torch.int8), scale
    high = whole.add(128).div_(256).floor_()
    return torch.cat([high, whole.sub_(high, alpha=256)], 1).to(torch.int8), scale


class InputGradient(NamedTuple):
    """dL/dx as the products of integers left it: accumulators (rows, planes * inputs), int32, or fp32 in one plane.

    column: as in `to_values`. scale: one for all (0-d) or one a row (rows,).
    """

    accumulators: Tensor
    planes: int
    scale: Tensor
    column: Tensor

    def to_float(self) -> Tensor:
        """(rows, inputs), fp32."""
        inputs = self.column.shape[-1]
        accumulators = self.accumulators[:, :inputs].float()
        if self.planes == 2:
            accumulators = self.accumulators[:, inputs:].add(accumulators, alpha=256)
        accumulators.mul_(self.scale.view(-1, 1))
        accumulators.view(-1, *self.column.shape if self.column.dim() == 2 else self.column.shape).add_(self.column)
        return accumulators


def as_it_is(gx: Tensor) -> InputGradient:
    """A dL/dx that is in fp32 already, (rows, inputs)."""
    return InputGradient(gx, 1, gx.new_ones(1), gx.new_zeros(gx.shape[1]))


def input_gradient(g: Codes, w_q: Tensor, number: int) -> InputGradient:
    """g_q @ w_q from codes (rows, outputs) and a weight on its grid (outputs, inputs) in `number` planes."""
    values, scale = planes(w_q, number)
    return InputGradient(product(g.values, values), number, (scale * g.scale).flatten(), g.offset * w_q.sum(0))


@with_kernel(kernels.input_backward)
def input_backward(gx: InputGradient, x: Codes, packed: Tensor | None, grid: Grid, need_grid: bool, dtype: torch.dtype):
    """dL/dx of `dtype`, and gradients of the grid as `fake_quantize.backward` gives them, from codes and packed cells."""
    g, of_grid = rounding_error.backward(gx.to_float(), x.values, packed, grid, need_grid)
    return g.to(dtype), of_grid
