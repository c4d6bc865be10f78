"""The profiler: one forward of counting. Multiply-accumulates of every module, and what it multiplies outside of layers.

torch's FlopCounterMode knows the operations; the module in whose forward an operation runs is charged for it. A second mode
sees the functions called and tells whether an operand is a parameter or buffer, was computed from such alone, or depends on
the input.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..products import unfused
from ..products.torch_functions import find
from .provenance import Provenance
from .records import ModelProfile, ModuleProfile, ProductProfile
from .samples import batch_size, shapes
from .sandbox import buffers_kept, copied
from .trained import Trained
from .uncounted import Foreign, estimate, scripts_wrapped


def profile(model: nn.Module, args: tuple, kwargs: dict) -> ModelProfile:
    """Run one forward in evaluation mode, without gradient, and count. Buffers, modes and random state stay as they were."""
    args, kwargs = copied(args), copied(kwargs)
    watch = _Watch(model, (args, kwargs))
    with scripts_wrapped(model):
        output = _counted(model, args, kwargs, watch)
    batch = batch_size(args, kwargs, getattr(model, "main_input_name", None), output)
    if batch == 0:
        raise ValueError(
            "The first inputs, on which the costs of the layers are counted, must hold a sample; this batch is empty."
        )
    return ModelProfile(_per_sample(watch.modules, batch), shapes(args, kwargs))


def _counted(model: nn.Module, args: tuple, kwargs: dict, watch: _Watch):
    """The forward itself; returns its output."""
    modes = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()  # one operation that nothing counts, in place of several
    hooks = []
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(watch.enter(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(watch.leave, always_call=True))
        with watch.counter, watch.foreign, torch.no_grad(), torch.random.fork_rng(), buffers_kept(model), watch:
            torch.manual_seed(0)  # where a model draws the length of what it makes, it is the same every time
            return model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training


class _Watch(TorchFunctionMode):
    """Charges modules for what runs in their forward, and notes the products among it."""

    def __init__(self, model: nn.Module, inputs):
        super().__init__()
        self.counter = FlopCounterMode(display=False, custom_mapping=_more_operations())
        no_modules: Any = _NoModules()
        self.counter.mod_tracker = no_modules
        self.modules: dict[str, ModuleProfile] = {}
        self.stack: list[tuple[str, Counter, Counter]] = []  # module, counts at its start, counts of its children
        self.provenance, self.trained = Provenance(model), Trained(model, inputs)
        self.places: Counter = Counter()
        self.foreign = Foreign(self._see)
        self.unknown: list[Counter] = []  # of each module on the stack: operations of other packages, with what they may cost

    def total(self) -> Counter:
        counts = self.counter.flop_counts.get("Global", {})
        return Counter({str(operation).removeprefix("aten."): flops // 2 for operation, flops in counts.items()})

    def enter(self, name: str):
        def hook(module, inputs, keywords):
            module_profile = self.modules.setdefault(name, ModuleProfile())
            module_profile.calls += 1
            self.provenance.enter_module(module, name)
            first = [*inputs[:1], *([] if inputs else [*keywords.values()][:1])]
            module_profile.input_numel += sum(x.numel() for x in first if isinstance(x, Tensor))
            self.stack.append((name, self.total(), Counter()))
            self.unknown.append(Counter())

        return hook

    def leave(self, module, inputs, output):
        name, before, children = self.stack.pop()
        whole = self.total() - before
        self.modules[name].macs += whole - children
        self.modules[name].other_macs += whole - children
        self._charge_unknown(module, self.modules[name], inputs, output, sum(whole.values()))
        if self.stack:
            self.stack[-1][2].update(whole)

    def _see(self, operation: str, macs: int) -> None:
        if self.unknown:
            self.unknown[-1][operation] += macs

    def _charge_unknown(self, module, module_profile: ModuleProfile, inputs, output, known: int) -> None:
        """Whatever multiplied without the counter's knowledge, by the shapes."""
        seen = self.unknown.pop()
        macs = 0 if known else estimate(module, inputs, output, bool(seen))
        if macs:
            seen = Counter({" and ".join(seen) or f"a {type(module).__name__}'s own kernel": macs})
        for operation, macs in seen.items():
            if macs:
                module_profile.macs[f"{operation} (by its shapes)"] += macs
                module_profile.other_macs[f"{operation} (by its shapes)"] += macs

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in unfused.UNFUSED:
            with self:
                return unfused.UNFUSED[func](*args, **kwargs)
        product = find(func, args, kwargs)
        before = Counter() if product is None else self.total()
        out = func(*args, **kwargs)
        if product is not None and self.stack:
            self._note(product, product.operands(args, kwargs), self.total() - before)
        self.provenance.record(func, args, kwargs, out, product is not None)
        self.trained.record(func, args, kwargs, out)
        return out

    def _note(self, product, pair, macs: Counter) -> None:
        module_profile = self.modules[self.stack[-1][0]]
        found = self.provenance.classify(product, pair)
        known = next((f for f in module_profile.products if _alike(f, found)), None)
        if known is None:
            module_profile.products.append(known := found)
        known.macs += sum(macs.values())
        known.calls += 1
        for which, operand in enumerate(pair):
            if not self.trained.needs_gradient(operand):
                known.uncomputed[which] += sum(macs.values())
        if found.shape is not None:
            alike = self.stack[-1][0], found.function, found.operand, found.shape
            known.places.append(self.places[alike])
            self.places[alike] += 1
        known.input_numel += pair[1 - (found.operand if found.operand is not None else 1)].numel()
        module_profile.other_macs.subtract(macs)


def _alike(one: ProductProfile, other: ProductProfile) -> bool:
    key = lambda f: (f.function, f.weight, f.operand, f.shape)  # noqa: E731
    return key(one) == key(other)


class _NoModules:
    """In place of FlopCounterMode's own record of the running modules, which the profiler keeps itself. Theirs asks for graphs
    behind tensors that have none without gradient.
    """

    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


def _more_operations() -> dict:
    """Operations that FlopCounterMode does not know, with their FLOPs from the shapes."""
    aten = torch.ops.aten
    found = {
        aten.mv: lambda a, x, *rest, **options: 2 * a[0] * a[1],
        aten.dot: lambda x, y, *rest, **options: 2 * x[0],
        aten.vdot: lambda x, y, *rest, **options: 2 * x[0],
        aten.addmv: lambda y, a, x, *rest, **options: 2 * a[0] * a[1],
        aten.addbmm: lambda y, a, b, *rest, **options: 2 * math.prod(a) * b[-1],
        aten._int_mm: lambda a, b, *rest, **options: 2 * math.prod(a) * b[-1],
        aten._addmm_activation: lambda y, a, b, *rest, **options: 2 * math.prod(a) * b[-1],
        aten._weight_int8pack_mm: lambda x, w, *rest, **options: 2 * math.prod(x) * w[0],
    }
    grouped = lambda a, b, *rest, **options: 2 * math.prod(a) * b[-1]  # noqa: E731
    for space, name in ((aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback")):
        if hasattr(space, name):
            found[getattr(space, name)] = grouped
    attention = lambda q, k, v, *rest, **options: 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # noqa: E731
    for kernel in ("flash", "efficient", "cudnn"):  # torch's own count of these refuses grouped queries
        found[getattr(aten, f"_scaled_dot_product_{kernel}_attention")] = attention
    found[aten._scaled_dot_product_flash_attention_for_cpu] = attention
    return found


def _per_sample(modules: dict[str, ModuleProfile], batch: int) -> dict[str, ModuleProfile]:
    for module_profile in modules.values():
        module_profile.macs = Counter({op: n // batch for op, n in module_profile.macs.items()})
        module_profile.other_macs = Counter({op: n // batch for op, n in module_profile.other_macs.items() if n // batch > 0})
        module_profile.input_numel //= batch
        for found in module_profile.products:
            found.macs, found.input_numel = found.macs // batch, found.input_numel // batch
            found.uncomputed = [macs // batch for macs in found.uncomputed]
    return modules


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
