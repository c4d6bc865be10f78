"""A grid, and the statistics of a tensor that it follows from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..native import kernels, with_kernel

SMALLEST_SCALE = 1e-30  # of a constant tensor, whose range is empty (the paper's 1e-8 would be above some weights at the start)


class Statistics(NamedTuple):
    """Minimum, maximum and mean absolute value of a tensor (0-d) or of each channel (broadcastable against it)."""

    low: Tensor
    high: Tensor
    spread: Tensor


class Grid(NamedTuple):
    """The values that a quantized tensor may take; all fp32, broadcastable against the tensor.

    `offset` None: zero, which is then on the grid. `low`/`high` None: the range is the tensor's own, so nothing is clipped.
    """

    scale: Tensor
    offset: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Grid:
        """The grid with every tensor changed by `f`."""
        scale, *others = self
        return Grid(f(scale), *(None if t is None else f(t) for t in others))


@torch.no_grad()
def measure(x: Tensor, axes: int | tuple[int, ...] | None = None, spread: bool = False) -> Statistics:
    """Statistics of `x`, of the whole tensor or of each slice along `axes` (the others kept, of size 1), in fp32."""
    return Statistics(*_measured(x, () if axes is None else (axes % x.dim(),) if isinstance(axes, int) else axes, spread))


@with_kernel(kernels.measure)
def _measured(x: Tensor, axes: tuple[int, ...], spread: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(minimum, maximum, mean magnitude); where the last is not asked for, the maximum stands in its place, unused."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not axes:
        low, high = torch.aminmax(x)
        mean = x.abs().mean(dtype=dtype) if spread else high
    else:
        dims = [d for d in range(x.dim()) if d not in axes]
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        mean = x.abs().mean(dims, keepdim=True, dtype=dtype) if spread else high
    return low.to(dtype), high.to(dtype), mean.to(dtype)
