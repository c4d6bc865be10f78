"""Static bits (SBM): the same for every layer and step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...registry import register
from .base import Schedule


@register("policy", "static")
@dataclass
class Static(Schedule):
    """`bits` of weights and inputs, within their ranges; None: the highest. Gradient bits at their highest."""

    bits: float | None = None

    def bits_at(self, progress):
        low, high = self.problem.low, self.problem.high
        if self.bits is None:
            return high.clone()
        bits = torch.minimum(torch.maximum(torch.full_like(high, self.bits), low), high)
        return torch.cat([bits[:, :2], high[:, 2:]], 1)
