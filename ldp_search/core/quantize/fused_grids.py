"""The grids of a layer's two operands in training, where both quantizers have a closed form that the kernels know.

One call and one node of the graph take the place of some thirty operations on tensors of a few elements. Quantizers of others,
learned clips, evaluation, other devices and types go by `Quantizer.grid` and autograd, with the same results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..native import kernels
from ..native.shapes import along
from .grid import Grid
from .quantizers import form


def fused_grids(x: Tensor, w: Tensor, axes: tuple, bits: Tensor, quantizers: tuple, next_ranges, momentum: float):
    """Kernel of `Site._grids_of_batch`: (grid of x, grid of w); None where this is not the way.

    Args:
        axes: of the weight's output channels. bits: (3,) leaf. quantizers: of weight and input. next_ranges: gives the (4,)
            moving averages of the input's statistics, to be moved here by `momentum`, or None.
    """
    w_form, x_form = map(form, quantizers)
    if w_form is None or x_form is None or (serving := kernels.grids(x, w, axes, bits)) is None:
        return None
    grid, bits_gradient, shape = serving
    of_x = grid(x, (1, 1, x.numel()), [], x_form, bits, 1, next_ranges(), momentum)
    of_w = grid(w, shape, along(w, axes), w_form, bits, 0)
    x_scale, w_scale = of_x.scale, of_w.scale
    if bits.requires_grad and torch.is_grad_enabled():
        x_scale, w_scale = _Scales.apply(bits, of_x, of_w, bits_gradient)
    return Grid(x_scale, of_x.offset), Grid(w_scale, of_w.offset)


class _Scales(torch.autograd.Function):
    """bits -> scales of input and weight, found already with their slopes."""

    @staticmethod
    def forward(ctx, bits, of_x, of_w, bits_gradient):
        ctx.slopes, ctx.bits_gradient, ctx.others = (of_x.slope, of_w.slope), bits_gradient, len(bits) - 3
        ctx.set_materialize_grads(False)
        return of_x.scale, of_w.scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gx, gw):
        x_slope, w_slope = ctx.slopes
        found = ctx.bits_gradient(gw, w_slope, gx, x_slope)
        return torch.nn.functional.pad(found, (0, ctx.others)) if ctx.others else found, None, None, None
