"""Meeting a budget with integer bits, to the resolution of one step: shared by the policies that have one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem

TIE = 1e-8
"""Of `Problem.apart`, between equal bits. It is less than lies between two fp32 numbers of bits that differ."""
ROUNDING = 1e-9
"""Of progress. A part of a plan that is to begin with a step would otherwise begin one step late."""
STARTS = {"low": 0.0, "middle": 0.5, "high": 1.0, "target": 0.5}
"""Where the bits may begin -> how far from the lowest to the highest; those of `target` are then moved to the budget."""


class TargetOutOfReach(ValueError):
    """Even the lowest bits cost more than the target."""

    def of_space(self, name: str, none: str = "None") -> TargetOutOfReach:
        """The same of a target that nobody gave: it came with the space. none: how no target is written."""
        hint = f"This target is that of the space {name!r}; target_cost={none} with policy='static' holds the highest bits, "
        return TargetOutOfReach(f"{self} {hint}without a budget.")


def shift_to_cost(problem: Problem, bits: Tensor, target: float, halvings: int = 40) -> Tensor:
    """The shift (0-d) that moves all searched bits (layers, kinds) together so that the real-valued cost is `target`."""
    span = float((problem.high - problem.low).max()) + 1
    low = torch.full((), -span, dtype=torch.float64, device=bits.device)
    high = -low
    for _ in range(halvings):
        middle = (low + high) / 2
        above = problem.relative_cost(clamp(problem, bits + middle)) > target
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def check_shares(warmup: float, freeze: float) -> None:
    """ValueError where the first and the last part of a run, in which the bits are kept, are none."""
    if min(warmup, freeze) < 0 or warmup + freeze > 1:
        raise ValueError(f"warmup and freeze are shares of the run, together <= 1; received {warmup}, {freeze}.")


def check_within(name: str, value: float, least: float, most: float) -> None:
    """ValueError where an option is outside of its range."""
    if not least <= value <= most:
        raise ValueError(f"{name} must be within {least} and {most}; received {value}.")


def start_at(problem: Problem, start: str, policy: str, usual: float) -> Tensor:
    """The real-valued bits that a search begins with. start: one of STARTS. usual: a budget, for the message.

    Raises:
        ValueError: the space has neither a budget nor a weight of the cost.
    """
    if problem.target_cost is None and problem.cost_weight is None and not problem.limits:
        others = ", target_inference=..., target_size=..., target_latency=..." if policy == "learned" else ""
        raise ValueError(
            f"The policy {policy!r} needs target_cost=... (a budget, e.g. {usual}){others} or cost_weight=...: without a price "
            "every layer ends at its highest bits."
        )
    bits = problem.low + (problem.high - problem.low) * STARTS[start]
    if start == "target" and problem.target_cost is not None:
        bits = clamp(problem, bits + shift_to_cost(problem, bits, problem.target_cost).to(bits.dtype))
    return bits


def check_reachable(problem: Problem) -> None:
    """Raises TargetOutOfReach where even the lowest bits cost more than the target."""
    lowest = float(problem.relative_cost(problem.low))
    if problem.target_cost is not None and problem.target_cost < lowest:
        raise TargetOutOfReach(
            f"target_cost={problem.target_cost} cannot be met: the lowest bits everywhere cost {lowest:.3f} of the highest. "
            "Raise target_cost, widen `bits` downwards, or keep fewer layers out (`skip`, `fixed`)."
        )


def clamp(problem: Problem, bits: Tensor) -> Tensor:
    """`bits` within the ranges of their coordinates."""
    return torch.minimum(torch.maximum(bits, problem.low), problem.high)


def allocation_at_cost(problem: Problem, bits: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """The two neighbouring integer allocations, (layers, kinds), whose costs enclose `target`: at most it, and at least it.

    Integer allocations are those that rounding gives as all real-valued bits move together, so neighbours differ in the
    group whose fraction comes next; of equal fractions one after the other. Where even the lowest bits cost more, or the
    highest less, both are that one.
    """
    lower, upper = -20.0, 20.0
    real = bits.double() + TIE * problem.apart
    rounded = lambda shift: problem.in_force(clamp(problem, torch.round(real + shift))).to(bits.dtype)  # noqa: E731
    for _ in range(60):
        middle = (lower + upper) / 2
        if float(problem.relative_cost(rounded(middle))) <= target:
            lower = middle
        else:
            upper = middle
    return rounded(lower), rounded(upper)


def plan_at(plan: list[tuple[float, Tensor]], progress: float) -> Tensor:
    """The bits of the last part of a plan that has begun. Progress is a sum of steps: it may fall short by its last digits."""
    return [bits for start, bits in plan if progress >= start - ROUNDING][-1]


def split_budget(below: Tensor, above: Tensor, problem: Problem, target: float, start: float = 0.0):
    """[(progress at which it begins, bits)]: `below`, then `above`: the mean cost from `start` to the end is `target`."""
    low, high = float(problem.relative_cost(below)), float(problem.relative_cost(above))
    if high <= low or target <= low:
        return [(start, below)]
    if target >= high:
        return [(start, above)]
    return [(start, below), (1 - (1 - start) * (target - low) / (high - low), above)]
