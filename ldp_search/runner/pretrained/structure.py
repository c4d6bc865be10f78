"""What two models have in common: classes without what was put before them, names and shapes of tensors, modules."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from ...core.model.swap import Swapped

_TRAINING_ONLY = ("Drop", "Identity", "Stochastic")  # in a module's class: without effect in evaluation


def plain_class(module: nn.Module) -> type:
    """The class of a module before `apply` and before fully_shard, which puts one of its own before it."""
    made = [
        cls for cls in type(module).__mro__ if issubclass(cls, Swapped) or any(c.__name__ == "FSDPModule" for c in cls.__mro__)
    ]
    return next(cls for cls in type(module).__mro__ if cls not in made)


def shape_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str | None:
    """In words, how the names or shapes of two state dicts differ; None where they are equal."""
    missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or more:
        return "; ".join([f"it lacks {missing[:5]}"] * bool(missing) + [f"it has {more[:5]} besides"] * bool(more))
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            return f"{name} is {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
    return None


def difference(found: nn.Module, expected: nn.Module) -> str | None:
    """The first difference of two models: tensors, or modules that count in evaluation; None without one."""
    shapes = shape_difference(found.state_dict(), expected.state_dict())
    if shapes is not None:
        return shapes
    first, second = _structure(found), _structure(expected)
    for name in sorted(set(first) | set(second)):
        if first.get(name) != second.get(name):
            return f"{name or 'the model itself'} is {first.get(name)} instead of {second.get(name)}"
    return None


def _structure(model: nn.Module) -> dict[str, str]:
    """{module: class and options} of what computes in evaluation."""
    out = {}
    for name, module in model.named_modules():
        cls = plain_class(module).__name__
        if not any(word in cls for word in _TRAINING_ONLY):
            leaf = next(module.children(), None) is None and inspect.ismethod(getattr(module, "extra_repr", None))
            out[name] = f"{cls}({module.extra_repr() if leaf else ''})"
    return out
