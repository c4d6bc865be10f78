"""Fake quantization: rounding a tensor to a grid, forward and backward.

`reference` is the formula, for autograd to differentiate: slow, readable, what the tests compare with. `fake_quantize` is
the same function in few passes: it keeps only the tensor itself for backward and recomputes the rounding error there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..native import kernels, with_kernel
from .grid import Grid


def round_ste(x: Tensor) -> Tensor:
    """Rounding with the straight-through gradient 1 (Bengio et al. 2013)."""
    return x + (torch.round(x) - x).detach()


def reference(x: Tensor, grid: Grid, straight: bool = False) -> Tensor:
    """scale * round((clamp(x, low, high) - offset) / scale) + offset, by the formula; in fp32 at least.

    straight: the gradient of clipped values passes too.
    """
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    if grid.low is not None and grid.high is not None:
        inside = x.detach() if straight else x
        clipped = torch.where(x > grid.high, grid.high, torch.where(x < grid.low, grid.low, inside))
        x = clipped + (x - x.detach()) if straight else clipped
    offset = 0 if grid.offset is None else grid.offset
    return (grid.scale * round_ste((x - offset) / grid.scale) + offset).to(dtype)


def _clamped(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """A fresh tensor within the range. Minimum and maximum by a tensor are three times as fast as clamp."""
    below = torch.minimum(x, high)
    return torch.maximum(below, low) if torch.compiler.is_compiling() else torch.maximum(below, low, out=below)


@with_kernel(kernels.rounded)
def rounded(x: Tensor, grid: Grid, dtype: torch.dtype | None = None, after: Tensor | None = None) -> Tensor:
    """The values of `reference`, without gradient: a fresh tensor, computed in fp32 at least whatever the autocast.

    dtype: of the result; None: that in which it is computed. after: what is there before: in backward the gradient, so that
    torch.compile rounds then and does not keep the result from the forward.
    """
    computed = torch.promote_types(x.dtype, torch.float32)
    return _rounded(x.to(computed), grid).to(dtype or computed)


def _rounded(x: Tensor, grid: Grid) -> Tensor:
    """One fresh tensor, worked on in place."""
    if grid.low is not None and grid.high is not None:
        q = _clamped(x, grid.low, grid.high)
        q = q.div_(grid.scale) if grid.offset is None else q.sub_(grid.offset).div_(grid.scale)
    else:
        q = x / grid.scale if grid.offset is None else torch.sub(x, grid.offset).div_(grid.scale)
    q = q.round_().mul_(grid.scale)
    return q if grid.offset is None else q.add_(grid.offset)


def backward(
    g: Tensor, x: Tensor, grid: Grid, need_grid: bool, x_q: Tensor | None = None, straight: bool = False
) -> tuple[Tensor, tuple]:
    """Gradients of `reference` from g = dL/dx_q. Overwrites `g`, and `x_q` = rounded(x, grid) where it is at hand.

    Inside the range, dx_q/dx = 1 and dx_q/dscale = (x_q - x) / scale; outside, x_q follows the bound that clips it. With
    `straight` dx_q/dx = 1 there too.

    Returns:
        dL/dx, and (dL/dscale, dL/dlow, dL/dhigh) with None for those not asked for.
    """
    if not need_grid and (grid.low is None or straight):
        return g, (None, None, None)
    if straight and grid.low is not None:
        return g, backward(g.clone(), x, grid, need_grid, x_q)[1]
    return _backward(g, x, grid, need_grid, x_q)


@with_kernel(kernels.grid_gradients)
def _backward(g: Tensor, x: Tensor, grid: Grid, need_grid: bool, x_q: Tensor | None) -> tuple[Tensor, tuple]:
    """Floating-point signs instead of masks: boolean tensors cost a CPU three to ten times as much."""
    low = high = None
    if grid.low is not None and grid.high is not None:
        outside = _clamped(x, grid.low, grid.high).neg_().add_(x).sign_()  # 1 above, -1 below, 0 inside
        if need_grid:
            difference = _sum(outside, g, grid.high)
        outside.mul_(outside)
        if need_grid:
            total = _sum(outside, g, grid.high)
            high, low = (total + difference) / 2, (total - difference) / 2
        g = g.addcmul_(g, outside.to(g.dtype), value=-1)
    if not need_grid:
        return g, (None, None, None)
    error = (_rounded(x.to(grid.scale.dtype), grid) if x_q is None else x_q).sub_(x)
    return g, (_sum(error, g, grid.scale) / grid.scale, low, high)


def _sum(a: Tensor, g: Tensor, like: Tensor) -> Tensor:
    """sum(a * g) over all that `like` (one value, or one a channel) does not resolve."""
    if like.numel() == 1:
        return torch.dot(a.flatten(), g.flatten().to(a.dtype)).view(like.shape)
    return (a * g).sum_to_size(like.shape)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, offset, low, high, straight):
        ctx.save_for_backward(x, scale, offset, low, high)
        ctx.straight = straight
        return rounded(x, Grid(scale, offset, low, high), x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        x, *grid = ctx.saved_tensors
        g, (scale, low, high) = backward(g.clone(), x, Grid(*grid), ctx.needs_input_grad[1], straight=ctx.straight)
        return g, scale, None, low, high, None


def fake_quantize(x: Tensor, grid: Grid, straight: bool = False) -> Tensor:
    """`reference` in few passes, for operands of any product (the op-level way); gradients for x, scale, low and high."""
    return _FakeQuantize.apply(x, *grid, straight)


class _QuantizeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, bits, quantizer):
        ctx.save_for_backward(bits)
        ctx.quantizer = quantizer
        if torch.compiler.is_compiling() or y._is_view():
            return y.clone()
        ctx.mark_dirty(y)  # whoever called the product may add to it in place, which a view made here would not allow
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return ctx.quantizer(g, *ctx.saved_tensors), None, None


def quantize_gradient(y: Tensor, bits: Tensor, quantizer) -> Tensor:
    """The identity, whose gradient is quantized on the way back; `y` itself, a fresh result, is what comes back."""
    return _QuantizeGradient.apply(y, bits, quantizer)
