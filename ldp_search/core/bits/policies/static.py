"""Static bits (SBM): the same for every layer and step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...registry import register
from .base import Policy


@register("policy", "static")
@dataclass
class Static(Policy):
    """bits: of weights and inputs, within their ranges; None: the highest. grad_bits: of gradients, the same."""

    bits: float | None = None
    grad_bits: float | None = None

    def begin(self):
        low, high = self.problem.low, self.problem.high
        wanted = high.clone()
        for given, columns in ((self.bits, slice(0, 2)), (self.grad_bits, slice(2, None))):
            if given is not None:
                wanted[:, columns] = given
        return torch.minimum(torch.maximum(wanted, low), high)

    def step(self, signals):
        return self.begin()
