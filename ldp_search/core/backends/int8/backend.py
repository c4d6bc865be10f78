"""Integer arithmetic: linear layers whose bits fit a byte run on 8-bit integer products, forward and both backward ones.

The results are those of `simulate` within the rounding of floating-point sums; nothing is approximated but by an option
that says so. What does not fit (`choice.misfit`), or is slower in integers, is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...messages import check_choice
from ...products import bilinear
from ...products.bilinear import LinearProduct, Product
from ...quantize import fake_quantize as fq
from ...quantize.gradient_quantizers import GradQuantizer
from ...quantize.grid import Grid
from ...registry import register
from .. import saved_activations
from ..base import Backend
from ..call import Call, compute_dtype, each_product
from ..simulate import Simulate
from . import convolution as convolutions
from . import matmul as integers
from . import rounding_error
from .choice import UNSETTLED, Choices, misfit

OPTIONS = {"choose": ("measure", "always", "never"), "keep": ("codes", "input"), "input_gradient": ("exact", "rounded")}


@register("backend", "int8")
@dataclass
class Int8(Backend):
    """Products of 8-bit integers where they fit and are faster, on CPUs with VNNI and on CUDA; else as `simulate`.

    choose: integers where a measurement at the first calls finds them faster, wherever they fit (always), or never.
    keep: what is kept of an input for backward: its codes and four bits of rounding error an element, or itself.
    input_gradient: of a weight on its exact grid, or on one of 8 bits for all channels, in half the time.
    """

    choose: str = "measure"
    keep: str = "codes"
    input_gradient: str = "exact"

    def __post_init__(self):
        for name, known in OPTIONS.items():
            check_choice(name, getattr(self, name), known, "the backend 'int8'")
        self.choices = Choices()

    def __copy__(self):
        return replace(self)  # what was measured belongs to one model

    def __call__(self, call: Call) -> Tensor:
        run = self.integers if self._in_integers(call) else Simulate()
        return run(call)

    def integers(self, call: Call) -> Tensor:
        """The product in integers, whatever is faster; it must fit."""
        saved_activations.keep_exact(call.w)
        bits = call.site.bits.detach()
        number = 2 if self.input_gradient == "exact" else 1
        how = _How(
            call.product, call.grad_quantizer, compute_dtype(call.x), bits, number, self.keep == "codes", call.straight
        )  # fmt: skip
        function = _Linear if isinstance(call.product, LinearProduct) else _Convolution
        return function.apply(call.x, call.w, call.bias, call.grad_bits, *call.x_grid, *call.w_grid, how)

    def _in_integers(self, call: Call) -> bool:
        if torch.compiler.is_compiling():
            return False
        reason = "backend.choose=never" if self.choose == "never" else misfit(call)
        if reason is None and self.choose == "measure":
            reason = self.choices.slower(call, {"integers": self.integers, "simulated": Simulate()})
            if reason == UNSETTLED:
                return False
        self.choices.note(call, reason)
        return reason is None

    def proposals(self) -> dict[str, list[float]]:
        """What this process measured and the others have not agreed on."""
        return self.choices.proposed

    def agree(self, proposals: list[dict[str, list[float]]]) -> None:
        """Take over what all processes proposed, listed by rank."""
        self.choices.agree(proposals)

    def report(self, names: list[str]) -> str:
        """Which of the layers ran in integers, and why others did not."""
        return self.choices.report(names)

    def state_dict(self) -> dict:
        return self.choices.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.choices.load_state_dict(state)


class _How(NamedTuple):
    """bits: (3,) of weight, input and gradient, or (4,). planes: of the weight in dL/dx. codes: kept for backward instead of x.

    straight: of x and of w: the gradient of clipped values passes too.
    """

    product: Product
    grad_quantizer: GradQuantizer
    dtype: torch.dtype
    bits: Tensor
    planes: int
    codes: bool
    straight: tuple[bool, bool]

    def cells(self, need_grid: bool, grid: Grid) -> bool:
        """Whether backward asks where each input lay between two codes, or beyond them."""
        return self.codes and (need_grid or (grid.low is not None and not self.straight[0]))


def _weight(w: Tensor, grid: Grid, transposed: bool) -> tuple[Tensor, Grid]:
    """Weight and grid as (outputs, inputs)."""
    return (w.t(), grid.map(Tensor.t)) if transposed else (w, grid)


class _Saved(NamedTuple):
    """What a backward begins with. x: as the integer product takes it, None where its codes were kept instead."""

    x: Tensor | None
    w: Tensor
    grad_bits: Tensor | None
    x_grid: Grid
    w_grid: Grid
    codes: integers.Codes
    packed: Tensor | None
    w_q: Tensor | None
    need_x: bool
    need_w: bool


def _recall(ctx, arrange) -> _Saved:
    """The tensors of `forward`, with x arranged as there, and the weight rounded again."""
    x, w, grad_bits, *grids, values, scale, offset, packed = ctx.saved_tensors
    x_grid, w_grid, need = Grid(*grids[:4]), Grid(*grids[4:]), ctx.needs_input_grad
    need_x, need_w = need[0] or need[4], need[1] or need[8]
    x = None if x is None else arrange(x)
    codes = integers.Codes(values, scale, offset) if x is None else integers.quantize(x, x_grid, ctx.how.bits[1])[0]
    w_q = fq.rounded(w, w_grid) if need_x or need[8] else None
    return _Saved(x, w, grad_bits, x_grid, w_grid, codes, packed, w_q, need_x, need_w)


def _gradients(ctx, s: _Saved, gx, grid_x: tuple, gw, gb) -> tuple:
    """What backward returns, in the order of what forward took."""
    grid_w = (None, None, None)
    if s.need_w:
        gw, grid_w = fq.backward(gw.to(s.w.dtype), s.w, s.w_grid, ctx.needs_input_grad[8], s.w_q, ctx.how.straight[1])
    return gx, gw, gb, None, grid_x[0], None, *grid_x[1:], grid_w[0], None, *grid_w[1:], None


class _Linear(torch.autograd.Function):
    """x, w -> Q(x) @ Q(w)^T + bias, as `simulate._Product` of a linear layer."""

    @staticmethod
    def forward(ctx, x, w, bias, grad_bits, *grids_and_how):
        *grids, how = grids_and_how
        x_grid, w_grid = Grid(*grids[:4]), Grid(*grids[4:])
        cells = how.cells(ctx.needs_input_grad[4], x_grid)
        codes, packed = integers.quantize(x.reshape(-1, x.shape[-1]), x_grid, how.bits[1], cells)
        w_codes, _ = integers.quantize(*_weight(w, w_grid, how.product.transposed), how.bits[0])
        ctx.save_for_backward(None if how.codes else x, w, grad_bits, *grids, *(codes if how.codes else (None,) * 3), packed)
        ctx.how, ctx.shape, ctx.x_dtype, ctx.bias_dtype = how, x.shape, x.dtype, None if bias is None else bias.dtype
        y = integers.forward(codes, w_codes, bias, how.dtype)
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))  # a view could not be added to in place

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        s = _recall(ctx, lambda x: x.reshape(-1, x.shape[-1]))
        gb = ctx.how.product.bias_grad(gy).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        gx, gw = _products(gy, s.grad_bits, s.codes, s.w_q, ctx.how, s.need_x, s.need_w)
        grid_x = (None, None, None)
        if s.need_x:
            gx, grid_x = _input_backward(ctx, gx, s.x, s.codes, s)
            gx = gx.view(ctx.shape)
        return _gradients(ctx, s, gx, grid_x, gw, gb)


def _products(gy, grad_bits, codes, w_q, how, need_x: bool, need_w: bool):
    """(dL/dx, dL/dw) of a linear layer; None for the one that is not needed.

    In floating point where the gradient is in full precision, or has scales that differ along what the product sums over.
    """
    transposed, gx, gw = how.product.transposed, None, None
    w_rows = w_q.t() if transposed and w_q is not None else w_q
    if grad_bits is None:
        g_x = g_w = gy.reshape(-1, gy.shape[-1]).float()
    else:
        g_x, g_w = _codes(how, gy, grad_bits, need_x, need_w)
    if need_x:
        exact = grad_bits is not None and not g_x.by_column
        gx = integers.input_gradient(g_x, w_rows, how.planes) if exact else _values(g_x) @ w_rows
    if need_w and grad_bits is not None and not g_w.by_row:
        gw = integers.weight_gradient(g_w, codes, transposed)
    elif need_w:
        x_q, g = codes.to_float(), _values(g_w)
        gw = x_q.t() @ g if transposed else g.t() @ x_q
    return gx, gw


def _codes(how, gy: Tensor, grad_bits: Tensor, need_x: bool, need_w: bool) -> tuple:
    """The gradients for dL/dx and dL/dw in codes, channels last; None for the one that is not needed."""
    asked = (bits if needed else None for bits, needed in zip(each_product(grad_bits), (need_x, need_w), strict=True))
    g_x, g_w = how.grad_quantizer.pair_codes(gy, *asked, how.product.channel_dim)
    arrange = convolutions.channels_last if how.product.spatial_dims else integers.as_matrix
    one = None if g_x is None else arrange(g_x)
    return one, one if g_w is g_x else None if g_w is None else arrange(g_w)


def _values(g) -> Tensor:
    """A gradient in fp32, from its codes where it comes in codes."""
    return g if isinstance(g, Tensor) else g.to_float()


def _input_backward(ctx, gx, x2, codes, s: _Saved):
    """(dL/dx, gradients of the grid) from what was saved: x, or its codes and cells."""
    grid, need_grid, dtype = s.x_grid, ctx.needs_input_grad[4], ctx.x_dtype
    if not (ctx.how.straight[0] and grid.low is not None):
        return _masked_backward(gx, x2, codes, s.packed, grid, need_grid, dtype)
    of_grid = (None, None, None)
    if need_grid:
        gx = gx if isinstance(gx, Tensor) else gx.to_float()
        of_grid = _masked_backward(gx.clone(), x2, codes, s.packed, grid, True, dtype)[1]
    return _masked_backward(gx, x2, codes, None, grid._replace(low=None, high=None), False, dtype)[0], of_grid


def _masked_backward(gx, x2, codes, packed, grid, need_grid: bool, dtype):
    """The same where no gradient passes a value that is clipped."""
    if x2 is None and not isinstance(gx, Tensor):
        return integers.input_backward(gx, codes, packed, grid, need_grid, dtype)
    gx = gx if isinstance(gx, Tensor) else gx.to_float()
    if x2 is not None:
        return fq.backward(gx.to(dtype), x2, grid, need_grid)
    gx, of_grid = rounding_error.backward(gx, codes.values, packed, grid, need_grid)
    return gx.to(dtype), of_grid


class _Convolution(torch.autograd.Function):
    """x, w -> Q(x) * Q(w) + bias of a two-dimensional convolution; tensors are worked on with their channels last."""

    @staticmethod
    def forward(ctx, x, w, bias, grad_bits, *grids_and_how):
        *grids, how = grids_and_how
        x_grid, w_grid = Grid(*grids[:4]), Grid(*grids[4:])
        cells = how.cells(ctx.needs_input_grad[4], x_grid)
        codes, packed = integers.quantize(x.permute(0, 2, 3, 1).contiguous(), x_grid, how.bits[1], cells)
        rows = w.permute(0, 2, 3, 1).reshape(len(w), -1)
        w_codes, _ = integers.quantize(rows, w_grid.map(lambda t: t.view(-1, 1)), how.bits[0])
        ctx.save_for_backward(None if how.codes else x, w, grad_bits, *grids, *(codes if how.codes else (None,) * 3), packed)
        ctx.how, ctx.x_dtype, ctx.bias_dtype = how, x.dtype, None if bias is None else bias.dtype
        y = convolutions.forward(codes, w_codes, bias, how.product, tuple(w.shape[2:]), how.dtype)
        return _last_to_first(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        s = _recall(ctx, lambda x: x.permute(0, 2, 3, 1).contiguous())
        g = gy.contiguous(memory_format=torch.channels_last)
        gb = ctx.how.product.bias_grad(g).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        w_q = s.w.float() if s.w_q is None else s.w_q  # where dL/dw alone is asked for, its shape serves
        kernel = tuple(s.w.shape[2:])
        gx, gw = _convolution_products(g, s.grad_bits, s.codes, w_q, ctx.how, kernel, s.need_x, s.need_w)
        grid_x = (None, None, None)
        if s.need_x:
            flat = None if s.x is None else s.x.view(-1, s.x.shape[-1])
            shape, codes = s.codes.values.shape, s.codes._replace(values=s.codes.values.view(-1, s.codes.values.shape[-1]))
            gx, grid_x = _input_backward(ctx, gx, flat, codes, s)
            gx = _last_to_first(gx.view(shape))
        return _gradients(ctx, s, gx, grid_x, gw, gb)


def _last_to_first(y: Tensor) -> Tensor:
    """(samples, channels, height, width) in the memory of (samples, height, width, channels), and no view of it."""
    shape = len(y), y.shape[3], *y.shape[1:3]
    return torch.empty(0, dtype=y.dtype, device=y.device).set_(y.untyped_storage(), 0, shape, y.permute(0, 3, 1, 2).stride())


def _convolution_products(gy, grad_bits, codes, w_q, how, kernel, need_x: bool, need_w: bool):
    """(dL/dx as (places, channels), dL/dw), in floating point where `_products` says so, and dL/dx of a stride."""
    gx, gw, full = None, None, grad_bits is None
    g_x, g_w = (gy, gy) if full else _codes(how, gy, grad_bits, need_x, need_w)
    if need_w and not full and not g_w.by_row:
        gw = convolutions.weight_gradient(g_w, codes, how.product, kernel)
        gw = gw.view(len(gw), *kernel, -1).permute(0, 3, 1, 2).contiguous()
    if need_x and not full and convolutions.turns(how.product, kernel) and g_x.scale.numel() in (1, len(g_x.values)):
        gx = convolutions.input_gradient(g_x, w_q, how.product, how.planes)
    missing = need_x and gx is None, need_w and gw is None
    if any(missing):
        x_q = codes.to_float().permute(0, 3, 1, 2)
        g_x, g_w = _channels_first(g_x, full), _channels_first(g_w, full)
        gx_float, gw_float = bilinear.backward(how.product, g_x, g_w, x_q, w_q, *missing)
        gw = gw if gw_float is None else gw_float
        gx = gx if gx_float is None else gx_float.permute(0, 2, 3, 1).reshape(-1, x_q.shape[1])
    return gx, gw


def _channels_first(g: Any, full: bool) -> Any:
    """A gradient in fp32, full as it came, else from codes with their channels last; None where it is not needed."""
    return g.float() if full else None if g is None else g.to_float().permute(0, 3, 1, 2)
