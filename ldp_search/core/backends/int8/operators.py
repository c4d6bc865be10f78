"""Products in integers as two operators of torch, forward and backward, so that what torch.compile compiles keeps them.

While compiling, tensors have no memory: the graph calls these operators, and when it runs they do what a step does without
torch.compile. What they are told of the product and of the gradient's grids is plain numbers, as schemas want.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...native.kernels import Form
from ...native.operators import DRAWS, GRID, define
from ...products.bilinear import ConvolutionProduct, LinearProduct, Product
from ...quantize.gradient_codes import GradGrid
from ...quantize.gradient_quantizers import GradQuantizer, of_form
from ...quantize.grid import Grid
from . import forward_backward as eager
from .forward_backward import Gradients, How, Kept, Needs, Saved

_GRIDS = GRID.format("x_"), GRID.format("w_")
_FORWARD = (
    f"int8_forward(Tensor x, Tensor w, Tensor? bias, {', '.join(_GRIDS)}, Tensor bits, int[] product, ScalarType dtype, "
    "bool codes, bool cells) -> (Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    f"int8_backward(Tensor gy, Tensor? x, Tensor w, Tensor? grad_bits, {', '.join(_GRIDS)}, Tensor bits, Tensor values, "
    "Tensor offset, Tensor packed, ScalarType dtype, int[] product, int[] of_input, int[] of_weight, "
    "int planes, bool[] straight, bool[] needs, Tensor draw) -> (Tensor, Tensor, Tensor, Tensor)"
)


def supports(quantizer: GradQuantizer, product: Product, g: Tensor) -> bool:
    """Whether the operators can be told of the grids of such a gradient (of as many dimensions as g)."""
    return all(part.form(g) is not None for part in quantizer.parts(product.channel_dim))


def forward(
    x: Tensor, w: Tensor, bias: Tensor | None, x_grid: Grid, w_grid: Grid, bits: Tensor, how: How
) -> tuple[Tensor, Kept]:
    """`forward_backward.forward`, for what torch.compile makes."""
    y, *kept = torch.ops.ldp_search.int8_forward(
        x, w, bias, *x_grid, *w_grid, bits, _numbers(how.product), how.dtype, how.codes, how.cells
    )
    return y, Kept(*kept)


def backward(gy: Tensor, s: Saved, how: How, needs: Needs) -> Gradients:
    """`forward_backward.backward`, for what torch.compile makes."""
    of_input, of_weight = how.grad_quantizer.parts(how.product.channel_dim)
    first, second = _flat(of_input.form(gy)), [] if of_weight is of_input else _flat(of_weight.form(gy))
    # Of its own, so that two roundings of one gradient are not taken for the same: each draws its noise.
    draw = torch.empty((), dtype=torch.int64, device=gy.device)
    gx, gw, of_x, of_w = torch.ops.ldp_search.int8_backward(
        gy, s.x, s.w, s.grad_bits, *s.x_grid, *s.w_grid, s.bits, *s.kept, s.dtype, _numbers(how.product), first,
        second, how.planes, list(how.straight), list(needs), draw,
    )  # fmt: skip
    return Gradients(gx if needs.x else None, gw if needs.w else None, _apart(of_x, s.x_grid), _apart(of_w, s.w_grid))


# -- what they are told ---------------------------------------------------------------------------------------------------


def _numbers(product: Product) -> list[int]:
    if isinstance(product, LinearProduct):
        return [int(product.transposed)]
    return [*product.stride, *product.padding, *product.dilation]


def _product(numbers: list[int]) -> Product:
    if len(numbers) == 1:
        return LinearProduct(bool(numbers[0]))
    stride, padding, dilation = (tuple(numbers[i : i + 2]) for i in (0, 2, 4))
    return ConvolutionProduct(stride, padding, dilation, 1)


def _flat(form: Form | None) -> list[int]:
    return [] if form is None else [form[0], *form[1]]


@dataclass
class _OfForms(GradQuantizer):
    """The quantizers of such grids for dL/dx and dL/dw; the second empty: one for both."""

    of_input: list[int]
    of_weight: list[int]

    def parts(self, channel_dim):
        first, *others = (of_form((form[0], tuple(form[1:]))) for form in (self.of_input, self.of_weight) if form)
        return first, others[0] if others else first

    def grid(self, g: Tensor, bits: Tensor) -> GradGrid:
        return self.parts(-1)[0].grid(g, bits)


def _together(of_grid: tuple, like: Tensor) -> Tensor:
    """(1, ...) of a scale, or (3, ...) of scale, low and high; none: empty."""
    there = [t for t in of_grid if t is not None]
    return torch.stack([t.view(like.shape) for t in there]) if there else like.new_empty(0)


def _apart(found: Tensor, grid: Grid) -> tuple:
    """The inverse."""
    if found.dim() == 1 and found.shape[0] == 0:
        return None, None, None
    scale, *others = found.unbind()
    return (scale, *others) if others else (scale, None, None)


# -- the operators ----------------------------------------------------------------------------------------------------------


def _run_forward(x, w, bias, *rest):
    grids, (bits, product, dtype, codes, cells) = rest[:8], rest[8:]
    how = How(_product(product), _OfForms([], []), dtype, 1, codes, cells, (False, False))
    y, kept = eager.forward(x, w, bias, Grid(*grids[:4]), Grid(*grids[4:]), bits, how)
    return y, *(x.new_empty(0) if t is None else t for t in kept)


def _fake_forward(x, w, bias, *rest):
    scale, (_, numbers, dtype, codes, cells) = rest[0], rest[8:]
    product = _product(numbers)
    shape: tuple
    if isinstance(product, LinearProduct):
        y = x.new_empty((*x.shape[:-1], w.shape[1] if product.transposed else w.shape[0]), dtype=dtype)
        shape = x.numel() // x.shape[-1], x.shape[-1]  # Size.numel() would fix the sizes of a trace
    else:
        size = eager.convolutions.output_size(x.shape[2:], w.shape[2:], product.stride, product.padding, product.dilation)
        y = x.new_empty((x.shape[0], *size, w.shape[0]), dtype=dtype).permute(0, 3, 1, 2)
        shape = x.shape[0], x.shape[2], x.shape[3], x.shape[1]
    values = x.new_empty(shape if codes else 0, dtype=torch.int8 if codes else x.dtype)
    offset = scale.new_empty(scale.shape) if codes else x.new_empty(0)
    packed = x.new_empty((x.numel() + 1) // 2, dtype=torch.uint8) if cells else x.new_empty(0)
    return y, values, offset, packed


def _run_backward(gy, x, w, grad_bits, *rest):
    grids, (bits, values, offset, packed, dtype, product, first, second, planes, straight, needs, _) = rest[:8], rest[8:]
    x_grid, w_grid, needs = Grid(*grids[:4]), Grid(*grids[4:]), Needs(*needs)
    kept = Kept(values, offset, packed if packed.dtype == torch.uint8 else None) if x is None else Kept(None, None, None)
    saved = Saved(x, w, grad_bits, x_grid, w_grid, bits, kept, dtype)
    how = How(_product(product), _OfForms(first, second), gy.dtype, planes, x is None, False, tuple(straight))
    gx, gw, of_x, of_w = eager.backward(gy, saved, how, needs)
    gx = gy.new_empty(0) if gx is None else gx
    gw = gy.new_empty(0) if gw is None else gw.contiguous()
    return gx, gw, _together(of_x, x_grid.scale), _together(of_w, w_grid.scale)


def _fake_backward(gy, x, w, grad_bits, *rest):
    grids, (_, values, _, _, dtype, product, _, _, _, _, needs, _) = rest[:8], rest[8:]
    x_grid, w_grid, needs = Grid(*grids[:4]), Grid(*grids[4:]), Needs(*needs)
    gx = gw = gy.new_empty(0)
    if needs.x and len(product) == 1:
        gx = gy.new_empty((*gy.shape[:-1], w.shape[0 if product[0] else 1]), dtype=dtype)
    elif needs.x:
        shape = values.shape if x is None else x.permute(0, 2, 3, 1).shape
        gx = gy.new_empty(shape, dtype=dtype).permute(0, 3, 1, 2)
    if needs.w:
        gw = w.new_empty(w.shape)
    found = []
    for grid, needed in ((x_grid, needs.x and needs.x_grid), (w_grid, needs.w and needs.w_grid)):
        scale = grid.scale
        found.append(scale.new_empty([1 if grid.low is None else 3, *scale.shape] if needed else 0))
    return gx, gw, *found


define(_FORWARD, _run_forward, _fake_forward)
define(_BACKWARD, _run_backward, _fake_backward, DRAWS)
