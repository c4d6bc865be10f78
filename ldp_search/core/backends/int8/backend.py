"""Integer arithmetic: linear layers whose bits fit a byte run on 8-bit integer products, forward and both backward ones.

The results are those of `simulate` within the rounding of floating-point sums; nothing is approximated but by an option
that says so. What does not fit (`choice.misfit`), or is slower in integers, is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...messages import check_choice
from ...native.operators import exporting
from ...quantize.grid import Grid
from ...registry import register
from .. import saved_activations
from ..base import Backend
from ..call import Call, compute_dtype
from ..simulate import Simulate
from . import forward_backward, operators
from .choice import UNSETTLED, Choices, choose_while_compiling, misfit
from .forward_backward import How, Kept, Needs, Saved

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
        number, x_grid = 2 if self.input_gradient == "exact" else 1, call.x_grid
        clips = x_grid.low is not None and not call.straight[0]
        cells = self.keep == "codes" and torch.is_grad_enabled() and (x_grid.scale.requires_grad or clips)
        how = How(
            call.product, call.grad_quantizer, compute_dtype(call.x), number, self.keep == "codes", cells, call.straight
        )  # fmt: skip
        bits = call.site.bits.detach()
        return _Product.apply(call.x, call.w, call.bias, call.grad_bits, bits, *x_grid, *call.w_grid, how)

    def _in_integers(self, call: Call) -> bool:
        reason = "backend.choose=never" if self.choose == "never" else misfit(call)
        if torch.compiler.is_compiling():
            if exporting() or call.x.device.type != "cpu":
                return False
            if reason is None and not operators.supports(call.grad_quantizer, call.product, call.x):
                reason = "a gradient quantizer that torch.compile cannot be told of"
            full = call.grad_bits is None
            return choose_while_compiling(self.choices.number, call.site.name, reason, self.choose == "measure", full)
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


class _Product(torch.autograd.Function):
    """x, w -> Q(x) * Q(w) + bias, as `simulate._Product`. bits: of weight and input, and others."""

    @staticmethod
    def forward(ctx, x, w, bias, grad_bits, bits, *grids_and_how):
        *grids, how = grids_and_how
        run = operators if torch.compiler.is_compiling() else forward_backward
        y, kept = run.forward(x, w, bias, Grid(*grids[:4]), Grid(*grids[4:]), bits, how)
        ctx.save_for_backward(None if how.codes else x, w, grad_bits, bits, *grids, *kept)
        ctx.how, ctx.dtype, ctx.bias_dtype = how, x.dtype, None if bias is None else bias.dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        x, w, grad_bits, bits, *others = ctx.saved_tensors
        need, how = ctx.needs_input_grad, ctx.how  # x, w, bias, grad_bits, bits, then scale, offset, low, high of x and of w
        needs = Needs(need[0] or need[5], need[1] or need[9], need[5], need[9])
        x_grid, w_grid, kept = Grid(*others[:4]), Grid(*others[4:8]), Kept(*others[8:])
        saved = Saved(x, w, grad_bits, x_grid, w_grid, bits, kept, ctx.dtype)
        gb = how.product.bias_grad(gy).to(ctx.bias_dtype) if need[2] else None
        run = operators if torch.compiler.is_compiling() else forward_backward
        gx, gw, of_x, of_w = run.backward(gy, saved, how, needs)
        return gx, gw, gb, None, None, of_x[0], None, *of_x[1:], of_w[0], None, *of_w[1:], None
