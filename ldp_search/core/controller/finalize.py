"""The end of a training: integer bits for good, and statistics that belong to them.

Batch-norm statistics and input ranges gathered while the bits moved mix several precisions, so they are estimated anew.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ..bits.allocation import Allocation
from .distributed import average_over_ranks

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def finalize(model: nn.Module, controller, loader=None, forward=None, batches: int = 50) -> Allocation:
    """Round the bits to integers, keep them, and re-estimate statistics on `loader`; nothing is trained.

    Args:
        loader: batches as a tuple (inputs, ...) or a dict of keyword inputs; None leaves the statistics as they are.
        forward: called with a batch, where it is neither. batches: how many to use at most.
    """
    controller.freeze()
    if loader is not None:
        _reestimate(model, controller, loader, forward or _forward(model), batches)
    return allocation(controller)


@torch.no_grad()
def _reestimate(model, controller, loader, forward, batches) -> None:
    modes = {module: module.training for module in model.modules()}
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    chosen = itertools.islice(loader, batches)
    first = next(iter(chosen), None)
    if first is None:  # before the old statistics are gone
        raise ValueError(f"finalize needs at least one batch of a loader; {type(loader).__name__} gave none. Pass a fresh one.")
    try:
        model.eval()
        controller.calibrating = True  # the sites then take the batch's ranges and average them
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # cumulative average over all batches
        controller.ranges.zero_()
        for batch in itertools.chain([first], chosen):
            forward(batch)
        average_over_ranks([s for norm in norms for s in (norm.running_mean, norm.running_var)] + [controller.ranges])
    finally:
        controller.calibrating = False
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _forward(model):
    device = next(model.parameters()).device

    def move(value):
        return value.to(device) if isinstance(value, Tensor) else value

    def run(batch):
        if hasattr(batch, "keys"):  # a dict, or a tokenizer's BatchEncoding
            return model(**{k: move(v) for k, v in batch.items()})
        return model(move(batch[0] if isinstance(batch, list | tuple) else batch))

    return run


def allocation(controller) -> Allocation:
    """The bits in force, with what they cost, as an Allocation."""
    cost, coverage = controller.cost(), controller.coverage
    searched = controller.problem.searched.any(1).tolist()
    details = {
        name: {"kind": s.kind, "macs": s.macs, "weight_numel": s.weight_numel, "searched": searched[i]}
        for i, (name, s) in enumerate(controller.layers.items())
    }
    summary = {
        "relative_cost": cost.relative,
        "mean_relative_cost": cost.mean_relative,
        "relative_inference_cost": cost.relative_inference,
        "weight_mib": cost.weight_mib,
        "coverage": {"share": coverage.share, "left_out": [item._asdict() for item in coverage.left_out]},
    }
    return Allocation(controller.bits(), details, summary)
