"""What one product's backward tells of the damage of rounding (`bits.damage` says what it is for).

On a share of the steps (`sense_every`) a product is called with a `Sense`, which its backward shows what it has at hand. Errors
and variances at the other numbers of bits come from a sample of the very tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..bits.damage import (
    INPUT,
    INPUT_GRADIENT,
    PASSES,
    SKETCH,
    SKETCH_SQUARE,
    TERMS,
    W_SQUARE,
    WEIGHT,
    WEIGHT_GRADIENT,
    X_SQUARE,
    Sensed,
)
from ..quantize.gradient_quantizers import GradQuantizer

PART = 16  # of a layer's batch, that the variance of its gradient is measured on
SMALLEST = 1e-38  # of a sum of squares that something is divided by


class Sense:
    """Adds one product to its site's row of `Sensed`.

    forward: (x, w) -> the product, linear in both. x_errors, w_errors: (levels,) mean squared errors at each number of bits.
    bits: (3,) or (4,) in force. kept: axes of w that the sum leaves. channel_dim: of the output's channels.
    weight: w is a weight; False: an activation, rounded sample by sample as x is. part: share of the batch (1 / part) that the
    variance of a gradient with a scale a sample is measured on. once: the gradient is rounded once for both products,
    whatever its quantizer does.
    """

    def __init__(
        self,
        sensed: Sensed,
        row: int,
        forward: Callable,
        x_errors: Tensor,
        w_errors: Tensor,
        bits: Tensor,
        kept: tuple[int, ...],
        channel_dim: int,
        weight: bool = True,
        part: int = PART,
        once: bool = False,
    ):
        self.sensed, self.row, self.forward, self.bits, self.kept = sensed, row, forward, bits, kept
        self.channel_dim, self.weight, self.part, self.once = channel_dim, weight, part, once
        self.x_errors, self.w_errors = x_errors, w_errors

    @torch.no_grad()
    def of_input(self, gx: Tensor, error: Tensor) -> None:
        """gx: dL/dx of the mean loss. error: x_q - x. Both (samples, ...)."""
        error = error.float()
        dots = (gx.float() * error).reshape(len(gx), -1).sum(1)
        self.sensed.curves[self.row, INPUT] += _at_all_bits(dots, error, self.x_errors)
        self.sensed.scalars[self.row, X_SQUARE] += gx.float().square().sum()

    @torch.no_grad()
    def of_weight(self, gw: Tensor, error: Tensor) -> None:
        """The same of the second operand."""
        gw, error, scalars = gw.float(), error.float(), self.sensed.scalars[self.row]
        if self.weight:
            summed = [d for d in range(gw.dim()) if d not in {axis % gw.dim() for axis in self.kept}]
            dots = (gw * error).sum(summed) if summed else gw * error
            flat = gw.reshape(-1)
            flat = flat[:: max(1, flat.numel() // SKETCH)][:SKETCH]
            self.sensed.sketch[self.row, : len(flat)] += flat
            scalars[W_SQUARE] += gw.square().sum()
            scalars[SKETCH_SQUARE] += flat.square().sum()
        else:
            dots = (gw * error).reshape(len(gw), -1).sum(1)
        self.sensed.curves[self.row, WEIGHT] += _at_all_bits(dots, error, self.w_errors)

    @torch.no_grad()
    def of_gradient(self, g: Tensor, x_q: Tensor, w_q: Tensor, quantizer: GradQuantizer | None) -> None:
        """g: dL/dy before its rounding, by `quantizer` (None: it is not rounded), (samples, ...)."""
        scalars = self.sensed.scalars[self.row]
        scalars[TERMS] += (g.abs().amax(self.channel_dim) > 0).sum()
        scalars[PASSES] += 1
        if quantizer is None:
            return
        parts = (quantizer, quantizer) if self.once else quantizer.parts(self.channel_dim)
        alone = all(part.within_samples(g) for part in parts)
        count = max(1, len(g) // self.part) if alone else len(g)
        scale, apart = len(g) / count, len(g) // count
        # Spread over the batch, whose head is no fair sample where time comes first; of a whole one x may have another length.
        every = slice(None) if scale == 1 else slice(None, count * apart, apart)
        g, x, w = g[every], x_q[every].float(), w_q.float()
        bits = self.bits[2], self.bits[-1]
        seen = self._variances(g, parts[0], bits[0])
        both = (seen, seen if parts[1] is parts[0] and len(self.bits) == 3 else self._variances(g, parts[1], bits[1]))
        operands = (torch.ones_like(x), w.square()), (x.square(), torch.ones_like(w))
        for kind, (v, totals), of in zip((INPUT_GRADIENT, WEIGHT_GRADIENT), both, operands, strict=True):
            added = (v * self.forward(*of)).sum() * scale
            self.sensed.curves[self.row, kind] += added * totals / v.sum().clamp_min(SMALLEST)

    def _variances(self, g: Tensor, quantizer: GradQuantizer, bits: Tensor) -> tuple[Tensor, Tensor]:
        """The variance of each element at the bits in force, and (levels,) of all of them at each number of bits."""
        totals = torch.stack([quantizer.variance(g, level).sum() for level in self.sensed.levels])
        return quantizer.variance(g, bits), totals

    def watch(self, x: Tensor, x_q: Tensor, w: Tensor, w_q: Tensor) -> tuple[Tensor, Tensor]:
        """The rounded operands of a product left to autograd, shown their gradients."""
        return _watched(x, x_q, self.of_input), _watched(w, w_q, self.of_weight)

    def watch_gradient(self, y: Tensor, x_q: Tensor, w_q: Tensor, quantizer: GradQuantizer | None) -> Tensor:
        """Their product, shown the gradient that comes back to it."""
        x_q, w_q = x_q.detach(), w_q.detach()
        y = y.clone() if y._is_view() else y
        y.register_hook(lambda g: self.of_gradient(g, x_q, w_q, quantizer))
        return y


def _watched(raw: Tensor, rounded: Tensor, see: Callable[[Tensor, Tensor], None]) -> Tensor:
    """`rounded`, of which `see` is shown the gradient and the error."""
    rounded = rounded if rounded.requires_grad else rounded.detach().requires_grad_()
    error = (rounded - raw).detach()
    rounded.register_hook(lambda g: see(g, error))
    return rounded


def _at_all_bits(dots: Tensor, error: Tensor, errors: Tensor) -> Tensor:
    """(levels,) sum of the squares of `dots`, carried from the error that was made to the mean squared ones of a sample."""
    return dots.square().sum() / error.square().mean().clamp_min(SMALLEST) * errors
