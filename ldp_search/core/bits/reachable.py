"""Whether the budgets can be met together, and bits that meet them while nothing is measured: all about equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .limits import WITHIN, Limit
from .problem import Problem
from .within_limits import LeastDamageWithin


def about_equal(problem: Problem, budget: float | None) -> tuple[Tensor, Tensor]:
    """Two neighbouring allocations (layers, kinds) within every budget, their bits about equal, their costs around `budget`.

    budget: of the training; None: all that the limits leave room for.
    """
    held = problem.to("cpu")
    below, above, _ = LeastDamageWithin(held, _neutral(held), held.levels).at_budget(budget, held.low)
    return below.bits.to(problem.low), above.bits.to(problem.low)


def check_limits(problem: Problem) -> None:
    """Raises:
    ValueError: the lowest bits exceed a limit, or within the limits no training costs as much as its target.
    """
    for limit in problem.limits:
        if (share := _least(problem, limit)) > WITHIN:
            raise ValueError(
                f"{limit.name}={limit.most} cannot be met: {limit.least_at} take {limit.most * share:.3g} {limit.unit}. "
                f"Raise {limit.name}, widen `bits` downwards, or keep fewer layers out (`skip`, `fixed`)."
            )
    if not problem.limits:
        return
    most = about_equal(problem, None)[0]
    for limit in problem.limits:
        if (share := limit.share(most)) > WITHIN:
            others = " and ".join(f"{other.name}={other.most}" for other in problem.limits if other is not limit)
            raise ValueError(
                f"{limit.name}={limit.most} cannot be met{f' together with {others}' if others else ''}: what was found takes "
                f"{limit.most * share:.3g} {limit.unit}. Allow the final bits more."
            )
    if problem.target_cost is None:
        return
    dearest = float(problem.relative_cost(most))
    if problem.target_cost > dearest * WITHIN:
        names = " and ".join(f"{limit.name}={limit.most}" for limit in problem.limits)
        raise ValueError(
            f"target_cost={problem.target_cost} cannot be met together with {names}: with bits within it a training costs "
            f"about {math.floor(1000 * dearest) / 1000} at most. Lower target_cost to it (None: no such budget), or allow "
            "the final bits more."
        )


def _least(problem: Problem, limit: Limit) -> float:
    """The least share of a limit that any bits take, every layer by itself; at the lowest bits, unless it knows no order."""
    if not limit.together:
        return limit.share(problem.low)
    levels = problem.levels.to(problem.low)[:, None, None].expand(-1, *problem.low.shape)
    trials = problem.in_force(torch.minimum(torch.maximum(levels, problem.low), problem.high))
    return min(float(limit.layer_costs(trials).min(0).values.sum()), limit.share(problem.low), limit.share(problem.high))


def _neutral(problem: Problem) -> Tensor:
    """(layers, kinds, levels) damages where nothing is measured: those that make all bits about equal under every budget."""
    weight = problem.macs / problem.macs.sum().clamp_min(1e-300)
    scale = weight[:, None].expand(problem.low.shape).clone()
    if problem.target_size is not None and problem.weight_numel is not None:
        scale[:, 0] += problem.weight_numel / problem.weight_numel.sum().clamp_min(1)
    return scale[..., None] * 4.0 ** (problem.apart[..., None] - problem.levels.double())  # or all would move at once
