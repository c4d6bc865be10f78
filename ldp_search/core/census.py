"""The census: one forward of counting. Multiply-accumulates of every layer, and of what happens outside the layers.

torch's FlopCounterMode knows the operations; the module in whose forward an operation runs is charged for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .functions import Recorder


@dataclass
class Tally:
    """What one module did itself (its children excluded), for the whole batch."""

    macs: Counter = field(default_factory=Counter)  # operation -> MACs
    reachable: int = 0  # of these MACs, those in functions that can be quantized where they are called
    calls: int = 0
    input_numel: int = 0


def census(model: nn.Module, args: tuple, kwargs: dict) -> tuple[dict[str, Tally], int]:
    """Run one forward in evaluation mode, without gradient, and count.

    Returns:
        {module name: Tally}, and the batch size that the counts are for. Buffers, modes and random state stay as they were.
    """
    tallies: dict[str, Tally] = {}
    stack: list[tuple[str, Counter, Counter]] = []  # module, counts at its start, counts of its children
    modes = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()  # one operation that nothing counts, in place of several

    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.random.fork_rng(enabled=True):

        def total() -> Counter:
            return Counter({str(op): flops // 2 for op, flops in counter.flop_counts.get("Global", {}).items()})

        def enter(name):
            def hook(module, inputs, keywords):
                tally = tallies.setdefault(name, Tally())
                tally.calls += 1
                tally.input_numel += sum(x.numel() for x in inputs[:1] if isinstance(x, Tensor))
                stack.append((name, total(), Counter()))

            return hook

        def leave(module, inputs, output):
            name, before, children = stack.pop()
            whole = total() - before
            tallies[name].macs += whole - children
            if stack:
                stack[-1][2].update(whole)

        def reached(macs: Counter):
            tallies[stack[-1][0]].reachable += sum(macs.values())

        hooks = []
        try:
            model.eval()
            torch.backends.mha.set_fastpath_enabled(False)
            for name, module in model.named_modules():
                hooks.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
                hooks.append(module.register_forward_hook(leave))
            with Recorder(total, reached):
                model(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for hook in hooks:
                hook.remove()
            for module, training in modes.items():
                module.training = training
    return tallies, batch_size(args, kwargs)


def batch_size(args: tuple, kwargs: dict) -> int:
    """First dimension of the first tensor of the inputs; 1 when there is none."""
    for value in [*args, *kwargs.values()]:
        if isinstance(value, Tensor) and value.dim() > 0:
            return value.shape[0]
        if isinstance(value, dict | list | tuple):
            inner = batch_size(tuple(value.values() if isinstance(value, dict) else value), {})
            if inner > 1:
                return inner
    return 1


def own_inputs(model: nn.Module) -> tuple[tuple, dict] | None:
    """Inputs that the model itself says it takes: a timm model's input size. None where it says nothing.

    A Hugging Face model's `dummy_inputs` are no help: five tokens tell nothing of the share of attention in its cost.
    """
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    parameter = next(model.parameters(), None)
    if size is None or parameter is None or parameter.is_meta:
        return None
    channels = getattr(model, "in_chans", size[0])
    return (torch.zeros(1, channels, *size[1:], device=parameter.device, dtype=parameter.dtype),), {}


def shapes(args: tuple, kwargs: dict) -> str:
    """The shapes of the tensors among the inputs, in words."""
    named = [*(("", x) for x in args), *((f"{key} ", x) for key, x in kwargs.items())]
    return ", ".join(f"{key}{tuple(x.shape)}" for key, x in named if isinstance(x, Tensor))
