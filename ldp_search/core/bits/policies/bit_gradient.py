"""Bits that follow the gradient of the task loss with respect to them, against the price of their cost.

Rounding to b bits makes an error e that halves with each bit, so the loss it costs, to second order e'He/2, falls as
4^-b. The gradient that training sees, dL/db = -ln2 * 2^b/(2^b-1) * sum(g * e), is that signal plus noise. Per coordinate we
track its scale, nearly free of the bits of the moment, s = E[(dL/db)^2] * 4^b (the Fisher form of e'He), and move the bits
towards the point where what another bit gains is what it costs:

    s * 4^-b = price * dC/db      =>      b* = log2(s / (price * dC/db)) / 2            (Newton's step in the log domain)

`price` is the multiplier of the budget: after every step it is corrected by the dual update that brings the cost to what
is left to spend on the rest of the run, so the mean training cost over the run ends on the target; all bits move with it at
once. How fast it follows (`dual_rate`) decides how far the cost may wander in time: 1 holds it level, less lets the gradients
choose when to spend, and a very small one may not get back to the target before the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...messages import check_choice
from ...registry import register
from .base import Policy
from .budget import STARTS, allocation_at_cost, check_shares, check_within, split_budget, start_at

LARGEST_MOVE = 0.25  # bits that the price may move all bits in one step
SMALLEST = 1e-30  # of a gradient, inside a logarithm


@register("policy", "bit_gradient")
@dataclass
class BitGradient(Policy):
    """Bits follow their sensitivity against the price of their cost, to a budget (`target_cost`) or at a `cost_weight`.

    Options: `start` of the bits (low, middle, high, or target: all equal at the target cost); `warmup` and `freeze`, the
    shares of the run at its two ends in which the bits stay; `lr`, the share of the way to b* that a step goes; `smoothing`
    of the gradients' scale; `hysteresis` in bits; `dual_rate` as above; `signal`: rms (the Fisher form) or mean (E[-dL/db],
    always used with a cost weight, whose unit is the loss).
    """

    start: str = "target"
    warmup: float = 0.02
    freeze: float = 0.1
    lr: float = 0.05
    smoothing: float = 0.98
    hysteresis: float = 0.1
    dual_rate: float = 1.0
    signal: str = "rms"
    needs_gradients = True
    meets_target = True
    takes_containers = False

    def __post_init__(self):
        check_choice("start", self.start, STARTS, "the policy 'bit_gradient'")
        check_choice("signal", self.signal, ["rms", "mean"], "the policy 'bit_gradient'")
        for name, least, most in (("lr", 1e-6, 1), ("smoothing", 0, 0.9999), ("dual_rate", 0, 1), ("hysteresis", 0, 0.49)):
            check_within(name, getattr(self, name), least, most)
        check_shares(self.warmup, self.freeze)

    def begin(self):
        p = self.problem
        bits = start_at(p, self.start, "bit_gradient", 0.5)
        self.needs_loss = p.target_cost is None
        self.state = {
            "bits": p.mean(bits),  # real-valued, one a group
            "scale": torch.zeros(p.groups, device=bits.device),  # s times `mass`
            "mass": 0.0,  # bias correction of the smoothing
            "shift": None,  # -log2(price) / 2, in bits
            "plan": None,  # of the frozen last part: [(progress from which on, bits)]
        }
        return bits

    def step(self, signals):
        if self.state["plan"] is None:
            self._sense(signals)
            if signals.progress >= 1 - self.freeze:
                self._freeze(signals)
            elif signals.progress > self.warmup:
                self._move(signals)
        if self.state["plan"] is not None:
            return [bits for start, bits in self.state["plan"] if signals.progress >= start - 1e-9][-1]
        return self.problem.spread(self.state["bits"])

    def _sense(self, signals) -> None:
        """Track s of each group: the scale of its bit gradient, extrapolated to 0 bits."""
        s, p = self.state, self.problem
        grads = p.pool(signals.grads)
        sample = grads.square() if self.signal == "rms" and p.target_cost is not None else -grads
        s["scale"] = s["scale"].lerp(sample * torch.exp2(2 * p.mean(signals.bits)), 1 - self.smoothing)
        s["mass"] = s["mass"] * self.smoothing + 1 - self.smoothing

    def _move(self, signals) -> None:
        """One step towards b*."""
        s, p = self.state, self.problem
        bits = p.spread(s["bits"])
        low, high = p.mean(p.low), p.mean(p.high)
        price = p.pool(p.cost_gradient(bits)).float().clamp_min(SMALLEST)
        best = torch.log2((s["scale"] / s["mass"]).clamp_min(SMALLEST) / price) / 2
        if p.target_cost is None:
            price_of_loss = p.cost_weight * signals.loss.float().clamp_min(SMALLEST) / p.relative_cost(bits).float()
            s["shift"] = -torch.log2(price_of_loss) / 2
        elif s["shift"] is None:
            s["shift"] = (s["bits"] - best).median()  # not the mean: a layer without gradient has its best at minus infinity
        best = torch.minimum(torch.maximum(best + s["shift"], low - 1), high + 1)
        s["bits"] = torch.minimum(torch.maximum(s["bits"].lerp(best, self.lr), low), high)
        if p.target_cost is not None:
            self._correct_price(signals.progress, signals.spent, low, high)

    def _correct_price(self, progress: float, spent, low, high) -> None:
        """Dual update, by Newton: the price at which the rest of the run costs what is left to spend."""
        s, p = self.state, self.problem
        bits = p.spread(s["bits"])
        gap = (p.target_cost - spent) / (1 - progress) - p.relative_cost(bits)
        slopes = p.pool(p.cost_gradient(bits))
        free = torch.where(gap > 0, s["bits"] < high, s["bits"] > low)  # the others are at their end and cannot follow
        slope = torch.where(free, slopes, 0).sum().clamp_min(SMALLEST)
        move = (self.dual_rate * gap / slope).clamp(-LARGEST_MOVE, LARGEST_MOVE).float()
        s["shift"] = s["shift"] + move
        s["bits"] = torch.minimum(torch.maximum(s["bits"] + move, low), high)

    def _freeze(self, signals) -> None:
        """Integers for the rest of the run: two neighbouring allocations, so long each that the budget is met to one step."""
        p, bits = self.problem, self.problem.spread(self.state["bits"])
        if p.target_cost is None:
            self.state["plan"] = [(0.0, torch.round(bits))]
            return
        left = float((p.target_cost - signals.spent) / (1 - signals.progress))
        below, above = allocation_at_cost(p, bits, left)
        self.state["plan"] = split_budget(below, above, p, left, signals.progress)
