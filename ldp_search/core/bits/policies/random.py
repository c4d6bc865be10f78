"""Random allocation: the control that tells whether learning is the cause of a gain."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...registry import register
from .base import Policy
from .budget import allocation_at_cost, plan_at, split_budget


@register("policy", "random")
@dataclass
class Random(Policy):
    """Bits drawn uniformly for every group, then moved together until the training cost is the target; constant in time.

    With no target cost the draw itself is used.
    """

    meets_target = True

    def begin(self):
        problem = self.problem
        generator = torch.Generator("cpu").manual_seed(problem.seed)
        drawn = torch.rand(problem.groups, generator=generator, dtype=torch.float32, device="cpu").to(problem.low)
        bits = problem.low + (problem.high - problem.low) * drawn[problem.group]
        if problem.target_cost is None:
            self.state = {"plan": [(0.0, torch.round(bits))]}
        else:
            self.state = {
                "plan": split_budget(*allocation_at_cost(problem, bits, problem.target_cost), problem, problem.target_cost)
            }
        return self.state["plan"][0][1]

    def step(self, signals):
        return plan_at(self.state["plan"], signals.progress)
