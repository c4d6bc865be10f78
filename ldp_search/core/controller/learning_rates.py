"""The effective learning rate of each site's weights: by how much a gradient moves them in the end.

Of SGD that is lr (1 - dampening) / (1 - momentum). Of Adam, RMSprop and their like, whose updates have a size of their own, it
is lr / rms(gradient): the second moment that the optimizer keeps tells the rms, before its first step the gradient itself does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bits.damage import DEFAULT_RATE
from .distributed import local_part

SECOND_MOMENTS = ("exp_avg_sq", "square_avg")  # in the optimizer's state, of Adam and of RMSprop
SMALLEST = 1e-12  # of an rms of gradients


@torch.no_grad()
def effective_rates(weights: list[list[Tensor]], optimizer=None) -> Tensor:
    """(sites,) float64 on the CPU.

    Args:
        weights: of each site; those of one that holds none, or whose weights the optimizer does not know, take the median;
            those that take no gradient do not move: 0.
        optimizer: a torch optimizer or a wrapper with `param_groups` and `state`; None: `DEFAULT_RATE` for all.
    """
    frozen = torch.tensor([bool(tensors) and not any(w.requires_grad for w in tensors) for tensors in weights])
    if optimizer is None:
        return torch.full((len(weights),), DEFAULT_RATE, dtype=torch.float64).masked_fill(frozen, 0.0)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found: list[tuple[int, float, Tensor | None]] = []
    for site, tensors in enumerate(weights):
        weight = next((w for w in tensors if id(w) in groups), None)
        if weight is not None and groups[id(weight)]["lr"] is not None:  # None: of its own devising (transformers' Adafactor)
            found.append((site, *_rate(weight, groups[id(weight)], optimizer.state.get(weight, {}))))
    rates = torch.full((len(weights),), torch.nan, dtype=torch.float64)
    squares = [square for _, _, square in found if square is not None]
    known = iter(torch.stack(squares).cpu().double().sqrt().clamp_min(SMALLEST).tolist() if squares else [])
    for site, rate, square in found:
        rates[site] = rate if square is None else rate / next(known)
    middle = rates[~rates.isnan()].median() if found else torch.tensor(DEFAULT_RATE)
    return torch.where(rates.isnan(), middle, rates).masked_fill(frozen, 0.0)


def learning_rate(optimizer=None) -> float:
    """The highest of an optimizer's groups; 0 without one."""
    return 0.0 if optimizer is None else max(float(group["lr"] or 0.0) for group in optimizer.param_groups)


def _rate(weight: Tensor, group: dict, state: dict) -> tuple[float, Tensor | None]:
    """(rate, mean square of the gradient that it is still to be divided by the root of)."""
    rate, momentum = float(group["lr"]), min(float(group.get("momentum") or 0.0), 0.999)
    rate *= (1 - float(group.get("dampening") or 0.0) if momentum else 1.0) / (1 - momentum)
    second = next((state[name] for name in SECOND_MOMENTS if state.get(name) is not None), None)
    if second is not None:
        steps = float(state.get("step", group.get("step", 1))) or 1.0
        mass = 1 - float(group["betas"][1]) ** steps if "betas" in group else 1.0  # RMSprop does not correct its moment
        return rate, local_part(second).float().mean() / mass
    if "momentum" in group and not any(name in group for name in ("betas", "alpha")):  # SGD and its like
        return rate, None
    if weight.grad is not None:
        return rate, local_part(weight.grad).float().square().mean()
    return rate, torch.ones((), device=weight.device)
