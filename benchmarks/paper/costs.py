"""Costs in the published accounting, relative to 8-bit weights, inputs and gradients everywhere: the same for all rows.

A row's own controller may count otherwise (relative to its highest bits, or without products that are never computed), so
everything here follows from the trajectory of bits and the MACs alone. Gradient bits are one a layer, or two: of dL/dx and of
dL/dw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FULL = 8 * 8


def training_share(bits: Tensor) -> Tensor:
    """(..., layers, 3 or 4) bits -> (..., layers) cost of the three products relative to 8/8/8."""
    w, x, *g = bits.double().unbind(-1)
    return (w * x + w * g[0] + x * g[-1]) / (3 * FULL)


def inference_share(bits: Tensor) -> Tensor:
    """(..., layers, 3 or 4) bits -> (..., layers) cost of the forward product relative to 8/8."""
    return bits[..., 0].double() * bits[..., 1].double() / FULL


def over_time(bits: Tensor, macs: Tensor) -> Tensor:
    """(records,) training cost of the whole network from bits (records, layers, 3 or 4) and macs (layers,)."""
    weights = macs.double() / macs.double().sum()
    return training_share(bits) @ weights


def mean_cost(progress: list[float], bits: Tensor, macs: Tensor) -> float:
    """Training cost averaged over progress; a record's bits were in force since the one before."""
    ends = torch.tensor(progress, dtype=torch.float64)
    spans = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.float64))
    return float((over_time(bits, macs) * spans).sum() / ends[-1])


def costs_of(ldp: Any) -> dict[str, float]:
    """Of a finished training: cost (mean over the training), final_cost and inference_cost at its last bits, macs a sample."""
    macs = torch.tensor([layer.macs for layer in ldp.layers.values()], dtype=torch.float64)
    bits, progress = ldp.trajectory.bits, ldp.trajectory.progress
    weights = macs / macs.sum()
    return {
        "cost": mean_cost(progress, bits, macs),
        "final_cost": float(over_time(bits[-1:], macs)),
        "inference_cost": float((inference_share(bits[-1]) * weights).sum()),
        "macs": float(macs.sum()),
    }


def costs_of_fp32(macs: float) -> dict[str, float]:
    """The same of 32 bits everywhere."""
    return dict.fromkeys(("cost", "final_cost", "inference_cost"), 32 * 32 / FULL) | {"macs": macs}


def training_bitops(cost: float, macs: float, samples: int) -> float:
    """Bit operations of a training over `samples` samples."""
    return cost * macs * 3 * FULL * samples
