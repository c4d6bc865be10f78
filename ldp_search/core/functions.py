"""The op-level way: products that no layer class holds, met inside the forward of the module that owns them.

Attention's own products, raw parameters in `@`, a weight read from outside its layer: the owner's forward runs as it is,
under a mode that sees every torch function called in it and quantizes the operands of those that are products.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layers import ATTRIBUTE, Entry, Swapped

OWNER = "functions"
"""Kind of a module whose own products are reached by function."""

_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm)
_WEIGHTED = (F.linear, F.conv1d, F.conv2d, F.conv3d)  # the second operand's first axis is the output channel
PRODUCTS = dict.fromkeys((*_MATMULS, *_WEIGHTED), 0) | {torch.einsum: 1}
"""Function -> position of its first operand; the second follows it."""

_running: list[Products | None] = []  # owners whose forward is under way, the innermost last; None: a layer of its own


class Products(TorchFunctionMode):
    """Quantizes the products that one owner calls itself; those of the modules inside it are theirs."""

    def __init__(self, site):
        super().__init__()
        self.site = site

    def __enter__(self):
        _running.append(self)
        return super().__enter__()

    def __exit__(self, *exception):
        _running.pop()
        return super().__exit__(*exception)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        first = PRODUCTS.get(func)
        if first is None or _running[-1] is not self or not _is_product(args[first:]):
            return func(*args, **(kwargs or {}))
        _running.append(None)  # what quantizing itself computes is not to be quantized
        try:
            return self.site.call(func, first, args, kwargs or {}, axis=0 if func in _WEIGHTED else None)
        finally:
            _running.pop()


def _is_product(operands: tuple) -> bool:
    """Two floating-point operands, given by position."""
    return len(operands) >= 2 and all(isinstance(x, Tensor) and x.is_floating_point() for x in operands[:2])


@contextmanager
def own_products():
    """Within this context the running owners keep their hands off: a quantized layer inside them computes."""
    _running.append(None)
    try:
        yield
    finally:
        _running.pop()


def inside_an_owner() -> bool:
    return bool(_running)


class Recorder(TorchFunctionMode):
    """During the census: tells, for each product function, what it added to a running total."""

    def __init__(self, total, add):
        super().__init__()
        self.total, self.add = total, add

    def __torch_function__(self, func, types, args=(), kwargs=None):
        first = PRODUCTS.get(func)
        if first is None or not _is_product(args[first:]):
            return func(*args, **(kwargs or {}))
        before = self.total()
        out = func(*args, **(kwargs or {}))
        self.add(self.total() - before)
        return out


class QuantizedOwner(Swapped):
    """Mixin before the original class of a module that owns products."""

    def forward(self, *args, **kwargs):
        site = self.__dict__[ATTRIBUTE]
        if not site.on:
            return super().forward(*args, **kwargs)
        with Products(site):
            return super().forward(*args, **kwargs)


class KeptOut(Swapped):
    """Mixin of a module left in full precision: the owners that it lies in keep their hands off its products."""

    def forward(self, *args, **kwargs):
        if not inside_an_owner():
            return super().forward(*args, **kwargs)
        with own_products():
            return super().forward(*args, **kwargs)


def describe_owner(module: nn.Module) -> Entry:
    """The entry of an owner; its own parameters of two dimensions or more are taken as its operands."""
    return Entry(OWNER, 0, 0, [p for p in module.parameters(recurse=False) if p.dim() > 1])
