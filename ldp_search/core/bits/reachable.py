"""Whether the budgets can be met together, and bits that meet them while nothing is measured: all about equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .limits import WITHIN
from .problem import Problem
from .within_limits import LeastDamageWithin

GOLDEN = 0.618034  # whose multiples lie evenly between whole numbers


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
        if (share := limit.share(problem.low)) > WITHIN:
            raise ValueError(
                f"{limit.name}={limit.most} cannot be met: the lowest bits take {limit.most * share:.3g} {limit.unit}. "
                f"Raise {limit.name}, widen `bits` downwards, or keep fewer layers out (`skip`, `fixed`)."
            )
    if problem.target_cost is None or not problem.limits:
        return
    dearest = float(problem.relative_cost(about_equal(problem, None)[0]))
    if problem.target_cost > dearest * WITHIN:
        names = " and ".join(f"{limit.name}={limit.most}" for limit in problem.limits)
        raise ValueError(
            f"target_cost={problem.target_cost} cannot be met together with {names}: with bits within it a training costs "
            f"about {math.floor(1000 * dearest) / 1000} at most. Lower target_cost to it (None: no such budget), or allow "
            "the final bits more."
        )


def _neutral(problem: Problem) -> Tensor:
    """(layers, kinds, levels) damages where nothing is measured: those that make all bits about equal under every budget."""
    weight = problem.macs / problem.macs.sum().clamp_min(1e-300)
    scale = weight[:, None].expand(problem.low.shape).clone()
    apart = torch.arange(scale.numel(), dtype=torch.float64).view_as(scale) * GOLDEN % 1.0 - 0.5  # or all would move at once
    if problem.target_size is not None and problem.weight_numel is not None:
        scale[:, 0] += problem.weight_numel / problem.weight_numel.sum().clamp_min(1)
    return scale[..., None] * 4.0 ** (apart[..., None] - problem.levels.double())
