"""What every backend is called with, and what all of them share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..quantize import fake_quantize as fq
from ..quantize.grid import Grid


class Call(NamedTuple):
    """One quantized product: operands, their grids, and how the gradient of its output is quantized (None: not at all).

    site: the row of the search that it belongs to, for those who look at the bits themselves.
    """

    x: Tensor
    w: Tensor
    bias: Tensor | None
    x_grid: Grid
    w_grid: Grid
    product: object
    grad_bits: Tensor | None
    grad_quantizer: object
    site: object = None


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the product itself runs in: autocast's type where it is on, else the input's."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


class _Either(torch.autograd.Function):
    """Of two equal tensors the first, each with a gradient quantizer of its own: y, y, bits, quantizers -> y."""

    @staticmethod
    def forward(ctx, y, same, bits, quantizers):
        ctx.save_for_backward(bits)
        ctx.quantizers = quantizers
        return y.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        both = zip(ctx.quantizers, ctx.needs_input_grad, strict=False)
        return *(quantizer(g, *ctx.saved_tensors) if needed else None for quantizer, needed in both), None, None


def _with_quantized_gradient(call: Call, x_q: Tensor, w_q: Tensor) -> Tensor:
    """The product without bias; made twice where dL/dx and dL/dw each take a gradient of their own."""
    quantizers = of_input, of_weight = call.grad_quantizer.parts(call.product.channel_dim)
    if of_input is of_weight:
        return fq.quantize_gradient(call.product.forward(x_q, w_q, None), call.grad_bits, of_input)
    of_x, of_w = call.product.forward(x_q, w_q.detach(), None), call.product.forward(x_q.detach(), w_q, None)
    return _Either.apply(of_x, of_w, call.grad_bits, quantizers)


def finish(call: Call, x_q: Tensor, w_q: Tensor) -> Tensor:
    """The product of operands that are quantized already, left to autograd."""
    dtype = compute_dtype(call.x)  # by hand: not every product is on the list of each device's autocast
    x_q, w_q = x_q.to(dtype), w_q.to(dtype)
    y = call.product.forward(x_q, w_q, None) if call.grad_bits is None else _with_quantized_gradient(call, x_q, w_q)
    return y if call.bias is None else y + call.bias.to(y.dtype).view(-1, *[1] * call.product.spatial_dims)
