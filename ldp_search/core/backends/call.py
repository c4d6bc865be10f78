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


def finish(call: Call, x_q: Tensor, w_q: Tensor) -> Tensor:
    """The product of operands that are quantized already, left to autograd."""
    dtype = compute_dtype(call.x)  # by hand: not every product is on the list of each device's autocast
    y = call.product.forward(x_q.to(dtype), w_q.to(dtype), None)
    if call.grad_bits is not None:
        y = fq.quantize_gradient(y, call.grad_bits, call.grad_quantizer)
    return y if call.bias is None else y + call.bias.to(y.dtype).view(-1, *[1] * call.product.spatial_dims)
