"""The default backend: floating-point products of fake-quantized operands, in few passes over memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..products import bilinear
from ..quantize import fake_quantize as fq
from ..quantize.grid import Grid
from ..registry import register
from . import saved_activations
from .base import Backend
from .call import Call, compute_dtype, each_product
from .sensing import Given, gradients


@register("backend", "simulate")
@dataclass
class Simulate(Backend):
    """Floating-point products of fake-quantized operands; keeps for backward what the plain product keeps (x and w)."""

    def __call__(self, call: Call) -> Tensor:
        x_grid, w_grid = call.x_grid, call.w_grid
        sense, given = call.sense or (None, ())
        options = (call.product, call.grad_quantizer, compute_dtype(call.x), call.straight, sense)
        saved_activations.keep_exact(call.w)
        return _Product.apply(call.x, call.w, call.bias, call.grad_bits, *x_grid, *w_grid, options, *given)


class _Product(torch.autograd.Function):
    """x, w -> product(Q(x), Q(w)) + bias; both roundings are recomputed in backward."""

    @staticmethod
    def forward(ctx, x, w, bias, grad_bits, *others):
        grids, (product, grad_quantizer, dtype, straight, sense), given = others[:8], others[8], others[9:]
        ctx.save_for_backward(x, w, grad_bits, *grids, *given)
        ctx.options = product, grad_quantizer, dtype, None if bias is None else bias.dtype
        ctx.straight, ctx.sense = straight, sense
        x_q = fq.rounded(x, Grid(*grids[:4]), dtype)
        w_q = fq.rounded(w, Grid(*grids[4:]), dtype)
        y = product.forward(x_q, w_q, None if bias is None else bias.to(dtype))
        # A one-dimensional convolution gives a view, which a caller could not add to in place once it comes from here.
        return torch.ops.aten._unsafe_view(y, y.shape) if not torch.compiler.is_compiling() and y._is_view() else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        x, w, grad_bits, *others = ctx.saved_tensors
        x_grid, w_grid, given = Grid(*others[:4]), Grid(*others[4:8]), others[8:]
        product, grad_quantizer, dtype, bias_dtype = ctx.options
        need = ctx.needs_input_grad  # x, w, bias, grad_bits, then scale, offset, low, high of x and of w, and others
        x_bits, w_bits = need[4], need[8]
        sense = ctx.sense
        asked = need[0] or x_bits, need[1] or w_bits
        need_x, need_w = (needed or sense is not None for needed in asked)

        g_x = g_w = gy
        if grad_bits is not None:
            bits = (b if needed else None for b, needed in zip(each_product(grad_bits), asked, strict=True))
            g_x, g_w = grad_quantizer.pair(gy, *bits, product.channel_dim)
        x_q = fq.rounded(x, x_grid, dtype, gy) if need_w else x
        w_q = fq.rounded(w, w_grid, dtype, gy) if need_x else w
        gx, gw = bilinear.backward(product, g_x, g_w, x_q.to(dtype), w_q.to(dtype), need_x, need_w)
        sensed: tuple = ()
        if sense is not None:
            given = Given(*given)
            of_gradient = sense.of_gradient(given, gy, x_q, w_q, None if grad_bits is None else grad_quantizer)
            of_operands = sense.of_input(given, gx, x_q - x), sense.of_weight(given, gw, w_q - w)
            sensed = gradients(given, of_gradient, *of_operands)
        gb = product.bias_grad(gy).to(bias_dtype) if need[2] else None

        grid_x = grid_w = (None, None, None)
        if need_x:
            x_q = x_q if need_w and dtype == x_grid.scale.dtype else None
            gx, grid_x = fq.backward(gx.to(x.dtype), x, x_grid, x_bits, x_q, ctx.straight[0])
        if need_w:
            w_q = w_q if need_x and dtype == w_grid.scale.dtype else None
            gw, grid_w = fq.backward(gw.to(w.dtype), w, w_grid, w_bits, w_q, ctx.straight[1])
        scale_low_high = (grid_x[0], None, *grid_x[1:], grid_w[0], None, *grid_w[1:])
        return gx, gw, gb, None, *scale_low_high, None, *sensed
