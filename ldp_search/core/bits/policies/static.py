"""Static bits (SBM): the same for every layer and step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...registry import register
from .base import Policy


@register("policy", "static")
@dataclass
class Static(Policy):
    """`bits` of weights and inputs, within their ranges; None: the highest. Gradient bits at their highest."""

    bits: float | None = None

    def begin(self):
        low, high = self.problem.low, self.problem.high
        if self.bits is None:
            return high.clone()
        bits = torch.minimum(torch.maximum(torch.full_like(high, self.bits), low), high)
        return torch.cat([bits[:, :2], high[:, 2:]], 1)

    def step(self, signals):
        return self.begin()
