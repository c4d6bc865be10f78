"""What multiplies without torch's knowledge: operations of other packages, layers of a kind of their own, TorchScript.

A layer whose kernel no counter knows (4-bit weights, deformable convolutions, one's own CUDA code) would look as if it cost
nothing, and coverage as if everything else were the model. So a module that holds a matrix, ran, and multiplied nothing known
is charged by its shapes, and named; so is an operation of another package whose name says that it multiplies.
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_OWN_NAMESPACES = ("aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "fsdp", "transformers")
_MULTIPLIES = re.compile(r"(^|_)(b?mm|\w*matmul|\w*linear|conv\w*|\w*conv2d|gem[mv]\w*|attention|attn|einsum|lstm|gru)(_|$|\d)")
_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)


class Foreign(TorchDispatchMode):
    """Sees the operations of other packages. see: called with each, and its MACs by its shapes (0: it may multiply nothing)."""

    def __init__(self, see):
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace not in _OWN_NAMESPACES:
            operands = [x for x in args if isinstance(x, Tensor) and x.dim() > 1]
            multiplies = len(operands) > 1 and _MULTIPLIES.search(name) and isinstance(out, Tensor)
            self.see(f"{namespace}::{name}", out.numel() * operands[0].shape[-1] if multiplies else 0)
        return out


def estimate(module: Any, inputs: Any, output: Any, foreign: bool) -> int:
    """MACs of a module that multiplied nothing known, from its shapes; 0 where it holds no matrix, or only adds or looks up.

    foreign: an operation of another package ran in it.
    """
    x, y = _first(inputs), _first(output)
    if y is None or isinstance(module, _LOOKUPS):
        return 0
    held = [t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if _is_matrix(t)]
    length = _features(module, "in_features", "infeatures", "in_dim")
    if held and length and _features(module, "out_features", "outfeatures", "out_dim"):
        return y.numel() * length
    if held and hasattr(module, "in_channels") and hasattr(module, "kernel_size"):
        kernel = module.kernel_size if isinstance(module.kernel_size, int) else math.prod(module.kernel_size)
        groups = getattr(module, "groups", 1)
        if getattr(module, "transposed", False) and x is not None:
            return x.numel() * module.out_channels // groups * kernel
        return y.numel() * module.in_channels // groups * kernel
    if held and foreign:
        largest = max(held, key=Tensor.numel)
        return y.numel() * (largest.numel() // largest.shape[0])
    return 0


def _features(module: nn.Module, *names: str) -> int:
    found = [getattr(module, name, None) for name in names]
    return next((n for n in found if isinstance(n, int)), 0)


def _is_matrix(t: Tensor) -> bool:
    """Also packed: codes of several elements in a byte lie in any shape."""
    return sum(size > 1 for size in t.shape) > 1 or (not t.is_floating_point() and t.numel() > 1)


def _first(values) -> Tensor | None:
    """The first tensor among values, and in the lists and mappings among them."""
    if isinstance(values, Tensor):
        return values
    values = values.values() if hasattr(values, "values") else values if isinstance(values, list | tuple) else ()
    return next((found for value in values if (found := _first(value)) is not None), None)


class _Scripted(nn.Module):
    """Stands for a TorchScript module, which takes no hooks."""

    def __init__(self, script):
        super().__init__()
        self.__dict__["script"] = script

    def __getattr__(self, name: str):
        return getattr(self.__dict__["script"], name)

    def forward(self, *args, **kwargs):
        return self.__dict__["script"](*args, **kwargs)


@contextlib.contextmanager
def scripts_wrapped(model: nn.Module):
    """Within this context the TorchScript parts of a model are called through modules that take hooks, of the same names."""
    places = [(parent, name, part) for parent in model.modules() if not isinstance(parent, torch.jit.ScriptModule)
              for name, part in parent._modules.items() if isinstance(part, torch.jit.ScriptModule)]  # fmt: skip
    try:
        for parent, name, part in places:
            parent._modules[name] = _Scripted(part)
        yield
    finally:
        for parent, name, part in places:
            parent._modules[name] = part
