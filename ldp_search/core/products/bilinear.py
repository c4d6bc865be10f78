"""The bilinear products of a network, each with its two backward products, as plain functions of the quantized operands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LinearProduct:
    """y = x @ w^T, or x @ w where the weight is stored as (inputs, outputs), as transformers' Conv1D does."""

    transposed: bool = False
    spatial_dims = 0
    channel_dim = -1
    """Of the output channels in y."""

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, w.t() if self.transposed else w, bias)

    def backward(self, g: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool):
        """(dL/dx, dL/dw) from g = dL/dy; None for the one that is not needed."""
        gx = gw = None
        if need_x:
            gx = g @ (w.t() if self.transposed else w)
        if need_w:
            g2, x2 = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
            gw = x2.t() @ g2 if self.transposed else g2.t() @ x2
        return gx, gw

    def bias_grad(self, g: Tensor) -> Tensor:
        return g.reshape(-1, g.shape[-1]).sum(0)


@dataclass(frozen=True)
class ConvolutionProduct:
    """Convolution in one to three dimensions, or its transpose, of a batched input; zero padding."""

    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int
    transposed: bool = False
    output_padding: tuple = (0,)
    channel_dim = 1

    @property
    def spatial_dims(self) -> int:
        return len(self.stride)

    def _options(self):
        output_padding = self.output_padding if self.transposed else (0,) * len(self.stride)
        return self.stride, self.padding, self.dilation, self.transposed, output_padding, self.groups

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(x, w, bias, *self._options())

    def backward(self, g: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool):
        """(dL/dx, dL/dw) from g = dL/dy; None for the one that is not needed."""
        gx, gw, _ = torch.ops.aten.convolution_backward(g, x, w, None, *self._options(), [need_x, need_w, False])
        return gx, gw

    def bias_grad(self, g: Tensor) -> Tensor:
        return g.sum([d for d in range(g.dim()) if d != 1])


Product = LinearProduct | ConvolutionProduct


def backward(product: Product, g_x: Tensor, g_w: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool):
    """`product.backward` where dL/dx takes the gradient g_x and dL/dw takes g_w, which are cast to the type of x and w."""
    if g_x is g_w or not (need_x and need_w):
        return product.backward((g_x if need_x else g_w).to(x.dtype), x, w, need_x, need_w)
    gx, _ = product.backward(g_x.to(x.dtype), x, w, True, False)
    _, gw = product.backward(g_w.to(x.dtype), x, w, False, True)
    return gx, gw


def padded(x: Tensor, padding: tuple | str, kernel: tuple, dilation: tuple) -> tuple[Tensor, tuple]:
    """Zero padding as the product takes it, one width for both sides of a dimension. Where 'same' needs an odd total, `x` is
    padded here, before quantization; otherwise the product adds the zeros after it, where they stay exact.
    """
    if padding == "valid":
        return x, (0,) * len(kernel)
    if padding != "same":
        return x, tuple(padding)
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return x, tuple(total // 2 for total in totals)
    both = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return F.pad(x, both), (0,) * len(kernel)
