"""What one product's backward tells of the damage of rounding (`bits.damage` says what it is for).

On a share of the steps (`sense_every`) a product is called with a `Sense`, which its backward shows what it has at hand. Errors
and variances at the other numbers of bits come from a sample of the very tensor. What is found comes back as the gradient of
leaves that stand for the site's row of `Sensed`: autograd adds it up, and torch.compile needs to know of no side effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..bits.damage import (
    INPUT,
    INPUT_GRADIENT,
    PASSES,
    SKETCH_SQUARE,
    TERMS,
    W_SQUARE,
    WEIGHT,
    WEIGHT_GRADIENT,
    X_SQUARE,
    sketch_of,
)
from ..quantize.gradient_quantizers import GradQuantizer

PART = 16  # of a layer's batch, that the variance of its gradient is measured on
SMALLEST = 1e-38  # of a sum of squares that something is divided by


class Given(NamedTuple):
    """The tensors of one product's measuring.

    x_errors, w_errors: (levels,) mean squared errors at each number of bits. bits: (3,) or (4,) in force. levels: (levels,)
    numbers of bits. curves, scalars, sketch: leaves, whose gradients are the site's rows of `Sensed`.
    """

    x_errors: Tensor
    w_errors: Tensor
    bits: Tensor
    levels: Tensor
    curves: Tensor
    scalars: Tensor
    sketch: Tensor


class Seen(NamedTuple):
    """What is to be added to a row of `Sensed`: by kind, by column, and (SKETCH,) or fewer elements."""

    curves: dict[int, Tensor]
    scalars: dict[int, Tensor]
    sketch: Tensor | None = None


class Sense(NamedTuple):
    """How one product is measured.

    forward: (x, w) -> the product, linear in both. kept: axes of w that the sum leaves. channel_dim: of the output's channels.
    weight: w is a weight; False: an activation, rounded sample by sample as x is. part: share of the batch (1 / part) that the
    variance of a gradient with a scale a sample is measured on. once: the gradient is rounded once for both products,
    whatever its quantizer does.
    """

    forward: Callable
    kept: tuple[int, ...]
    channel_dim: int
    weight: bool = True
    part: int = PART
    once: bool = False

    def of_input(self, given: Given, gx: Tensor, error: Tensor) -> Seen:
        """gx: dL/dx of the mean loss. error: x_q - x. Both (samples, ...)."""
        error = error.float()
        return Seen({INPUT: _at_all_bits(_dots(gx.float(), error), error, given.x_errors)}, {X_SQUARE: _square(gx.float())})

    def of_weight(self, given: Given, gw: Tensor, error: Tensor) -> Seen:
        """The same of the second operand."""
        gw, error = gw.float(), error.float()
        if not self.weight:
            return Seen({WEIGHT: _at_all_bits(_dots(gw, error), error, given.w_errors)}, {})
        summed = [d for d in range(gw.dim()) if d not in {axis % gw.dim() for axis in self.kept}]
        dots = (gw * error).sum(summed) if summed else gw * error
        flat = sketch_of(gw)
        squares = {W_SQUARE: _square(gw), SKETCH_SQUARE: flat.square().sum()}
        return Seen({WEIGHT: _at_all_bits(dots, error, given.w_errors)}, squares, flat)

    def of_gradient(self, given: Given, g: Tensor, x_q: Tensor, w_q: Tensor, quantizer: GradQuantizer | None) -> Seen:
        """g: dL/dy before its rounding, by `quantizer` (None: it is not rounded), (samples, ...)."""
        terms = (g.abs().amax(self.channel_dim) > 0).sum().float()
        seen = Seen({}, {TERMS: terms, PASSES: torch.ones_like(terms)})
        if quantizer is None:
            return seen
        parts = (quantizer, quantizer) if self.once else quantizer.parts(self.channel_dim)
        alone = all(part.within_samples(g) for part in parts)
        count = max(1, len(g) // self.part) if alone else len(g)
        scale, apart = len(g) / count, len(g) // count
        # Spread over the batch, whose head is no fair sample where time comes first; of a whole one x may have another length.
        if scale > 1:
            g, x_q = (_every(t, count, apart) for t in (g, x_q))
        x, w = x_q.float(), w_q.float()
        bits = given.bits[2], given.bits[-1]
        of_x = _variances(g, parts[0], bits[0], given.levels)
        same = parts[1] is parts[0] and len(given.bits) == 3
        both = of_x, of_x if same else _variances(g, parts[1], bits[1], given.levels)
        operands = (torch.ones_like(x), w.square()), (x.square(), torch.ones_like(w))
        for kind, (v, totals), of in zip((INPUT_GRADIENT, WEIGHT_GRADIENT), both, operands, strict=True):
            added = (v * self.forward(*of)).sum() * scale
            seen.curves[kind] = added * totals / v.sum().clamp_min(SMALLEST)
        return seen

    def watch(self, given: Given, x: Tensor, x_q: Tensor, w: Tensor, w_q: Tensor) -> tuple[Tensor, Tensor]:
        """The rounded operands of a product left to autograd, shown their gradients."""
        return _Operand.apply(x_q, x, self.of_input, *given), _Operand.apply(w_q, w, self.of_weight, *given)

    def watch_gradient(self, given: Given, y: Tensor, x_q: Tensor, w_q: Tensor, quantizer: GradQuantizer | None) -> Tensor:
        """Their product, shown the gradient that comes back to it."""
        return _Result.apply(y, x_q.detach(), w_q.detach(), self.of_gradient, quantizer, *given)


def gradients(given: Given, *seen: Seen) -> tuple:
    """Those of a `Given`, that add to its site's row what was seen."""
    curves, scalars, sketch = {}, {}, torch.zeros_like(given.sketch)
    for one in seen:
        curves.update(one.curves)
        scalars.update(one.scalars)
        if one.sketch is not None:
            sketch[: len(one.sketch)] = one.sketch
    none = torch.zeros_like(given.levels)
    of_curves = torch.stack([curves.get(kind, none) for kind in range(len(given.curves))])
    of_scalars = torch.stack([scalars.get(column, none[0]) for column in range(len(given.scalars))])
    return *[None] * (len(given) - 3), of_curves, of_scalars, sketch


def _same(ctx, x: Tensor) -> Tensor:
    """The result of an identity on a fresh tensor, to which others may add in place."""
    if torch.compiler.is_compiling() or x._is_view():
        return x.clone()
    ctx.mark_dirty(x)
    return x


class _Operand(torch.autograd.Function):
    """rounded, raw, see -> rounded, of which `see` is shown the gradient and the error."""

    @staticmethod
    def forward(ctx, rounded, raw, see, *given):
        ctx.save_for_backward(rounded - raw, *given)
        ctx.see = see
        return _same(ctx, rounded)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        error, *given = ctx.saved_tensors
        given = Given(*given)
        return g, None, None, *gradients(given, ctx.see(given, g, error))


class _Result(torch.autograd.Function):
    """y, x, w, see, quantizer -> y, the product of x and w, of which `see` is shown the gradient."""

    @staticmethod
    def forward(ctx, y, x, w, see, quantizer, *given):
        ctx.save_for_backward(x, w, *given)
        ctx.see, ctx.quantizer = see, quantizer
        return _same(ctx, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        x, w, *given = ctx.saved_tensors
        given = Given(*given)
        return g, None, None, None, None, *gradients(given, ctx.see(given, g, x, w, ctx.quantizer))


def _variances(g: Tensor, quantizer: GradQuantizer, bits: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The variance of each element at the bits in force, and (levels,) of all of them at each number of bits."""
    return quantizer.variance(g, bits), quantizer.total_variances(g, levels)


def _every(t: Tensor, count: int, apart: int) -> Tensor:
    """`count` samples of t in the order of memory that t has, for kernels and products take no gaps."""
    return torch.empty_like(t[:count]).copy_(t[: count * apart : apart])


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """(samples,) of two tensors, sample by sample, in whatever order of memory."""
    return (a * b).sum(list(range(1, a.dim()))) if a.dim() > 1 else a * b


def _square(t: Tensor) -> Tensor:
    """Sum of the squares, 0-d; without a tensor of them."""
    return torch.linalg.vector_norm(t).square()


def _at_all_bits(dots: Tensor, error: Tensor, errors: Tensor) -> Tensor:
    """(levels,) sum of the squares of `dots`, carried from the error that was made to the mean squared ones of a sample."""
    return dots.square().sum() / (_square(error) / error.numel()).clamp_min(SMALLEST) * errors
