"""The rounding error of a quantized input in four bits an element, for the gradient of its bits.

That gradient is a sum over  (x_q - x) * dL/dx , of which x_q - x is known only where x is. Instead of x (four bytes an
element), the codes (one byte, which the products need anyway) and the error are kept, as one of 15 equal cells of the interval
[-1/2, 1/2] of a step. The middle of its cell stands for it: the mean of the errors in it where these are spread evenly, so that
the sum is unbiased. It is off by a thirtieth of a step at most; its mean square is that of the error less one part in 225.
The 16th code marks what a clipped range cuts off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...quantize.grid import Grid

CELLS = 15
OUTSIDE = 15


def pack(place: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """Two elements a byte. place: (x - offset) / scale, clamped, before rounding."""
    cell = place.sub(torch.round(place)).add_(0.5).mul_(CELLS).floor_().clamp_(0, CELLS - 1)
    if grid.low is not None and grid.high is not None:
        cell = torch.where((x > grid.high) | (x < grid.low), OUTSIDE, cell)
    cell = cell.to(torch.uint8).flatten()
    if cell.numel() % 2:
        cell = torch.cat([cell, cell.new_zeros(1)])
    return cell[::2] | (cell[1::2] << 4)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """The cells, uint8, in the given shape."""
    return torch.stack([packed & 15, packed >> 4], 1).flatten()[: shape.numel()].view(shape)


def backward(g: Tensor, values: Tensor, packed: Tensor | None, grid: Grid, need_grid: bool) -> tuple[Tensor, tuple]:
    """What `fake_quantize.backward` gives, from codes and cells. Overwrites `g` (fp32, the shape of `values`)."""
    if packed is None:
        return g, (None, None, None)
    cell = unpack(packed, values.shape)
    low = high = scale = None
    if grid.low is not None and grid.high is not None:
        outside = cell == OUTSIDE
        cut = torch.where(outside, g, 0)
        if need_grid:
            above = torch.where(values >= 0, cut, 0).sum()  # of the two ends of a range of codes, the upper one has this sign
            high, low = above.view(grid.high.shape), (cut.sum() - above).view(grid.low.shape)
        g = g.sub_(cut)
    if need_grid:
        error = cell.float().sub_(CELLS // 2).div_(CELLS)
        scale = torch.dot(error.flatten(), g.flatten()).neg_().view(grid.scale.shape)
    return g, (scale, low, high)
