"""What a policy is: the rule that gives the real-valued bits of every coordinate over the training."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from ...registry import Component
from ..problem import Problem, Signals


class Policy(Component, kind="policy"):
    """Base. A policy is a registered dataclass; its fields are its options, `self.state` its memory (tensors and numbers).

    needs_gradients, needs_loss, needs_damage: what `Signals` must carry. hysteresis: how far past k + 0.5 bits must go to flip.
    meets_target: it ends on the space's target cost, which must then be within reach. keeps_limits: on the budgets of the final
    bits too. takes_containers: it means the same when its weight and input bits are rounded up to the next container.
    """

    needs_gradients = False
    needs_loss = False
    needs_damage = False
    meets_target = False
    keeps_limits = False
    takes_containers = True
    hysteresis = 0.0
    problem: Problem
    state: dict[str, Any]

    def bind(self, problem: Problem) -> Tensor:
        """Set up for a network; returns the bits (layers, kinds) at progress 0."""
        self.problem, self.state = problem, {}
        return self.begin()

    @abstractmethod
    def begin(self) -> Tensor:
        """Bits (layers, kinds) at progress 0, real-valued; kinds: weight, input, grad, and weight_grad where split."""

    @abstractmethod
    def step(self, signals: Signals) -> Tensor:
        """Bits (layers, kinds) for the next step."""

    def to(self, device) -> None:
        self.problem = self.problem.to(device)
        self.state = _map(self.state, lambda t: t.to(device))

    def state_dict(self) -> dict:
        return _map(self.state, lambda t: t.detach().cpu().clone())

    def load_state_dict(self, state: dict) -> None:
        self.state = _map(state, lambda t: t.to(self.problem.low.device, copy=True))


def _map(value, f):
    """`value` with `f` applied to every tensor in its dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, dict):
        return {k: _map(v, f) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(v, f) for v in value)
    return value


class Schedule(Policy):
    """A hand-made rule of progress alone: `fraction` of the way from the lowest to the highest bits."""

    @abstractmethod
    def fraction(self, progress: float) -> float:
        """0: the lowest bits, 1: the highest."""

    def begin(self) -> Tensor:
        return self._bits_at(0.0)

    def step(self, signals: Signals) -> Tensor:
        return self._bits_at(signals.progress)

    def _bits_at(self, progress: float) -> Tensor:
        low, high = self.problem.low, self.problem.high
        return low + (high - low) * self.fraction(progress)
