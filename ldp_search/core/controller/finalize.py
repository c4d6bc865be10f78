"""The end of a training: integer bits for good, and statistics that belong to them.

Batch-norm statistics and input ranges gathered while the bits moved mix several precisions, so they are estimated anew: in
copies, which take the place of the old ones when the last batch has gone through. Whatever happens before leaves the model
and its bits as they were.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..bits.allocation import Allocation
from ..profile.sandbox import buffers_kept, on_trial
from .checks import check_present, warn_where_diverged, warn_where_nothing_was_learned
from .distributed import all_succeed, average_over_ranks
from .rollback import controller_kept
from .strays import warn_of_strays, warn_where_frozen

if TYPE_CHECKING:
    from .controller import Controller

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def finalize(model: nn.Module, controller: Controller, loader=None, forward=None, batches: int = 50) -> Allocation:
    """Round the bits to integers, keep them, and re-estimate statistics on `loader`; nothing is trained.

    Batch norms that are frozen (in evaluation mode while the model trains) keep their statistics. When it raises, at whatever
    point, everything is as before.

    Args:
        loader: batches as a tuple (inputs, ...) or a dict of keyword inputs; None leaves the statistics as they are.
        forward: called with a batch, where it is neither. batches: how many to use at most.
    """
    check_present(controller)
    forward = forward or _forward(model)
    chosen = None if loader is None else _begun(model, controller, loader, forward, batches)
    warn_where_nothing_was_learned(controller)
    warn_where_diverged(controller)
    with controller_kept(controller):
        controller.freeze()
        if chosen is not None:
            _reestimate(model, controller, chosen, forward)
    warn_of_strays(controller)
    warn_where_frozen(controller)
    return allocation(controller)


def _begun(model, controller: Controller, loader, forward, batches: int):
    """The batches to use, of which there is one. A model that has not been counted yet is so on that one, for good."""
    if isinstance(loader, Tensor):
        raise TypeError(f"loader must give batches; received one tensor of shape {tuple(loader.shape)}. Pass [tensor].")
    if isinstance(loader, str):
        raise TypeError(f"loader must give batches, as a DataLoader does; received the text {loader[:60]!r}.")
    chosen = itertools.islice(loader, batches)
    first = next(iter(chosen), None)
    if first is None:
        raise ValueError(f"finalize needs at least one batch of a loader; {type(loader).__name__} gave none. Pass a fresh one.")
    if not controller.profiled:
        on_trial(model, lambda: forward(first))
    return itertools.chain([first], chosen)


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """{name: batch norm} of those that keep statistics."""
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return {name: m for name, m in norms.items() if m.track_running_stats and m.running_mean is not None}


def frozen_norms(model: nn.Module) -> set[str]:
    """Names of the batch norms that stay in evaluation mode while the model trains; none in evaluation, where all do."""
    return {name for name, norm in norms_of(model).items() if not norm.training} if model.training else set()


@torch.no_grad()
def _reestimate(model, controller: Controller, chosen, forward) -> None:
    frozen = frozen_norms(model) if model.training else controller.frozen_norms or set()
    norms = [norm for name, norm in norms_of(model).items() if name not in frozen]
    with _estimating(model, controller, norms) as found:
        with all_succeed("finalize"):
            for batch in chosen:
                forward(batch)
        statistics = [new[name] for _, new in found for name in _STATISTICS[:2]]
        average_over_ranks([*statistics, controller.tensors.ranges, controller.tensors.x_bounds])
    for norm, new in found:
        for name, value in new.items():
            getattr(norm, name).copy_(value)


@contextlib.contextmanager
def _estimating(model, controller: Controller, norms):
    """Evaluation mode, in which `norms` and the sites average over all batches, into copies: [(norm, {buffer: its copy})].

    Afterwards the norms hold their own buffers again, whose values nothing has touched.
    """
    modes = {module: module.training for module in model.modules()}
    own = [(norm, {name: norm._buffers[name] for name in _STATISTICS}, norm.momentum) for norm in norms]
    try:
        model.eval()
        with buffers_kept(model):
            controller.calibrating = True  # the sites then take the batch's ranges and average them
            controller.tensors.begin_ranges()
            for norm, buffers, _ in own:
                norm._buffers.update({name: value.clone() for name, value in buffers.items()})
                norm.reset_running_stats()
                norm.train()
                norm.momentum = None  # cumulative average over all batches
            yield [(norm, {name: norm._buffers[name] for name in _STATISTICS}) for norm in norms]
    finally:
        controller.calibrating = False
        for norm, buffers, momentum in own:
            norm._buffers.update(buffers)
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _forward(model):
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def move(value):
        if isinstance(value, Tensor):
            return value.to(device)
        if type(value) in (list, tuple):  # as detection models have their pictures
            return type(value)(map(move, value))
        return {k: move(v) for k, v in value.items()} if isinstance(value, dict) else value

    def run(batch):
        if hasattr(batch, "keys"):  # a dict, or a tokenizer's BatchEncoding
            return model(**{k: move(v) for k, v in batch.items()})
        return model(move(batch[0] if isinstance(batch, list | tuple) else batch))

    return run


def allocation(controller: Controller) -> Allocation:
    """The bits in force, with what they cost, as an Allocation."""
    cost, coverage = controller.cost(), controller.coverage
    searched, progress = controller.problem.searched.any(1).tolist(), float(controller.spent[1])
    details = {
        name: {
            "kind": s.kind,
            "macs": s.macs,
            "backward_macs": list(s.backward_macs),
            "weight_numel": s.weight_numel,
            "searched": searched[i],
        }
        for i, (name, s) in enumerate(controller.layers.items())
    }
    summary = {
        "relative_cost": cost.relative,
        "mean_relative_cost": cost.mean_relative,
        "relative_inference_cost": cost.relative_inference,
        "weight_mib": cost.weight_mib,
        **({} if cost.relative_latency is None else {"relative_latency": cost.relative_latency, "latency_ms": cost.latency_ms}),
        **({"progress": progress} if 0 < progress < 1 - 1e-9 else {}),
        "coverage": {"share": coverage.share, "left_out": [item._asdict() for item in coverage.left_out]},
    }
    return Allocation(controller.bits(), details, summary)
