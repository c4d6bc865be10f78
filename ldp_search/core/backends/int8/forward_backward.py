"""Forward and backward of one product in integers, as plain functions of tensors: what the node of the graph, and the operators
that torch.compile takes, have in common.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...products import bilinear
from ...products.bilinear import LinearProduct, Product
from ...quantize import fake_quantize as fq
from ...quantize.gradient_codes import BlockCodes, GradCodes
from ...quantize.gradient_quantizers import GradQuantizer
from ...quantize.grid import Grid
from ..call import each_product
from . import convolution as convolutions
from . import matmul as integers
from . import microscaling
from .matmul import Codes


class How(NamedTuple):
    """dtype: of the result. planes: of the weight in dL/dx. codes: kept for backward instead of x. cells: of the rounding error
    too, since backward asks where each input lay between two codes, or beyond them.

    straight: of x and of w: the gradient of clipped values passes too.
    """

    product: Product
    grad_quantizer: GradQuantizer
    dtype: torch.dtype
    planes: int
    codes: bool
    cells: bool
    straight: tuple[bool, bool]


class Kept(NamedTuple):
    """Of an input, for backward: its codes, the offset of their grid, and `rounding_error.pack`; None for what is not kept."""

    values: Tensor | None
    offset: Tensor | None
    packed: Tensor | None


class Needs(NamedTuple):
    """Which gradients are asked for: dL/dx, dL/dw, and those of both grids."""

    x: bool
    w: bool
    x_grid: bool
    w_grid: bool


class Gradients(NamedTuple):
    """dL/dx, dL/dw, and of both grids (scale, low, high); None for what is not asked for."""

    x: Tensor | None
    w: Tensor | None
    x_grid: tuple
    w_grid: tuple


def forward(
    x: Tensor, w: Tensor, bias: Tensor | None, x_grid: Grid, w_grid: Grid, bits: Tensor, how: How
) -> tuple[Tensor, Kept]:
    """Q(x) * Q(w) + bias, no view, and what backward needs besides. bits: of weight and input, and others."""
    linear = isinstance(how.product, LinearProduct)
    codes, packed = integers.quantize(_arranged(x, linear), x_grid, bits[1], how.cells)
    y = (_linear if linear else _convolution)(codes, x, w, bias, w_grid, bits, how)
    return y, Kept(codes.values, codes.offset, packed) if how.codes else Kept(None, None, None)


def _arranged(x: Tensor, linear: bool) -> Tensor:
    """The input as products of integers take it, in this order of memory: rows, or images with their channels last."""
    return (x.reshape(-1, x.shape[-1]) if linear else x.permute(0, 2, 3, 1)).contiguous()


def _linear(codes, x: Tensor, w: Tensor, bias, w_grid: Grid, bits: Tensor, how: How) -> Tensor:
    w_rows, w_grid = (w.t(), w_grid.map(Tensor.t)) if how.product.transposed else (w, w_grid)
    w_codes, _ = integers.quantize(w_rows, w_grid, bits[0])
    y = integers.forward(codes, w_codes, bias, how.dtype)
    return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))  # a view could not be added to in place


def _convolution(codes, x: Tensor, w: Tensor, bias, w_grid: Grid, bits: Tensor, how: How) -> Tensor:
    w_codes, _ = integers.quantize(w.reshape(len(w), -1), w_grid.map(lambda t: t.view(-1, 1)), bits[0])
    y = convolutions.forward(codes, w_codes, bias, how.product, tuple(w.shape[2:]), how.dtype)
    return _last_to_first(y)


def _last_to_first(y: Tensor) -> Tensor:
    """(samples, channels, height, width) in the memory of (samples, height, width, channels), and no view of it."""
    shape = len(y), y.shape[3], *y.shape[1:3]
    return torch.empty(0, dtype=y.dtype, device=y.device).set_(y.untyped_storage(), 0, shape, y.permute(0, 3, 1, 2).stride())


class Saved(NamedTuple):
    """What a backward begins with. x: None where its codes were kept instead. dtype: its own."""

    x: Tensor | None
    w: Tensor
    grad_bits: Tensor | None
    x_grid: Grid
    w_grid: Grid
    bits: Tensor
    kept: Kept
    dtype: torch.dtype


def backward(gy: Tensor, s: Saved, how: How, needs: Needs) -> Gradients:
    """All gradients but the bias's, from what forward kept; the weight is rounded again."""
    linear = isinstance(how.product, LinearProduct)
    x = None if s.x is None else _arranged(s.x, linear)
    if s.kept.values is None or s.kept.offset is None:
        codes = integers.quantize(x, s.x_grid, s.bits[1])[0]  # type: ignore[arg-type]  # x is there where its codes are not
    else:
        codes = Codes(s.kept.values, s.x_grid.scale, s.kept.offset)
    w_q = fq.rounded(s.w, s.w_grid) if needs.x or needs.w_grid else None
    if linear:
        gx, gw = _linear_products(gy, s.grad_bits, codes, w_q, how, needs)
    else:
        gy = gy.contiguous(memory_format=torch.channels_last)
        gx, gw = _convolution_products(gy, s.grad_bits, codes, s.w.float() if w_q is None else w_q, how, needs)
    grid_x = grid_w = (None, None, None)
    if needs.x:
        flat, width = None if x is None else x.view(-1, x.shape[-1]), codes.values.shape[-1]
        rows = codes._replace(values=codes.values.view(-1, width))
        gx, grid_x = _input_backward(gx, flat, rows, s, how.straight[0], needs.x_grid)
        gx = gx.view(*gy.shape[:-1], width) if linear else _last_to_first(gx.view(codes.values.shape))
    if needs.w:
        gw, grid_w = fq.backward(gw.to(s.w.dtype), s.w, s.w_grid, needs.w_grid, w_q, how.straight[1])
    return Gradients(gx, gw, grid_x, grid_w)


def _linear_products(gy, grad_bits, codes, w_q, how, needs: Needs):
    """(dL/dx, dL/dw) of a linear layer; None for the one that is not needed.

    In floating point where the gradient is in full precision, or has scales that differ along what the product sums over.
    """
    transposed, gx, gw = how.product.transposed, None, None
    w_rows = w_q.t() if transposed and w_q is not None else w_q
    if grad_bits is None:
        g_x = g_w = gy.reshape(-1, gy.shape[-1]).float()
    else:
        g_x, g_w = _codes(how, gy, grad_bits, needs)
    if needs.x and isinstance(g_x, BlockCodes):
        gx = microscaling.input_gradient(g_x, w_rows, how.planes)
    elif needs.x:
        exact = isinstance(g_x, Codes) and not g_x.by_column
        gx = integers.input_gradient(g_x, w_rows, how.planes) if exact else _values(g_x) @ w_rows
    if needs.w and microscaling.over_places(g_w):
        gw = microscaling.weight_gradient(g_w, codes, transposed)
    elif needs.w and isinstance(g_w, Codes) and not g_w.by_row:
        gw = integers.weight_gradient(g_w, codes, transposed)
    elif needs.w:
        x_q, g = codes.to_float(), _values(g_w).reshape(-1, gy.shape[-1])
        gw = x_q.t() @ g if transposed else g.t() @ x_q
    return gx, gw


def _codes(how, gy: Tensor, grad_bits: Tensor, needs: Needs) -> tuple:
    """The gradients for dL/dx and dL/dw in codes, channels last; None for the one that is not needed."""
    asked = (bits if needed else None for bits, needed in zip(each_product(grad_bits), needs[:2], strict=True))
    g_x, g_w = how.grad_quantizer.pair_codes(gy, *asked, how.product.channel_dim)
    one = None if g_x is None else _codes_last(g_x, how.product)
    return one, one if g_w is g_x else None if g_w is None else _codes_last(g_w, how.product)


def _codes_last(g: GradCodes | BlockCodes, product: Product) -> Any:
    """With the channels last, as the products take it."""
    if isinstance(g, BlockCodes):
        return microscaling.channels_last(g, product.channel_dim)
    return (convolutions.channels_last if product.spatial_dims else integers.as_matrix)(g)


def _values(g) -> Tensor:
    """A gradient in fp32, from its codes where it comes in codes."""
    return g if isinstance(g, Tensor) else g.to_float()


def _convolution_products(gy, grad_bits, codes, w_q, how, needs: Needs):
    """(dL/dx as (places, channels), dL/dw), in floating point where `_linear_products` says so, and dL/dx of a stride.

    w_q: where dL/dw alone is asked for, its shape serves.
    """
    gx, gw, full, kernel = None, None, grad_bits is None, tuple(w_q.shape[2:])
    g_x, g_w = (gy, gy) if full else _codes(how, gy, grad_bits, needs)
    turns = convolutions.turns(how.product, kernel)
    if needs.w and microscaling.over_places(g_w):
        gw = microscaling.weight_gradient_of_convolution(g_w, codes, how.product, kernel).view(w_q.shape)
    elif needs.w and isinstance(g_w, Codes) and not g_w.by_row:
        gw = convolutions.weight_gradient(g_w, codes, how.product, kernel).view(w_q.shape)
    if needs.x and isinstance(g_x, BlockCodes):
        if turns and max(how.product.stride) == 1:
            gx = microscaling.input_gradient_of_convolution(g_x, w_q, how.product, how.planes)
    elif needs.x and isinstance(g_x, Codes) and turns and g_x.scale.shape[1:].numel() == 1:
        gx = convolutions.input_gradient(g_x, w_q, how.product, tuple(codes.values.shape[1:3]), how.planes)
    missing = needs.x and gx is None, needs.w and gw is None
    if any(missing):
        x_q = (codes.to_float() if missing[1] else torch.empty_like(codes.values, dtype=torch.float32)).permute(0, 3, 1, 2)
        g_x, g_w = (_channels_first(g, full, needed) for g, needed in zip((g_x, g_w), missing, strict=True))
        gx_float, gw_float = bilinear.backward(how.product, g_x, g_w, x_q, w_q, *missing)
        gw = gw if gw_float is None else gw_float
        gx = gx if gx_float is None else gx_float.permute(0, 2, 3, 1).reshape(-1, x_q.shape[1])
    return gx, gw


def _channels_first(g: Any, full: bool, needed: bool) -> Any:
    """A gradient in fp32, full as it came, else from codes with their channels last; None where it is not needed."""
    return None if not needed else g.float() if full else g.to_float().permute(0, 3, 1, 2)


def _input_backward(gx, x2, codes, s: Saved, straight: bool, need_grid: bool):
    """(dL/dx, gradients of the grid) from what was saved: x, or its codes and cells."""
    grid = s.x_grid
    if not (straight and grid.low is not None):
        return _masked_backward(gx, x2, codes, s.kept.packed, grid, need_grid, s.dtype)
    of_grid = (None, None, None)
    if need_grid:
        gx = gx if isinstance(gx, Tensor) else gx.to_float()
        of_grid = _masked_backward(gx.clone(), x2, codes, s.kept.packed, grid, True, s.dtype)[1]
    return _masked_backward(gx, x2, codes, None, grid._replace(low=None, high=None), False, s.dtype)[0], of_grid


def _masked_backward(gx, x2, codes, packed, grid, need_grid: bool, dtype):
    """The same where no gradient passes a value that is clipped."""
    if x2 is None:
        gx = integers.as_it_is(gx) if isinstance(gx, Tensor) else gx
        return integers.input_backward(gx, codes, packed, grid, need_grid, dtype)
    gx = gx if isinstance(gx, Tensor) else gx.to_float()
    return fq.backward(gx.to(dtype), x2, grid, need_grid)
