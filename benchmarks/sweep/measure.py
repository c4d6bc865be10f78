"""What the checks measure on a model from outside: its anatomy, its multiply-accumulates, where its gradients flow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .running import backward, call, distance, outputs, seed, tensors

SWAPPED_BY_TYPE = (nn.Linear, nn.Conv2d)  # what a plain swap of layers reaches


def tensors_by_name(model: nn.Module) -> dict:
    """{key of the state dict: identity of its tensor}."""
    return {key: (id(x) if isinstance(x, Tensor) else repr(x)) for key, x in model.state_dict(keep_vars=True).items()}


def parameters_by_name(model: nn.Module) -> dict:
    return {name: id(parameter) for name, parameter in model.named_parameters()}


def anatomy(model: nn.Module) -> dict:
    """{module name: its class, the names in its __dict__, its numbers of hooks}."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        name: (type(m), tuple(sorted(m.__dict__)), tuple(len(m.__dict__.get(h, ())) for h in hooks))
        for name, m in model.named_modules()
    }


def changes(before: dict, after: dict) -> list[str]:
    """The keys that differ, some of them."""
    return sorted(str(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key))[:3]


def input_tensors(inputs) -> list[Tensor]:
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return [x for x in values if isinstance(x, Tensor)]


def macs(model: nn.Module, inputs, ldp) -> dict:
    """The census' total a sample; torch's own total a batch; the share that a swap by exact type would reach.

    torch counts fused attention by its products where it knows the operation, which on a CPU it does not: so its
    mathematical form is run here.
    """
    inside, depth = Counter(), [0]

    def enter(module, *_):
        if depth[0] == 0:
            depth.append(counter.get_total_flops())
        depth[0] += 1

    def leave(module, *_):
        depth[0] -= 1
        if depth[0] == 0:
            inside["swap"] += counter.get_total_flops() - depth.pop()

    layers = [m for m in model.modules() if _original(type(m)) in SWAPPED_BY_TYPE]
    hooks = [h for m in layers for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        seed()
        with ldp.disabled(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call(model.eval(), inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()
    total = counter.get_total_flops()
    counted = sum(layer.macs for layer in ldp.layers.values()) + sum(item.macs for item in ldp.coverage.left_out)
    return {"macs": counted, "macs_flops": total // 2, "coverage_swap": round(inside["swap"] / total, 5) if total else 0.0}


def _original(cls: type) -> type:
    """The class under a quantized one (these are made of a mixin and the original)."""
    return next((base for base in cls.__mro__ if base in SWAPPED_BY_TYPE), cls) if cls.__module__.startswith("ldp_") else cls


@dataclass
class Flow:
    """Where gradients flow in the plain model."""

    reached: set = field(default_factory=set)  # modules of which an output has a gradient other than 0
    called: set = field(default_factory=set)
    few_values: set = field(default_factory=set)  # modules whose input takes two values at most: a grid holds them exactly
    not_finite: list = field(default_factory=list)


def flow(model: nn.Module, inputs) -> Flow:
    """One training step of the plain model, watched."""
    found, handles = Flow(), []

    def watch(name):
        def hook(module, args, output):
            found.called.add(name)
            if args and isinstance(args[0], Tensor) and args[0].numel() and _few(args[0].detach().flatten()[None]):
                found.few_values.add(name)
            for x in tensors(output):
                if x.requires_grad:
                    x.register_hook(lambda grad: found.reached.add(name) if bool((grad != 0).any()) else None)

        return hook

    try:
        handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
        model.zero_grad()
        backward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    found.not_finite = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    model.zero_grad()
    return found


def _few(rows: Tensor) -> bool:
    """Every row takes only its least and its greatest value: a min/max grid of any bits holds these exactly."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return bool(((rows == low) | (rows == high)).all())


@dataclass
class Silent:
    """Rows of bits without a gradient, and how many have none for a reason."""

    rows: list = field(default_factory=list)
    exempt: int = 0


def silent_rows(model: nn.Module, ldp, grad: Tensor, flow: Flow) -> Silent:
    """Rows of the bits' gradient that are 0 where the layer took part in the loss and quantizing it changes something."""
    out, modules, searched = Silent(), dict(model.named_modules()), ldp.problem.searched
    for row, (name, layer) in enumerate(ldp.layers.items()):
        silent = [c for c in (0, 1) if searched[row, c] and grad[row, c] == 0]
        if not silent:
            continue
        module = modules.get(name)
        weight = getattr(module, "weight", None) if module is not None else None
        exact = {0: isinstance(weight, Tensor) and weight.dim() > 1 and _few(weight.detach().flatten(1)), 1: name in flow.few_values}
        if layer.calls == 0 or (name in flow.called and name not in flow.reached) or all(exact[c] for c in silent):
            out.exempt += 1
        else:
            out.rows.append(f"{name} ({layer.kind}, {'/'.join(('weight', 'input')[c] for c in silent)})")
    return out


def rounding_noise(model: nn.Module, inputs, expected: list[Tensor], bits: int = 16) -> float:
    """How far the outputs move when weights and layer inputs get uniform noise as large as rounding to so many bits.

    The yardstick for models that are not continuous: top-k routing, codebooks, argmax.
    """
    generator = torch.Generator().manual_seed(3)

    def noisy(x: Tensor) -> Tensor:
        if not x.is_floating_point() or not x.numel():
            return x
        step = (x.amax() - x.amin()) / (2**bits - 1)
        return x + (torch.rand(x.shape, generator=generator) - 0.5) * step

    def before(module, args):
        return tuple(noisy(x) if isinstance(x, Tensor) else x for x in args)

    kept = [(p, p.detach().clone()) for p in model.parameters() if p.dim() > 1]
    layers = [m for m in model.modules() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
    hooks = [m.register_forward_pre_hook(before) for m in layers]
    try:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(noisy(value))
        return distance(outputs(model, inputs), expected)
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)
