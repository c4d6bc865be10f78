"""The LDP paper's own update: one scalar p a layer, SGD on the raw gradient, a force from the cost (arXiv:2203.07713)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...registry import register
from .base import Policy


@register("policy", "ldp_sgd")
@dataclass
class LdpSgd(Policy):
    """b = round(p (b_max - b_min) + b_min), p in [0, 1] from `start`; p -= lr * (dL/dp + force), then projected back.

    force = cost weight * the layer's share of the cost * smoothed mean |dL/dp|; it acts only while the cost is above the
    target (a one-sided hinge, so a target is approached, not met). Plain SGD: no momentum, no weight decay, constant lr.
    """

    start: float = 0.0
    lr: float = 1.0
    smoothing: float = 0.9
    needs_gradients = True

    def __post_init__(self):
        if not (0 <= self.start <= 1 and self.lr > 0 and 0 <= self.smoothing < 1):
            raise ValueError(
                f"The policy 'ldp_sgd' needs 0 <= start <= 1, lr > 0 and 0 <= smoothing < 1; received {self.start}, {self.lr} "
                f"and {self.smoothing}."
            )

    def begin(self):
        p = self.problem
        made: Any = {"dtype": torch.float32, "device": p.low.device}
        self.state = {"p": torch.full((p.groups,), float(self.start), **made), "size": torch.zeros((), **made), "mass": 0.0}
        return self._bits()

    def _bits(self):
        p = self.problem
        low, high = p.mean(p.low), p.mean(p.high)
        return p.spread(low + (high - low) * self.state["p"])

    def step(self, signals):
        s, p = self.state, self.problem
        gradient = p.pool(signals.grads * (p.high - p.low))
        s["size"] = s["size"].lerp(gradient.abs().mean(), 1 - self.smoothing)
        s["mass"] = s["mass"] * self.smoothing + 1 - self.smoothing
        cost = p.relative_cost(signals.bits)
        share = p.pool(p.cost_gradient(signals.bits)).float()
        share = share / share.sum()
        force = (p.cost_weight if p.cost_weight is not None else 1.0) * p.groups * share * s["size"] / s["mass"]
        if p.target_cost is not None:
            force = torch.where(cost > p.target_cost, force, 0)
        s["p"] = (s["p"] - self.lr * (gradient + force)).clamp(0, 1)
        return self._bits()
