"""The formulas, left to autograd: slow, readable, what the tests compare the other backends with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..quantize import fake_quantize as fq
from ..registry import register
from .call import Call, finish


@register("backend", "reference")
@dataclass
class Reference:
    """The formulas, left to autograd: one line each. What the tests compare the others with."""

    def __call__(self, call: Call) -> Tensor:
        return finish(call, fq.reference(call.x, call.x_grid), fq.reference(call.w, call.w_grid))
