"""The formulas, left to autograd: slow, readable, what the tests compare the other backends with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..quantize import fake_quantize as fq
from ..registry import register
from .base import Backend
from .call import Call, finish


@register("backend", "reference")
@dataclass
class Reference(Backend):
    """The formulas, left to autograd: one line each. What the tests compare the others with."""

    def __call__(self, call: Call) -> Tensor:
        x_straight, w_straight = call.straight
        return finish(call, fq.reference(call.x, call.x_grid, x_straight), fq.reference(call.w, call.w_grid, w_straight))


def under_transform(call: Call) -> Tensor:
    """The product within a transform of torch.func, which takes formulas alone. Without gradient no gradient is quantized; with
    it torch says that the rounding of gradients has no rule for transforms.
    """
    return Reference()(call if torch.is_grad_enabled() else call._replace(grad_bits=None))
