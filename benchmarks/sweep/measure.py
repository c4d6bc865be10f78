"""What the checks measure on a model from outside: its anatomy, its multiply-accumulates, where its gradients flow."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldp_search.core.model.site import Site
from ldp_search.core.quantize.fake_quantize import rounded

from .running import backward, call, distance, outputs, seed

VANISHED = 1e-30  # a gradient of which nothing is left once it is multiplied by a rounding error
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
    """The profile's total a sample; torch's own total a batch; the share that a swap by exact type would reach.

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
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()
        with ldp.disabled(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            call(model.eval(), inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()
    total = counter.get_total_flops()
    counted = sum(layer.macs for layer in ldp.layers.values()) + sum(item.macs for item in ldp.coverage.left_out)
    swap = inside["swap"] / 2 / batch_size(inputs, model) / counted if counted else 0.0
    return {"macs": counted, "macs_flops": total // 2, "macs_unknown": _unknown(ldp), "coverage_swap": round(swap, 5)}


def batch_size(inputs, model) -> int:
    """Samples of the inputs, as the census takes them."""
    from ldp_search.core.profile.samples import batch_size as of_census

    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    return of_census(args, kwargs, getattr(model, "main_input_name", None))


def _unknown(ldp) -> int:
    """Multiply-accumulates a sample, as the profiler counts them, of operations that FlopCounterMode does not know: products
    grouped by expert, LSTM, and a matrix times a vector.
    """
    lstm = {name for name, m in ldp.model.named_modules() if isinstance(m, nn.LSTM)}
    return sum(
        found.macs
        for owner, counts in ldp.profile.modules.items()
        for found in counts.products
        if found.function == "grouped_mm" or owner in lstm
    ) + sum(macs for counts in ldp.profile.modules.values() for op, macs in counts.macs.items() if op in ("mv", "dot"))


class _NoModules:
    """In place of FlopCounterMode's record of modules, which fails on inputs with a gradient under no_grad."""

    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


def _original(cls: type) -> type:
    """The class under a quantized one (these are made of a mixin and the original)."""
    return next((base for base in cls.__mro__ if base in SWAPPED_BY_TYPE), cls) if cls.__module__.startswith("ldp_") else cls


def not_finite(model: nn.Module, inputs) -> list[str]:
    """Parameters of the plain model whose gradient in one training step is not finite."""
    model.zero_grad()
    backward(model, inputs)
    found = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    model.zero_grad()
    return found


@dataclass
class Silent:
    """Rows of bits without a gradient, and how many have none for a reason."""

    rows: list = field(default_factory=list)
    exempt: int = 0


@contextmanager
def watched(ldp):
    """{row: its operands (0 with the weight bits, 1 with the input bits) that a grid does not hold exactly, in products at
    which a gradient arrived}, of what happens within.
    """
    seen = {name: set() for name in ldp.layers}
    product, call, rows = Site.product, Site.call, Site.rows

    def note(site, y, w, x, axes=None):
        zero = any(operand is not None and not bool(operand.any()) for operand in (w, x))  # a first query of a decoder
        inexact = {0} if w is not None and not zero and not _exact(w, site._weight_grid(w, axes or ())(site.bits[0])) else set()
        inexact |= {1} if x is not None and not zero and not _exact(x, site._own_grid(x)(site.bits[1])) else set()
        if y.requires_grad:
            y.register_hook(lambda grad: seen[site.name].update(inexact if float(grad.abs().max()) > VANISHED else ()))
        return y

    def watched_product(site, x, w, bias, form, training, axes):
        return note(site, product(site, x, w, bias, form, training, axes), w, x, axes)

    def watched_call(site, found, function, args, kwargs, weight, training):
        pair, y = found.operands(args, kwargs), call(site, found, function, args, kwargs, weight, training)
        if weight == 1 and found.as_layer_call(args, kwargs) is not None:
            return y  # it came as a product
        w, x = (pair[0], pair[1]) if weight == 0 else (pair[1], pair[0])
        return note(site, y, w, x)

    def watched_rows(site, values):
        return note(site, rows(site, values), values, None)

    Site.product, Site.call, Site.rows = watched_product, watched_call, watched_rows
    try:
        yield seen
    finally:
        Site.product, Site.call, Site.rows = product, call, rows


@torch.no_grad()
def _exact(x: Tensor, grid) -> bool:
    """The grid holds it as it is: constants, attention to one token, coordinates."""
    x = x.detach().float()
    return not x.numel() or bool(((rounded(x, grid) - x).abs() <= 1e-6 * x.abs().max()).all())


def silent_rows(ldp, grad: Tensor, seen: dict[str, set]) -> Silent:
    """Rows of the bits' gradient that are 0 although a gradient arrived and rounding changed something."""
    out = Silent()
    for row, name in enumerate(ldp.layers):
        silent = [c for c in (0, 1) if ldp.problem.searched[row, c] and grad[row, c] == 0]
        if not silent:
            continue
        if any(c in seen[name] for c in silent):
            out.rows.append(f"{name} ({ldp.layers[name].kind}, {'/'.join(('weight', 'input')[c] for c in silent)})")
        else:
            out.exempt += 1
    return out


def rounding_noise(model: nn.Module, inputs, expected: list[Tensor], bits: int, draw: int) -> float:
    """How far the outputs move when weights and layer inputs get uniform noise as large as rounding to so many bits.

    The yardstick for models that are not continuous: top-k routing, codebooks, argmax. draw: of the noise, its seed.
    """
    generator = torch.Generator().manual_seed(draw)

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
