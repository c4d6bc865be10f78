"""Tensors of a kind of their own (quantized already, sparse by class, ...): what they hold is not what a grid is made of."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_TRANSPARENT = ("torch.distributed.", "torch._subclasses.", "torch.testing.")
"""Where classes come from that stand for a plain tensor: sharded, fake, gathered."""


@cache
def _is_foreign_class(cls: type[Tensor]) -> bool:
    """Whether a class computes by rules of its own."""
    if cls.__module__.startswith(_TRANSPARENT):
        return False
    dispatches = getattr(cls, "__torch_dispatch__", None) not in (None, Tensor.__torch_dispatch__)
    plain = (_plain(Tensor.__torch_function__), torch._C._disabled_torch_function_impl)
    return dispatches or _plain(cls.__torch_function__) not in plain


def _plain(function: Any) -> Any:
    """The function behind a bound method."""
    return getattr(function, "__func__", function)


def foreign(x: Tensor) -> str | None:
    """Why a tensor can be no operand of a quantized product; None: it can."""
    if type(x) is not Tensor and type(x) is not nn.Parameter and _is_foreign_class(type(x)):
        return f"a {type(x).__name__}, which computes by rules of its own"
    if not x.is_floating_point() or x.dtype.itemsize == 1:
        return f"of {str(x.dtype).removeprefix('torch.')}"
    return None if x.layout == torch.strided else f"of layout {str(x.layout).removeprefix('torch.')}"


def foreign_weight(module: nn.Module) -> str | None:
    """The same of a layer's weight, in words for the coverage. One that is computed is not read: that may move its state."""
    if is_parametrized(module, "weight"):
        return None
    weight = getattr(module, "weight", None)
    reason = foreign(weight) if isinstance(weight, Tensor) else "no tensor"
    return reason and f"its weight is {reason}"
