"""The three products of a linear layer on integers of 8 bits, with exact 32-bit sums.

A tensor on a grid is  scale * code + offset  with an offset of its own, since a min/max grid has no exact zero. So the product
of two such tensors is the product of the codes and terms of rank one, made of the sums of the codes over rows or columns:

    sum_k (s_x a_ik + o_x)(s_j c_jk + o_j)  =  s_x s_j (A C^T)_ij  +  s_x o_j sum_k a_ik  +  o_x (s_j sum_k c_jk + K o_j)

The weight's scale s_j belongs to the output channel j. In dL/dw that is a row of the result, as above; in dL/dx = g w_q it is the
axis summed over, where no scale can be taken out of the sum. There the weight stands as integers of 16 bits with one scale
for all, in two planes of 8 bits: 256 * high + low. One product with both planes side by side gives both sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..quantizers import Grid

LARGEST = {1: 127, 2: 127 * 256 + 127}
"""Planes -> the largest integer that they hold with either sign."""
LONGEST_SUM = 2**31 // 128**2 - 1
"""Products of two codes that 32 bits hold the sum of, whatever the codes."""


class Codes(NamedTuple):
    """A matrix on a grid: scale * values + offset. values: int8 (rows, columns); scale, offset: fp32, broadcastable."""

    values: Tensor
    scale: Tensor
    offset: Tensor

    def to_float(self) -> Tensor:
        """The values on the grid, fp32."""
        return self.values.float().mul_(self.scale).add_(self.offset)


def quantize(x: Tensor, grid: Grid, bits: Tensor) -> tuple[Codes, Tensor]:
    """A matrix in integers: the values of `fake_quantize.rounded`, as codes.

    Codes of an affine grid start at 0, those of a symmetric one too where the data is never negative; they are moved by half
    of their range, so that 8 bits fit a signed byte and sums stay small.

    Returns:
        the codes, and (x - offset) / scale before rounding, for whoever needs the rounding error.
    """
    half = torch.exp2(bits - 1)
    x = x.float()
    if grid.low is not None:
        x = torch.maximum(torch.minimum(x, grid.high), grid.low)
    place = x / grid.scale if grid.offset is None else torch.sub(x, grid.offset).div_(grid.scale)
    shift = half if grid.offset is not None else torch.where(_lowest(x, grid) < 0, 0, half)
    values = torch.round(place).sub_(shift).clamp_(-128, 127).to(torch.int8)
    offset = shift * grid.scale
    return Codes(values, grid.scale, offset if grid.offset is None else offset + grid.offset), place


def _lowest(x: Tensor, grid: Grid) -> Tensor:
    """What tells whether the data has both signs: the grid's bound, or the smallest value of all that share a scale."""
    if grid.low is not None:
        return grid.low
    return x.amin([d for d in range(x.dim()) if grid.scale.shape[d] == 1], keepdim=True) if grid.scale.dim() else x.amin()


def quantize_gradient(g: Tensor, bits: Tensor, quantizer) -> Codes:
    """A gradient in integers: what the gradient quantizer gives, as codes."""
    values, scale, low = quantizer.codes(g, bits)
    if low is None:
        return Codes(values.clamp_(-128, 127).to(torch.int8), scale, torch.zeros_like(scale))
    half = torch.exp2(bits - 1)
    return Codes(values.sub_(half).clamp_(-128, 127).to(torch.int8), scale, low + half * scale)


def forward(x: Codes, w: Codes, bias: Tensor | None) -> Tensor:
    """x_q @ w_q^T + bias from codes (rows, inputs) and (outputs, inputs); fp32."""
    sums = torch._int_mm(x.values, w.values.t())
    w_scale, w_offset = w.scale.view(-1), w.offset.view(-1)
    column = x.offset * (w_scale * w.values.sum(1, dtype=torch.int32) + x.values.shape[1] * w_offset)
    column = column if bias is None else column + bias.float()
    rows = x.scale * x.values.sum(1, dtype=torch.int32)
    return torch.addcmul(column, rows[:, None], w_offset).addcmul_(sums.float(), x.scale * w_scale)


def planes(w_q: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """(int8 matrix of `number` planes side by side, scale): w_q = scale * (256 * high + low) to half a scale; one: high alone."""
    scale = w_q.abs().amax().div_(LARGEST[number]).clamp_min_(torch.finfo(torch.float32).tiny)
    whole = torch.round(w_q / scale)
    if number == 1:
        return whole.to(torch.int8), scale
    high = whole.add(128).div_(256).floor_()
    return torch.cat([high, whole.sub_(high, alpha=256)], 1).to(torch.int8), scale


def input_gradient(g: Codes, w_q: Tensor, number: int) -> Tensor:
    """g_q @ w_q from codes (rows, outputs) and a weight on its grid (outputs, inputs) in `number` planes; fp32."""
    values, scale = planes(w_q, number)
    sums, inputs = torch._int_mm(g.values, values).float(), w_q.shape[1]
    if number == 2:
        sums = sums[:, inputs:].add(sums[:, :inputs], alpha=256)
    return sums.mul_(scale * g.scale).add_(g.offset * w_q.sum(0))


def weight_gradient(g: Codes, x: Codes, transposed: bool) -> Tensor:
    """g_q^T @ x_q (outputs, inputs) from codes, or its transpose; fp32."""
    left, right = (x, g) if transposed else (g, x)
    sums = torch._int_mm(left.values.t(), right.values)
    rows, columns = (codes.scale * codes.values.sum(0, dtype=torch.int32) for codes in (left, right))
    column = columns.mul_(left.offset).add_(len(g.values) * left.offset * right.offset)
    return sums.float().mul_(left.scale * right.scale).add_(column).add_((rows * right.offset)[:, None])
