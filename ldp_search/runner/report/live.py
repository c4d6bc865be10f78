"""A controller as the run that it would leave: for pictures and pages while it trains, and without any folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...core import Controller
from ...core.bits.space import FINAL_BUDGETS
from ...core.controller.finalize import allocation
from .load import Run
from .schedule import KINDS, Schedule


def run_of(ldp: Controller) -> Run:
    """What is recorded of a controller so far, under the name of its model's class; finished once the last step is done."""
    trajectory = ldp.trajectory
    run = Run(None, type(ldp.model).__name__, config=_config(ldp), allocation=_allocation(ldp))
    if trajectory.seen:
        bits, progress = trajectory.bits, np.asarray(trajectory.progress)
        kinds = {kind: bits[..., k].numpy().astype(np.float32) for k, kind in enumerate(KINDS[: bits.shape[-1]])}
        run.schedule = Schedule(progress, trajectory.layers, kinds)
        if ldp.profiled:
            run.metrics = _costs(ldp, bits, progress)
    if ldp.frozen or (trajectory.seen and trajectory.progress[-1] >= 1 - 1e-9):
        run.result = {"policy": ldp.policy.name}
    return run


def _config(ldp: Controller) -> dict[str, Any]:
    """The settings that pictures and pages read: ranges, policy and budgets."""
    space = ldp.space
    ranges = {name: list(getattr(space, name)) for name in ("weight_bits", "input_bits", "grad_bits")}
    budgets = {name: getattr(space, name) for name in ("target_cost", *FINAL_BUDGETS)}
    return ranges | budgets | {"model": type(ldp.model).__name__, "policy": ldp.policy.name}


def _allocation(ldp: Controller) -> dict[str, Any]:
    """What allocation.json would hold of the bits in force; without MACs, costs and coverage where nothing is counted."""
    found = allocation(ldp)
    layers = {name: bits._asdict() | found.details[name] for name, bits in found.layers.items()}
    return {"layers": layers} | (found.summary if ldp.profiled else {})


def _costs(ldp: Controller, bits: torch.Tensor, progress: np.ndarray) -> list[dict[str, float | str]]:
    """Lines as metrics.jsonl has them: cost in force and mean so far, at each recorded moment.

    Records may be thinned out; the last mean is the exact one.
    """
    problem = ldp.problem.to("cpu")
    cost = problem.relative_cost(bits).numpy()
    mean = np.cumsum(cost * np.diff(progress, prepend=0.0)) / progress
    mean[-1] = ldp.cost().mean_relative
    return [
        {"split": "train", "step": i, "progress": float(p), "cost": float(c), "mean_cost": float(m)}
        for i, (p, c, m) in enumerate(zip(progress, cost, mean, strict=True))
    ]
