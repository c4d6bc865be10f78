"""The clipping bounds that a site keeps for one operand: searched on samples, smoothed, right for any number of bits.

A table is (1 + levels,): the mass of its moving averages, then the bound at each number of bits, in mean magnitudes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantize.grid import Statistics
from ..quantize.least_squares import UNCLIPPED, errors_at, sample, search
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
    """(levels,) mean squared error of `x` at each number of bits, at the bounds in force.

    axes: along which `stats` differ. table: where the bounds are kept, if any are; move: towards the best ones for `x` first.
    The errors are not those of the best bounds: a smoothed bound clips what this very tensor's own would not, and at many bits
    that is most of the error.
    """
    values, stats = sample(x, stats, axes)
    if table is None:
        return errors_at(quantizer, values, stats, levels, None)
    if move:
        bounds, _ = search(quantizer, values, stats, levels)
        table.lerp_(torch.cat([torch.ones_like(bounds[:1]), bounds]), MOMENTUM)
    return errors_at(
        quantizer, values, stats, levels, torch.where(table[0] > 0, table[1:] / table[0].clamp_min(1e-12), UNCLIPPED)
    )


def bound_at(table: Tensor, bits: Tensor, levels: Tensor) -> Tensor:
    """The bound (0-d) at `bits`; one that cuts nothing off where no search has been."""
    index = (torch.round(bits.detach()) - levels[0]).long().clamp(0, len(levels) - 1)
    found = table[1:].gather(0, index.view(1)).view(()) / table[0].clamp_min(1e-12)
    return torch.where(table[0] > 0, found, UNCLIPPED)
