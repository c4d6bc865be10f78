"""A dense tensor as the kernels see it: (outer, channels, inner), with one grid a channel, or one for all of one channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .memory import is_real

Shape = tuple[int, int, int]


def shape_along(x: Tensor, axes: tuple[int, ...]) -> Shape | None:
    """Of a dense tensor; axes: of the channels, () for none; None where it has no such form."""
    if not axes or x.numel() == 1:
        return 1, 1, x.numel()
    if len(axes) > 1:
        return None
    channels, inner = x.shape[axes[0]], x.stride(axes[0])
    return (1, 1, x.numel()) if channels == 1 else (x.numel() // (channels * inner), channels, inner)


def shape_of_slices(x: Tensor, axes: tuple[int, ...]) -> Shape | None:
    """The same where the leading dimensions together may be the channels."""
    if len(axes) > 1 and axes == tuple(range(len(axes))) and x.is_contiguous():
        inner = math.prod(x.shape[len(axes) :])
        return 1, x.numel() // inner, inner
    return shape_along(x, axes)


def shape_of_blocks(x: Tensor, first: int, last: int) -> Shape | None:
    """(outer, length, inner) of a dense tensor; length: of its dimensions from `first` to `last`, in this order in memory."""
    order = sorted((d for d in range(x.dim()) if x.shape[d] > 1), key=x.stride, reverse=True)
    summed = [d for d in range(first, last + 1) if x.shape[d] > 1]
    at = order.index(summed[0]) if summed else len(order)
    if order[at : at + len(summed)] != summed:
        return None
    before, after = order[:at], order[at + len(summed) :]
    return math.prod(x.shape[d] for d in before), math.prod(x.shape[d] for d in summed), math.prod(x.shape[d] for d in after)


def in_order_of(x: Tensor, values: Tensor, dim: int) -> Tensor:
    """Values for each element of dense x, in the order of its memory, but for another number of them along `dim`."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    rest = math.prod(n for d, n in enumerate(x.shape) if d != dim)
    sizes = [values.numel() // rest if d == dim else n for d, n in enumerate(x.shape)]
    return values.view([sizes[d] for d in order]).permute([order.index(d) for d in range(x.dim())])


def axes_of(grid_tensor: Tensor, x: Tensor) -> tuple[int, ...] | None:
    """The axes along which a grid differs; None where it is not broadcast the way that quantizers make it."""
    if grid_tensor.numel() == 1:
        return ()
    if grid_tensor.dim() != x.dim():
        return None
    axes: tuple[int, ...] = ()
    for d, (size, of_x) in enumerate(zip(grid_tensor.shape, x.shape, strict=True)):
        if size > 1:
            if size != of_x:
                return None
            axes += (d,)
    return axes


def along(x: Tensor, axes: tuple[int, ...]) -> list[int]:
    """The shape of a grid that differs along these axes."""
    return [n if d in axes else 1 for d, n in enumerate(x.shape)] if axes else []


def grid_shape(x: Tensor, grid) -> Shape | None:
    """The shape of x with the channels of this grid; None where the kernels do not take it."""
    scale = grid.scale
    for value in grid:
        if value is None:
            continue
        if value.dtype != torch.float32 or value.shape != scale.shape or not value.is_contiguous():
            return None
        if value.is_cpu and not is_real(value):
            return None
    axes = axes_of(scale, x)
    return None if axes is None else shape_along(x, axes)
