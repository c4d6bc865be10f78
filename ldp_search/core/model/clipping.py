"""The clipping bounds that a site keeps for one operand: searched on samples, smoothed, right for any number of bits.

A table is (1 + levels,): the mass of its moving averages, then the bound at each number of bits, in mean magnitudes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantize.grid import Statistics
from ..quantize.least_squares import UNCLIPPED, sample, search, unclipped_errors
from ..quantize.quantizers import Quantizer

MOMENTUM = 0.2  # of a table: searches are rare, and each sees but a sample


@torch.no_grad()
def look(
    quantizer: Quantizer,
    x: Tensor,
    stats: Statistics,
    axes: tuple[int, ...],
    levels: Tensor,
    table: Tensor | None,
    move: bool = True,
) -> Tensor:
    """(levels,) mean squared error of `x` at each number of bits: at the best bounds, or without any where none are kept.

    axes: along which `stats` differ. table: of the bounds. move: it, towards the best ones.
    """
    numel, (values, stats) = x.numel() // stats.low.numel(), sample(x, stats, axes)
    if table is None:
        return unclipped_errors(quantizer, values, stats, levels)
    bounds, errors = search(quantizer, values, stats, levels, numel)
    if move:
        moved_by_finite(table, torch.cat([torch.ones_like(bounds[:1]), bounds]), MOMENTUM)
    return errors


def moved_by_finite(average: Tensor, now: Tensor, momentum: float) -> None:
    """Move an average in place, unless a number of `now` is not finite: one broken batch must not stay in it."""
    average.lerp_(torch.where(now.isfinite().all(), now, average), momentum)


def bound_at(table: Tensor, bits: Tensor, levels: Tensor) -> Tensor:
    """The bound (0-d) at `bits`; one that cuts nothing off where no search has been."""
    index = (torch.round(bits.detach()) - levels[0]).long().clamp(0, len(levels) - 1)
    found = table[1:].gather(0, index.view(1)).view(()) / table[0].clamp_min(1e-12)
    return torch.where(table[0] > 0, found, UNCLIPPED)
