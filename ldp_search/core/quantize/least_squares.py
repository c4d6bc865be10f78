"""Ranges of least squared error: where to clip a tensor so that rounding and clipping together cost the least.

At few bits the largest values of a tensor are not worth their range: clipping them makes the steps of all others smaller. The
best bound has no formula that fits all data, so it is searched: on a sample of the tensor, for every number of bits at once,
now and then (`controller.sensing`), and smoothed. It is kept in units of the mean magnitude, so that it follows the data in
between, and it is right at once for any bits that come into force.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..native import sensing, with_kernel
from ..registry import register
from .grid import SMALLEST_SCALE, Grid, Statistics
from .quantizers import Quantizer

FACTOR, BOUNDS = 0.9, 30
"""The search tries so many bounds, each this share of the one before: from the largest magnitude down to 0.05 of it."""
SAMPLE = 1024  # values that a search looks at
CHANNELS = 16  # of a weight, that a search looks at
MARGIN = 2.0  # over the largest value, where cutting nothing off is best: the next batch's may be larger
UNCLIPPED = 1e30  # a bound, in units of the mean magnitude, that cuts nothing off


@register("quantizer", "mse")
@dataclass
class LeastSquares(Quantizer):
    """Affine, 2^b levels, on the tensor's own range cut at +-c, c searched for the least squared error.

    exact_zero: zero is on the grid, as padding, ReLU and pruned weights need it. Without it a symmetric range has its levels at
    +-1/2, +-3/2, ... of a step, which suits the weights of 2 and 3 bits.
    The gradient passes straight through, also where a value is clipped.
    """

    exact_zero: bool = True
    searches_clip = True
    straight_through = True

    def grid(self, stats, bits, live, clip=None):
        """clip: the bound c in units of stats.spread; None: nothing is cut off."""
        low, high = stats.low, stats.high
        if clip is not None:
            bound = clip * stats.spread
            low, high = torch.maximum(low, -bound), torch.minimum(high, bound)
        if self.exact_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        most = torch.exp2(bits) - 1
        scale = ((high - low) / most).clamp_min(SMALLEST_SCALE)
        with torch.no_grad():  # what the bits learn, they learn by the scale
            # A range cut at both sides is symmetric, and half a step lies on a tie: the level that is over goes above zero.
            offset = torch.floor(low / scale + 0.501) * scale if self.exact_zero else low
            return Grid(scale, offset, offset.clone(), offset + most * scale)  # torch.compile takes no tensor twice


@torch.no_grad()
def search(
    quantizer: Quantizer, x: Tensor, stats: Statistics, levels: Tensor, numel: int | None = None
) -> tuple[Tensor, Tensor]:
    """The best bound and its error, for every number of bits.

    Args:
        x: (channels, values) sample, fp32. stats: of the whole tensor, (channels, 1) or (1, 1). levels: (n,) numbers of bits.
        numel: elements of the whole, of each channel: its largest one counts too, which a sample may lack; None: x is all.

    Returns:
        clip (n,) in units of the mean magnitude, and the mean squared error (n,) in the units of x squared.
    """
    bits = levels.view(-1, 1, 1, 1).to(x.device)
    clip = None
    if quantizer.searches_clip:
        largest = torch.maximum(-stats.low, stats.high) / stats.spread.clamp_min(SMALLEST_SCALE)
        clip = largest.max() * torch.pow(FACTOR, torch.arange(BOUNDS, dtype=torch.float32, device=x.device)).view(1, -1, 1, 1)
    grid = quantizer.grid(Statistics(*(s[None, None] for s in stats)), bits, clip is None, clip)
    error = _squared_error(x, grid)  # (levels, bounds)
    if clip is not None and numel is not None:
        cut = ((largest - clip.view(-1, 1, 1)) * stats.spread).clamp_min(0)  # (bounds, channels, 1)
        error = error + cut.square().mean((1, 2)) / numel
    best = error.argmin(1, keepdim=True)
    found = error.gather(1, best).squeeze(1)
    if clip is None:
        return torch.full_like(found, UNCLIPPED), found
    bound = clip.view(-1).gather(0, best.squeeze(1))
    return torch.where(best.squeeze(1) == 0, MARGIN * bound, bound), found


def unclipped_errors(quantizer: Quantizer, x: Tensor, stats: Statistics, levels: Tensor) -> Tensor:
    """(n,) mean squared errors at each number of bits without any bound; the rest as `search`."""
    bits = levels.view(-1, 1, 1, 1).to(x.device)
    return _squared_error(x, quantizer.grid(Statistics(*(s[None, None] for s in stats)), bits, True)).squeeze(1)


@with_kernel(sensing.squared_errors)
def _squared_error(x: Tensor, grid: Grid) -> Tensor:
    y = x if grid.low is None or grid.high is None else torch.minimum(torch.maximum(x, grid.low), grid.high)
    y = y / grid.scale if grid.offset is None else (y - grid.offset) / grid.scale
    y = torch.round(y).mul_(grid.scale)
    return (y if grid.offset is None else y.add_(grid.offset)).sub_(x).square_().mean((2, 3))


def sample(x: Tensor, stats: Statistics, axes: tuple[int, ...] = ()) -> tuple[Tensor, Statistics]:
    """(channels, values) of a tensor and the statistics that belong to them; axes: those that have statistics of their own."""
    if not axes:
        flat = x.detach().reshape(-1) if x.is_contiguous() else x.detach().movedim(1, -1).reshape(-1)
        flat = flat[:: _stride(flat.numel(), SAMPLE)]
        return flat[None].float(), Statistics(*(s.reshape(1, 1) for s in stats))
    rest = [d for d in range(x.dim()) if d not in axes]
    rows = x.detach().permute(*axes, *rest).reshape(stats.low.numel(), -1)
    each = _stride(len(rows), CHANNELS)
    values = _stride(rows.shape[1], max(1, SAMPLE // min(CHANNELS, len(rows))))
    return rows[::each, ::values].float(), Statistics(*(s.permute(*axes, *rest).reshape(-1, 1)[::each] for s in stats))


def _stride(numel: int, wanted: int) -> int:
    """A step through memory that leaves about `wanted` values, odd so that it meets all channels of an even number."""
    step = max(1, numel // wanted)
    return step if step < 3 else step | 1
