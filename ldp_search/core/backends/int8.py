"""Integer arithmetic: linear layers whose bits fit a byte run on 8-bit integer products, forward and both backward ones.

The results are those of `simulate` within the rounding of floating-point sums; nothing is approximated but by an option
that says so. What does not fit (`choice.misfit`), or is slower in integers, is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .. import fake_quantize as fq
from .. import saved
from ..quantizers import Grid
from ..registry import did_you_mean, register
from . import int8_products as integers
from . import residual
from .call import Call, compute_dtype
from .choice import Choices, misfit
from .simulate import Simulate

OPTIONS = {"choose": ("measure", "always", "never"), "keep": ("codes", "input"), "input_gradient": ("exact", "rounded")}


@register("backend", "int8")
@dataclass
class Int8:
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
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise ValueError(f"Unknown {name} {given!r} of the backend 'int8'.{did_you_mean(given, known)}")
        self.choices = Choices()

    def __copy__(self):
        return replace(self)  # what was measured belongs to one model

    def __call__(self, call: Call) -> Tensor:
        run = self.integers if self._in_integers(call) else Simulate()
        return run(call)

    def integers(self, call: Call) -> Tensor:
        """The product in integers, whatever is faster; it must fit."""
        saved.keep_exact(call.w)
        bits = call.site.bits.detach()
        number = 2 if self.input_gradient == "exact" else 1
        how = _How(call.product.transposed, call.grad_quantizer, compute_dtype(call.x), bits, number, self.keep == "codes")
        return _Linear.apply(call.x, call.w, call.bias, call.grad_bits, *call.x_grid, *call.w_grid, how)

    def _in_integers(self, call: Call) -> bool:
        if torch.compiler.is_compiling():
            return False
        reason = "backend.choose=never" if self.choose == "never" else misfit(call)
        if reason is None and self.choose == "measure":
            reason = self.choices.slower(call, {"integers": self.integers, "simulated": Simulate()})
        self.choices.note(call, reason)
        return reason is None

    def report(self, names: list[str]) -> str:
        """Which of the layers ran in integers, and why others did not."""
        return self.choices.report(names)

    def state_dict(self) -> dict:
        return self.choices.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.choices.load_state_dict(state)


class _How(NamedTuple):
    """bits: (3,) of weight, input and gradient. planes: of the weight in dL/dx. codes: kept for backward instead of x."""

    transposed: bool
    grad_quantizer: object
    dtype: torch.dtype
    bits: Tensor
    planes: int
    codes: bool


def _weight(w: Tensor, grid: Grid, transposed: bool) -> tuple[Tensor, Grid]:
    """Weight and grid as (outputs, inputs)."""
    return (w.t(), Grid(*(None if t is None else t.t() for t in grid))) if transposed else (w, grid)


class _Linear(torch.autograd.Function):
    """x, w -> Q(x) @ Q(w)^T + bias, as `simulate._Product` of a linear layer."""

    @staticmethod
    def forward(ctx, x, w, bias, grad_bits, *grids_and_how):
        *grids, how = grids_and_how
        x_grid, w_grid = Grid(*grids[:4]), Grid(*grids[4:])
        cells = how.codes and (ctx.needs_input_grad[4] or x_grid.low is not None)
        codes, packed = integers.quantize(x.reshape(-1, x.shape[-1]), x_grid, how.bits[1], cells)
        w_codes, _ = integers.quantize(*_weight(w, w_grid, how.transposed), how.bits[0])
        ctx.save_for_backward(None if how.codes else x, w, grad_bits, *grids, *(codes if how.codes else (None,) * 3), packed)
        ctx.how, ctx.shape, ctx.x_dtype, ctx.bias_dtype = how, x.shape, x.dtype, None if bias is None else bias.dtype
        y = integers.forward(codes, w_codes, bias, how.dtype)
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))  # a view could not be added to in place

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        x, w, grad_bits, *grids, values, scale, offset, packed = ctx.saved_tensors
        x_grid, w_grid, how, need = Grid(*grids[:4]), Grid(*grids[4:]), ctx.how, ctx.needs_input_grad
        x_bits, w_bits = need[4], need[8]
        need_x, need_w = need[0] or x_bits, need[1] or w_bits
        x2 = None if x is None else x.reshape(-1, x.shape[-1])
        codes = integers.Codes(values, scale, offset) if x is None else integers.quantize(x2, x_grid, how.bits[1])[0]
        w_q = fq.rounded(w, w_grid) if need_x or w_bits else None

        g = gy.reshape(-1, gy.shape[-1])
        gb = g.sum(0).to(ctx.bias_dtype) if need[2] else None
        gx, gw = _products(g, grad_bits, codes, w_q, how, need_x, need_w)
        grid_x = grid_w = (None, None, None)
        if need_x:
            gx, grid_x = _input_backward(gx, x2, codes, packed, x_grid, x_bits, ctx.x_dtype)
            gx = gx.view(ctx.shape)
        if need_w:
            gw, grid_w = fq.backward(gw.to(w.dtype), w, w_grid, w_bits, w_q)
        return gx, gw, gb, None, grid_x[0], None, *grid_x[1:], grid_w[0], None, *grid_w[1:], None


def _products(g, grad_bits, codes, w_q, how, need_x: bool, need_w: bool):
    """(dL/dx, dL/dw); None for the one that is not needed. A gradient in full precision meets floating-point operands."""
    w_rows = w_q.t() if how.transposed and w_q is not None else w_q
    gx = gw = None
    if grad_bits is None:
        gx = g.float() @ w_rows if need_x else None
        if need_w:
            x_q, g = codes.to_float(), g.float()
            gw = x_q.t() @ g if how.transposed else g.t() @ x_q
        return gx, gw
    g = integers.quantize_gradient(g, grad_bits, how.grad_quantizer)
    if need_x:
        gx = integers.input_gradient(g, w_rows, how.planes)
    if need_w:
        gw = integers.weight_gradient(g, codes, how.transposed)
    return gx, gw


def _input_backward(gx, x2, codes, packed, grid, need_grid: bool, dtype):
    """(dL/dx, gradients of the grid) from what was saved: x, or its codes and cells."""
    if x2 is None and not isinstance(gx, Tensor):
        return integers.input_backward(gx, codes, packed, grid, need_grid, dtype)
    gx = gx if isinstance(gx, Tensor) else gx.to_float()
    if x2 is not None:
        return fq.backward(gx.to(dtype), x2, grid, need_grid)
    gx, of_grid = residual.backward(gx, codes.values, packed, grid, need_grid)
    return gx.to(dtype), of_grid
