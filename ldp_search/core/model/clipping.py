"""The clipping bounds that a site keeps for one operand: searched on samples, smoothed, right for any number of bits.

A table is (1 + levels,): the mass of its moving averages, then the bound at each number of bits, in mean magnitudes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantize.grid import Statistics
from ..quantize.least_squares import UNCLIPPED, sample, search
from ..quantize.quantizers import Quantizer

MOMENTUM = 0.2  # of a table: searches are rare, and each sees but a sample


@torch.no_grad()
def look(
    quantizer: Quantizer, x: Tensor, stats: Statistics, axes: tuple[int, ...], levels: Tensor, table: Tensor | None
) -> Tensor:
    """(levels,) mean squared error of `x` at each number of bits; moves the table, where there is one, to the best bounds.

    axes: along which `stats` differ.
    """
    bounds, errors = search(quantizer, *sample(x, stats, axes), levels, x.numel() // stats.low.numel())
    if table is not None:
        table.lerp_(torch.cat([torch.ones_like(bounds[:1]), bounds]), MOMENTUM)
    return errors


def bound_at(table: Tensor, bits: Tensor, levels: Tensor) -> Tensor:
    """The bound (0-d) at `bits`; one that cuts nothing off where no search has been."""
    index = (torch.round(bits.detach()) - levels[0]).long().clamp(0, len(levels) - 1)
    found = table[1:].gather(0, index.view(1)).view(()) / table[0].clamp_min(1e-12)
    return torch.where(table[0] > 0, found, UNCLIPPED)
