"""Quantizers: from a tensor's statistics and its bits to the grid that its values are rounded to.

A grid is  x_q = scale * round((clamp(x, low, high) - offset) / scale) + offset.  The three families differ only in how the
range follows from the data and how the bits divide it. Everything here is small (one value a tensor or a channel) and
differentiable in the bits and in a learned clip; the passes over whole tensors are in `fake_quantize`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import native
from .native import grids as kernels
from .registry import register

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


@torch.no_grad()
def measure(x: Tensor, axes: int | tuple[int, ...] | None = None, spread: bool = False) -> Statistics:
    """Statistics of `x`, of the whole tensor or of each slice along `axes` (the others kept, of size 1), in fp32."""
    axes = () if axes is None else (axes % x.dim(),) if isinstance(axes, int) else axes
    if native.takes(x) and (shape := native.shape_along(x, axes)) is not None:
        each = [n if d in axes else 1 for d, n in enumerate(x.shape)] if axes else []
        return _statistics(native.measure(x, shape, spread), each)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not axes:
        low, high = torch.aminmax(x)
        mean = x.abs().mean(dtype=dtype) if spread else high
    else:
        dims = [d for d in range(x.dim()) if d not in axes]
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        mean = x.abs().mean(dims, keepdim=True, dtype=dtype) if spread else high
    return Statistics(low.to(dtype), high.to(dtype), mean.to(dtype))


def _statistics(rows: Tensor, shape: list[int]) -> Statistics:
    """From (2 or 3, channels); without a mean the maximum stands in its place, unused."""
    low, high, *mean = rows.view(-1, *shape).unbind()
    return Statistics(low, high, *mean or (high,))


class Quantizer:
    """Base of the quantizers: `grid` says where the values of a tensor with these statistics may lie.

    learned_clip: the grid has a learned multiplier of its clipping range, `clip` (1 at the start, > 0).
    """

    learned_clip = False

    def grid(self, stats: Statistics, bits: Tensor, live: bool, clip: Tensor | None = None) -> Grid:
        """Args:
        bits: 0-d fp32 tensor. live: the statistics are those of the very tensor to quantize, so that nothing exceeds them.
        """
        raise TypeError(f"{type(self).__name__} must define grid(stats, bits, live, clip).")


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


def round_stochastically_(x: Tensor) -> Tensor:
    """In place: up with the probability of the fraction, else down, so that E[result] = x (to 2^-17).

    On a CPU the noise is sixteen random bits an element, four elements a draw: a fifth of the time of `torch.rand`.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.add_(torch.rand_like(x)).floor_()
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    noise = draws.view(torch.int16)[: x.numel()].view(x.shape)
    return x.add_(0.5 + 2**-17).add_(noise, alpha=2**-16).floor_()


class GradQuantizer:
    """Base of the gradient quantizers: stochastic rounding, unbiased (E[g_q] = g), to the grid that `grid` says."""

    def grid(self, g: Tensor, bits: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(scale, offset, largest code), 0-d and fp32; offset None: symmetric about an exact zero."""
        raise TypeError(f"{type(self).__name__} must define grid(g, bits).")

    def __call__(self, g: Tensor, bits: Tensor) -> Tensor:
        """g on its grid, a fresh tensor."""
        if (known := form(self)) is not None and native.takes(g) and kernels.reads(bits):
            return kernels.gradient(g, known, bits, draw_seed(), g.dtype)[0]
        scale, offset, most = self.grid(g, bits)
        if native.takes(g):
            return native.stochastic(g, scale, offset, most, draw_seed(), g.dtype)
        codes = round_stochastically_(g.float() / scale if offset is None else torch.sub(g.float(), offset).div_(scale))
        codes = codes.mul_(scale)
        return (codes if offset is None else codes.add_(offset)).to(g.dtype)


def draw_seed() -> int:
    """From torch's generator: `torch.manual_seed` and a resumed run repeat what follows from it."""
    return torch.empty((), dtype=torch.int64, device="cpu").random_().item()


@register("grad_quantizer", "stochastic")
@dataclass
class Stochastic(GradQuantizer):
    """Gradient quantizer: affine min/max (method of CPT, FracTrain and LDP)."""

    def grid(self, g, bits):
        low, high, _ = measure(g)  # in fp32, so that half precision does not round the range
        most = torch.exp2(bits) - 1
        return ((high - low) / most).clamp_min(torch.finfo(torch.float32).tiny), low, most


@register("grad_quantizer", "symmetric")
@dataclass
class SymmetricStochastic(GradQuantizer):
    """Gradient quantizer with exact zero (a dead ReLU's gradient stays zero) and a symmetric range."""

    def grid(self, g, bits):
        low, high, _ = measure(g)
        most = torch.exp2(bits - 1) - 1
        return (torch.maximum(-low, high) / most).clamp_min(torch.finfo(torch.float32).tiny), None, most


_FORMS = {
    MinMax: kernels.MINMAX,
    Symmetric: kernels.SYMMETRIC,
    Stochastic: kernels.MINMAX,
    SymmetricStochastic: kernels.SYMMETRIC,
}


def form(quantizer: Quantizer | GradQuantizer) -> int | None:
    """Which closed form of the kernels equals `quantizer.grid`; None: none does. By exact type: a subclass has its own grid."""
    return _FORMS.get(type(quantizer))
