"""What the bits in force cost, and what the training has cost so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..bits.cost import Cost, inference_bitops, training_bitops, weight_mib
from ..bits.space import FULL_PRECISION
from ..model.coverage import SKIPPED

if TYPE_CHECKING:
    from .controller import Controller


def cost_of(controller: Controller) -> Cost:
    """`Cost` of a controller. Waits for the device."""
    p, bits = controller.problem, torch.round(controller.tensors.bits).double()
    spent, progress = controller.spent
    macs = p.macs if controller.profiled else torch.zeros_like(p.macs)
    inference, highest = (inference_bitops(p.macs, b).sum() for b in (bits, p.high.double()))
    numel = torch.zeros_like(p.macs) if p.weight_numel is None else p.weight_numel
    left_out = sum(item.macs for item in controller.coverage.left_out if item.reason != SKIPPED)
    relative = float(p.relative_cost(bits))
    return Cost(
        training_bitops=float(training_bitops(macs, bits, p.backward).sum()),
        inference_bitops=float(inference) if controller.profiled else 0.0,
        relative=relative,
        relative_inference=float(inference / highest),
        weight_mib=float(weight_mib(numel, bits).sum()),
        mean_relative=spent / progress if progress else relative,
        left_out_bitops=float(3 * FULL_PRECISION**2 * left_out),
        latency_ms=None if p.latency is None else float(p.latency.total(bits)) / 1e3,
        relative_latency=p.relative_latency(bits),
    )
