"""Quantizers: from a tensor's statistics and its bits to the grid that its values are rounded to.

A grid is  x_q = scale * round((clamp(x, low, high) - offset) / scale) + offset.  The families differ only in how the range
follows from the data and how the bits divide it: `minmax`, `symmetric` and `clip` here, `mse` in `least_squares`. Everything
here is small (one value a tensor or a channel) and differentiable in the bits and in a learned clip; the passes over whole
tensors are in `fake_quantize`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..native import grids as kernels
from ..registry import Component, register
from .grid import SMALLEST_SCALE, Grid, Statistics


class Quantizer(Component, kind="quantizer"):
    """Base of the quantizers: `grid` says where the values of a tensor with these statistics may lie.

    learned_clip: the grid has a learned multiplier of its clipping range, `clip` (1 at the start, > 0).
    searches_clip: `clip` is a bound in units of the mean magnitude, searched for every number of bits (`least_squares`).
    straight_through: the gradient of a clipped value passes too.
    """

    learned_clip = False
    searches_clip = False
    straight_through = False

    @property
    def needs_spread(self) -> bool:
        """Whether `grid` looks at the mean magnitude."""
        return self.learned_clip or self.searches_clip

    @abstractmethod
    def grid(self, stats: Statistics, bits: Tensor, live: bool, clip: Tensor | None = None) -> Grid:
        """Args:
        bits: 0-d fp32 tensor. live: the statistics are those of the very tensor to quantize, so that nothing exceeds them.
        """


@register("quantizer", "minmax")
@dataclass
class MinMax(Quantizer):
    """Affine between minimum and maximum, 2^b levels (SBM; the LDP paper's). Zero is in general not on the grid."""

    def grid(self, stats, bits, live, clip=None):
        scale = ((stats.high - stats.low) / (torch.exp2(bits) - 1)).clamp_min(SMALLEST_SCALE)
        if live:
            return Grid(scale, stats.low)
        return Grid(scale, stats.low.clone(), stats.low, stats.high)  # two tensors: torch.compile takes none twice


def largest_code(bits: Tensor, signed: Tensor) -> Tensor:
    """q_max of a symmetric grid: 2^(b-1) - 1 for data of both signs, 2^b - 1 for data that is never negative."""
    return torch.exp2(bits - signed) - 1


@register("quantizer", "symmetric")
@dataclass
class Symmetric(Quantizer):
    """Symmetric about an exact zero, out to the largest magnitude; data without negative values gets all codes above zero."""

    def grid(self, stats, bits, live, clip=None):
        signed = (stats.low < 0).to(stats.low.dtype)
        bound = torch.maximum(-stats.low, stats.high)
        scale = (bound / largest_code(bits, signed)).clamp_min(SMALLEST_SCALE)
        return Grid(scale) if live else Grid(scale, None, -signed * bound, bound)


def clip_ratio(bits: Tensor) -> Tensor:
    """Range of a signed b-bit grid in units of the mean absolute value of what it quantizes.

    Where the learned multiplier starts: between the clipping that minimises the squared error of normal data (few bits)
    and of Laplace data (many); cf. Banner et al. 2019, arXiv:1810.05723. Measured on 2^17 signed values against min/max, in dB:
    normal +4.2, +2.9, -0.3 and Laplace +7.1, +4.2, +1.8 at 3, 4 and 6 bits.
    """
    return 1.5 + 0.1 * bits + 0.11 * bits * bits


@register("quantizer", "clip")
@dataclass
class Clip(Quantizer):
    """Symmetric with exact zero and a learned clip range (LSQ family, arXiv:1902.08153; parametrised as DQ, arXiv:1905.11452).

    range = min(clip * ratio(bits) * mean|x|, max|x|). The learned `clip` is free of units and of bits: the analytic ratio moves
    the range with the bits and mean|x| moves it with the data, so it stays right when either jumps.
    """

    learned_clip = True

    def grid(self, stats, bits, live, clip=None):
        signed = (stats.low < 0).to(stats.low.dtype)
        # Data that is never negative was rectified: one bit more on its side of zero, and zeros (up to half of it) in its mean.
        bound = clip_ratio(bits + 1 - signed) * stats.spread * (1.5 - 0.5 * signed)
        bound = torch.minimum(bound if clip is None else bound * clip, torch.maximum(-stats.low, stats.high))
        bound = bound.clamp_min(SMALLEST_SCALE)
        return Grid(bound / largest_code(bits, signed), None, -signed * bound, bound)


_FORMS = {MinMax: kernels.MINMAX, Symmetric: kernels.SYMMETRIC}


def form(quantizer: Quantizer) -> int | None:
    """Which closed form of the kernels equals `quantizer.grid`; None: none does. By exact type: a subclass has its own grid."""
    return _FORMS.get(type(quantizer))
