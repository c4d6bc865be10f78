"""From a frozen layer's grids to the integers that a low-precision runtime stores and computes with.

Weights become int8 codes about zero, w_q = scale * code, one scale a channel:

* a grid through zero whose codes fit in -127..127 (symmetric and clip up to 8 bits): exactly what training used;
* any other (minmax, whose grid has no zero; an 8-bit channel without negative weights, whose codes reach 255): rounded once
  more, to the channel's symmetric 8-bit grid. Moving the grid to an integer zero point instead would shift all weights of a
  channel the same way, an error that adds up over the inputs, where a second rounding averages out.

Inputs become uint8 codes, x_q = scale * (code - zero_point) + shift, exactly what training used: `shift` is the part of a
minmax grid's offset that no integer zero point holds. It is subtracted before the rounding, and the products add
shift * sum(w_q) to their bias (exact but for a convolution's zero padding, whose zeros then count as `shift`).

An input that never changed (a dead ReLU, an empty range) has a grid of one value, c. Its one code lies at the zero point where
c is 0, else 255 steps from it, so that the zeros of a padding are exact too; steps are small, since biases are rounded to them.
"""

from __future__ import annotations

import functools
import platform
from typing import NamedTuple

import numpy as np
import torch

from ...core.quantize.fake_quantize import rounded

CONTAINER_BITS = 8  # what int8 kernels compute with; grids of fewer bits use a part of the codes
MAX_CODE = 127
LARGEST_PAIR = 2**15 - 1  # of the sum of two products
NEGLIGIBLE_SHIFT = 1e-4  # of a step
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny  # of a scale: runtimes may take smaller ones for zero
STEP_OF_NOTHING = 1e-6  # scale of an input that is always zero


class InputCodes(NamedTuple):
    """x_q = scale * (clip(round((x - shift) / scale) + zero_point, low, high) - zero_point) + shift; codes are uint8."""

    scale: float
    zero_point: int
    low: int
    high: int
    shift: float


class WeightCodes(NamedTuple):
    """w_q = scale * codes: int8 codes, shaped as the weight, and (channels,) fp64 scales along `axis`.

    exact: these are the very values that training used.
    """

    codes: np.ndarray
    scale: np.ndarray
    axis: int
    exact: bool

    def along(self, values: np.ndarray) -> np.ndarray:
        """(channels,) values, broadcastable against the codes."""
        return values.reshape([-1 if d == self.axis else 1 for d in range(self.codes.ndim)])

    def channel_sums(self) -> np.ndarray:
        """(channels,) sums of w_q over everything but the channel."""
        others = tuple(d for d in range(self.codes.ndim) if d != self.axis)
        return self.codes.sum(others, dtype=np.int64) * self.scale

    def times(self, factor: np.ndarray) -> WeightCodes:
        """The codes of factor * w_q, for (channels,) factors of any sign."""
        codes = self.codes * self.along(np.where(factor < 0, -1, 1)).astype(np.int8)
        return self._replace(codes=codes, scale=self.scale * np.abs(factor))

    def finer(self, largest_input: int) -> WeightCodes:
        """The same values from larger codes and smaller scales, so that an int32 bias, whose step is scale * scale of the
        input, is rounded less: without it, at 4 bits, 1 % of the next layer's codes differ. Two products with inputs up to
        `largest_input` still fit in 16 bits, which the kernels of x86 processors without VNNI need.
        """
        others = tuple(d for d in range(self.codes.ndim) if d != self.axis)
        largest = np.abs(self.codes.astype(np.int16)).max(others)
        most = min(MAX_CODE, LARGEST_PAIR // (2 * max(largest_input, 1)))  # a constant input may have the code 0
        factor = np.maximum(most // np.maximum(largest, 1), 1)
        factor[largest == 0] = 1
        return self._replace(codes=self.codes * self.along(factor).astype(np.int8), scale=self.scale / factor)

    def pairs_fit(self, largest_input: int) -> bool:
        """Whether two products with inputs up to `largest_input` fit in 16 bits: codes of 8 bits exceed them."""
        return int(np.abs(self.codes.astype(np.int16)).max(initial=0)) * 2 * largest_input <= LARGEST_PAIR

    def coarser(self, smallest_scale: np.ndarray) -> WeightCodes:
        """The same weights, rounded again in the channels whose scale is below (channels,) `smallest_scale`."""
        scale = np.maximum(np.maximum(self.scale, smallest_scale), SMALLEST_NORMAL)  # a batch-norm may have a gain of zero
        return self._replace(codes=np.rint(self.codes * self.along(self.scale / scale)).astype(np.int8), scale=scale)


@functools.cache
def adds_pairs_in_16_bits() -> bool:
    """Whether onnxruntime's kernels for unsigned inputs and signed weights do so on this machine: x86 without VNNI. Sums that
    do not fit are cut off there; those for unsigned weights are exact, and take longer.
    """
    vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686") and not vnni


def input_codes(site, call_site: int = 0) -> InputCodes:
    """Codes of a layer's input in one of its calls, from the averaged range and the bits (at most 8)."""
    grid = site.input_grid(call_site)
    scale = float(grid.scale)
    offset = 0.0 if grid.offset is None else float(grid.offset)
    zero = round(-offset / scale)  # the code of (about) zero, counted from the grid's offset
    if grid.low is None:
        first, last = -MAX_CODE, MAX_CODE
    else:
        first, last = (round((float(bound) - offset) / scale) - zero for bound in (grid.low, grid.high))
    if first == last:
        return _constant(0.0 if grid.offset is None else float(grid.low))
    zero_point, moved = _place(first, last)
    shift = offset + scale * (zero + moved)
    if abs(shift) < NEGLIGIBLE_SHIFT * scale:
        shift = 0.0
    return InputCodes(scale, zero_point, first - moved + zero_point, last - moved + zero_point, shift)


def _constant(value: float) -> InputCodes:
    """The code of an input that has one value."""
    if abs(value) < 255 * SMALLEST_NORMAL:
        return InputCodes(STEP_OF_NOTHING, 0, 0, 0, 0.0)
    code, zero_point = (255, 0) if value > 0 else (0, 255)
    return InputCodes(abs(value) / 255, zero_point, code, code, 0.0)


def _place(first: int, last: int) -> tuple[int, int]:
    """(zero point, move): where codes first..last about zero lie in uint8, after `move` was subtracted from them."""
    if first >= 0 and last <= 255:
        return 0, 0
    if -128 <= first <= 0 <= last <= 127:
        return 128, 0
    if first <= 0 <= last:
        return -first, 0
    return 0, first  # a range far from zero, wherever it is


@torch.no_grad()
def weight_codes(site, weight: torch.Tensor, axis: int | None = None) -> WeightCodes:
    """Codes of a weight at its bits (at most 8). axis: of its output channels; None: as in the site's layer."""
    w, axis = weight.detach().float(), site.axis if axis is None else axis
    grid = site.weight_grid(w, axis)
    values = rounded(w, grid).double()
    others = [d for d in range(w.dim()) if d != axis]
    scale = grid.scale.double().expand([n if d == axis else 1 for d, n in enumerate(w.shape)])
    symmetric = values.abs().amax(others, keepdim=True) / MAX_CODE
    if grid.offset is None:
        fits = torch.round(symmetric * MAX_CODE / scale) <= MAX_CODE
    else:
        fits = torch.zeros_like(scale, dtype=torch.bool)
    scale = torch.where(fits, scale, symmetric.clamp_min(SMALLEST_NORMAL))
    codes = torch.round(values / scale).to(torch.int8)
    return WeightCodes(codes.cpu().numpy(), scale.flatten().cpu().numpy(), axis, bool(fits.all()))


@torch.no_grad()
def float_weight(site, layer) -> torch.Tensor:
    """The weight's values at its bits, in floating point: for layers without an integer form."""
    weight = layer.weight.detach()
    if weight.dim() == 2 and isinstance(layer, torch.nn.Embedding):
        return site.rows(weight)
    return rounded(weight, site.weight_grid(weight)).to(weight.dtype)
