"""Learned dynamic precision: all bits of a training step under one price.

Every coordinate (the weights, the input, the gradient of a layer) does a damage D_i(b) to the loss by being rounded to b bits,
and every bit costs operations. The damages are measured while the network trains (`bits.damage`); the bits in force are those
that minimise

    sum of D_i(b_i)  +  price * C(b)

(`bits.least_damage`), at the price at which the rest of the run costs what is left to spend. So the budget is met, a bit goes
where it saves the most loss for its operations, and the schedule over time follows from what changes: the gradients of the
loss, and the learning rate, with which the noise of rounded gradients loses its weight and the forward bits gain theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...messages import check_choice
from ...registry import register
from ..reachable import about_equal
from ..within_limits import search_of
from .base import Policy
from .budget import STARTS, allocation_at_cost, check_shares, check_within, split_budget, start_at

SLACK = 0.015  # share of what is left to spend that the bits in force may miss it by; it is made up for later

LONGEST_WARM_UP = 0.2  # share of the run that a rising learning rate may hold the bits for


@register("policy", "learned")
@dataclass
class Learned(Policy):
    """Bits of least damage, within a budget (`target_cost`) or at a price (`cost_weight`).

    start: of the bits: low, middle, high, or target (about equal, at the target cost; the middle where there is none).
    warmup: share of the run in which they stay there; and as long as the learning rate rises, up to a fifth of the run and to
        half of what the budget allows.
    freeze: share of the run at its end in which they stay at what they are.
    every: share of the run between two decisions.
    inertia: bits by which the optimum must lie beyond the middle of two numbers for a change; changes disturb a training.
    weight_rate, input_rate, grad_rate: exchange rates of the three kinds of damage; 1 by theory.
    """

    start: str = "target"
    warmup: float = 0.02
    freeze: float = 0.1
    every: float = 0.01
    inertia: float = 0.25
    weight_rate: float = 1.0
    input_rate: float = 1.0
    grad_rate: float = 1.0
    needs_damage = True
    meets_target = True
    keeps_limits = True

    def __post_init__(self):
        check_choice("start", self.start, STARTS, "the policy 'learned'")
        for name, most in (("every", 0.5), ("inertia", 4)):
            check_within(name, getattr(self, name), 0, most)
        for name in ("weight_rate", "input_rate", "grad_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 (1 by theory); received {getattr(self, name)}.")
        check_shares(self.warmup, self.freeze)

    def begin(self):
        p = self.problem
        bits = start_at(p, self.start, "learned", 0.32)
        self.needs_loss = p.target_cost is None and p.cost_weight is not None
        if self.start == "target" and p.limits:
            bits, _ = about_equal(p, p.target_cost)
        elif self.start == "target" and p.target_cost is not None:
            bits, _ = allocation_at_cost(p, bits, p.target_cost)
        bits = p.in_force(bits)
        dearest = about_equal(p, None)[0] if p.limits else p.high  # step that the budgets of the final bits leave room for
        self._check_start(bits, dearest)
        self.state = {"bits": bits, "price": None, "loss": None, "decided": 0.0, "progress": 0.0, "plan": None, "prices": None}
        self.state["budgets"] = self._budgets()
        self.state["hold"] = min(LONGEST_WARM_UP, self._longest_hold(bits, dearest) / 2)
        return bits.clone()

    def _longest_hold(self, bits, dearest) -> float:
        """Share of the run in which the bits may stay as they are, after which the lowest, or dearest, just meet the budget."""
        p = self.problem
        if p.target_cost is None:
            return 1.0
        now = float(p.relative_cost(bits))
        end = float(p.relative_cost(p.low if now > p.target_cost else dearest))
        if abs(now - p.target_cost) < SLACK:
            return 1.0
        return 0.0 if end == now else max(0.0, (end - p.target_cost) / (end - now))

    def _check_start(self, bits, dearest) -> None:
        """Raises:
        ValueError: a warm-up at these bits leaves a rest that no bits can pay, or use up.
        """
        p = self.problem
        if p.target_cost is None or not p.counted:
            return
        first = self.warmup * float(p.relative_cost(bits))
        least, most = (first + (1 - self.warmup) * float(p.relative_cost(b)) for b in (p.low, dearest))
        if least > p.target_cost or p.target_cost > most + 1e-9:
            remedy = "a target_cost between them" if self.start == "target" else "start=target, or a shorter warmup"
            raise ValueError(
                f"target_cost={p.target_cost} cannot be met with start={self.start!r} and warmup={self.warmup}: the mean cost "
                f"of the run would lie between {least:.3f} and {most:.3f}. Take {remedy}."
            )

    def step(self, signals):
        s, p = self.state, self.problem
        if signals.loss is not None:
            loss = signals.loss.float()
            s["loss"] = loss if s["loss"] is None else torch.lerp(s["loss"], loss, 0.05)
        half_a_step, s["progress"] = (signals.progress - s["progress"]) / 2, signals.progress
        last = p.limits and signals.progress + 3 * half_a_step >= 1
        if s["plan"] is None and (last or signals.progress >= 1 - max(self.freeze, self.every)):
            s["plan"] = self._plan(signals)
        if s["plan"] is not None:
            return [bits for start, bits in s["plan"] if signals.progress >= start - half_a_step][-1]
        warm = signals.progress > self.warmup and (not signals.warming_up or signals.progress > s["hold"])
        if warm and signals.damage is not None and signals.progress >= s["decided"] + self.every - 1e-9:
            s["decided"] = signals.progress
            s["bits"] = self._decide(signals).to(p.low)
        return s["bits"]

    def load_state_dict(self, state):
        """What was planned for other budgets than these is planned anew."""
        super().load_state_dict(state)
        if self.state.get("budgets") != self._budgets():
            self.state |= {"budgets": self._budgets(), "plan": None, "price": None, "prices": None}

    def _budgets(self) -> list:
        p = self.problem
        return [p.target_cost, p.cost_weight, p.target_inference, p.target_size, p.target_latency]

    def _curves(self, signals):
        """Damages at the exchange rates of the kinds."""
        rates = torch.tensor([self.weight_rate, self.input_rate, self.grad_rate, self.grad_rate], dtype=torch.float64)
        curves = signals.damage()
        return curves * rates[: curves.shape[1], None]

    def _search(self, signals) -> Any:
        """A `LeastDamage`; where the final bits have budgets of their own, a `LeastDamageWithin`."""
        p = self.problem
        return search_of(p.to("cpu"), self._curves(signals), p.levels.cpu(), self.state.get("prices"))

    def _decide(self, signals):
        """The bits in force after the changes that pay."""
        s, p = self.state, self.problem
        if p.limits:
            return self._decide_within(signals)
        search, now = self._search(signals), self.state["bits"].cpu().double()
        if p.target_cost is None:
            s["price"] = self._weighted_price()
            return search.moved(s["price"], now, self.inertia).bits
        left = self._left(signals)
        _, _, s["price"] = search.around(left, now, s["price"])
        return search.towards(search.moved(s["price"], now, self.inertia).bits, left, SLACK, now).bits

    def _decide_within(self, signals):
        """As `_decide`. The budgets of the final bits hold for those in force too: bits that change late do harm."""
        s, search, now = self.state, self._search(signals), self.state["bits"].cpu().double()
        left = self._left(signals) if self.problem.target_cost is not None else None
        _, s["price"] = search.settle(left, now, self._weighted_price() if left is None else s["price"])
        s["prices"] = search.prices
        return search.towards(search.moved(s["price"], now, self.inertia).bits, left, SLACK, now).bits

    def _weighted_price(self) -> float:
        """Of the relative cost, in loss, as `cost_weight` sets it; 0 without one."""
        s, p = self.state, self.problem
        return p.cost_weight * float(s["loss"]) / float(p.relative_cost(s["bits"])) if p.cost_weight else 0.0

    def _left(self, signals) -> float:
        """Relative cost that the rest of the run may have on average."""
        return float((self.problem.target_cost - signals.spent) / max(1 - signals.progress, 1e-9))

    def _plan(self, signals):
        """[(progress from which on, bits)] of the rest: two neighbouring choices, each so long that the budget is met."""
        p, bits = self.problem, self.state["bits"]
        if p.limits:
            return self._plan_within(signals)
        if p.target_cost is None:
            return [(0.0, bits)]
        left = self._left(signals)
        below: Any
        above: Any
        if signals.damage is None:
            below, above = allocation_at_cost(p, bits, left)
        else:
            below, above, _ = self._search(signals).at_budget(left, bits.cpu().double(), self.state["price"])
            below, above = (choice.bits.to(p.low) for choice in (below, above))
        return split_budget(below, above, p, left, signals.progress)

    def _plan_within(self, signals):
        """As `_plan`; both choices keep the budgets of the final bits."""
        p, bits = self.problem, self.state["bits"].cpu().double()
        left = self._left(signals) if p.target_cost is not None else None
        if signals.damage is None:
            below, above = about_equal(p, left)
        else:
            price = self._weighted_price() if left is None else self.state["price"]
            below, above = (choice.bits.to(p.low) for choice in self._search(signals).at_budget(left, bits, price)[:2])
        return [(0.0, below)] if left is None else split_budget(below, above, p, left, signals.progress)
