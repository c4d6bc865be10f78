"""What every backend is called with, and what all of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..products.bilinear import Product
from ..quantize import fake_quantize as fq
from ..quantize.gradient_quantizers import GradQuantizer
from ..quantize.grid import Grid

if TYPE_CHECKING:
    from ..model.site import Site
    from .sensing import Given, Sense


class Call(NamedTuple):
    """One quantized product: operands, their grids, and how the gradient of its output is quantized (None: not at all).

    grad_bits: 0-d, or (2,): in dL/dx and in dL/dw.
    site: the row of the search that it belongs to, for those who look at the bits themselves.
    straight: of x and of w: the gradient of clipped values passes too.
    sense: what the backward is shown to; with one, `simulate` computes the product.
    """

    x: Tensor
    w: Tensor
    bias: Tensor | None
    x_grid: Grid
    w_grid: Grid
    product: Product
    grad_bits: Tensor | None
    grad_quantizer: GradQuantizer
    site: Site
    straight: tuple[bool, bool] = (False, False)
    sense: tuple[Sense, Given] | None = None


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the product itself runs in: autocast's type where it is on, else the input's."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def each_product(grad_bits: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient's bits in dL/dx and in dL/dw; one object where they are the same number."""
    if not grad_bits.dim():
        return grad_bits, grad_bits
    of_input, of_weight = grad_bits.unbind()
    return of_input, of_weight


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
        both = zip(ctx.quantizers, each_product(*ctx.saved_tensors), ctx.needs_input_grad, strict=False)
        return *(quantizer(g, bits) if needed else None for quantizer, bits, needed in both), None, None


def _with_quantized_gradient(call: Call, grad_bits: Tensor, x_q: Tensor, w_q: Tensor) -> Tensor:
    """The product without bias; made twice where dL/dx and dL/dw each take a gradient of their own."""
    quantizers = of_input, of_weight = call.grad_quantizer.parts(call.product.channel_dim)
    if of_input is of_weight and not grad_bits.dim():
        return fq.quantize_gradient(call.product.forward(x_q, w_q, None), grad_bits, of_input)
    of_x, of_w = call.product.forward(x_q, w_q.detach(), None), call.product.forward(x_q.detach(), w_q, None)
    return _Either.apply(of_x, of_w, grad_bits, quantizers)


def finish(call: Call, x_q: Tensor, w_q: Tensor) -> Tensor:
    """The product of operands that are quantized already, left to autograd."""
    dtype = compute_dtype(call.x)  # by hand: not every product is on the list of each device's autocast
    x_q, w_q = x_q.to(dtype), w_q.to(dtype)
    if call.grad_bits is None:
        y = call.product.forward(x_q, w_q, None)
    else:
        y = _with_quantized_gradient(call, call.grad_bits, x_q, w_q)
    return y if call.bias is None else y + call.bias.to(y.dtype).view(-1, *[1] * call.product.spatial_dims)
