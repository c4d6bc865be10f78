"""Changing the class of a module in place, by exact type, and back; names, tensors, hooks and ties stay.

A made class stands before the original one, and its forward is that of a mixin, which asks what `swap` left on the module.
"""

from __future__ import annotations

from functools import cache, wraps
from typing import Any

import torch
from torch import nn

from ..older_torch import COMPILES, refuse_to_compile

ATTRIBUTE = "_ldp_site"  # in the layer's __dict__: neither parameter, buffer nor submodule


class Swapped:
    """Base of the mixins that stand before the original class. `run` takes the place of its forward."""

    def __init_subclass__(cls, **options):
        """Nothing: the original class's own hook (a registry, required arguments) is for classes that people write."""

    def run(self, forward, args: tuple, kwargs: dict):
        raise TypeError(f"{type(self).__name__} must define run(forward, args, kwargs).")

    @classmethod
    def made_from(cls, original: type) -> tuple[str, dict]:
        """Name and attributes of the class made from `original`: its own name, which transformers writes into a checkpoint."""
        return original.__name__, {"__qualname__": original.__qualname__}

    def __reduce_ex__(self, protocol):
        # Made classes have no importable name: pickle and copy remake them from the original class.
        made: Any = next(cls for cls in type(self).__mro__ if "_ldp_original" in cls.__dict__)
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__  # recurrent layers leave something out
        return _remake, (made._ldp_original, made.__bases__[0]), state


def _remake(cls: Any, mixin: Any) -> nn.Module:
    made = quantized_class(cls, mixin)
    return made.__new__(made)


@cache
def quantized_class(cls: Any, mixin: Any) -> Any:
    """`mixin` before a class. The signature of its forward stays, which transformers' Trainer reads."""

    @wraps(cls.forward)
    def forward(self, *args, **kwargs):
        if not COMPILES and torch.compiler.is_dynamo_compiling():
            refuse_to_compile()
        return mixin.run(self, cls.forward, args, kwargs)

    names = {"forward": forward, "_ldp_original": cls, "__doc__": cls.__doc__, "__module__": cls.__module__}
    name, more = mixin.made_from(cls)
    return type(name, (mixin, cls), names | more)


@cache
def original_class(made: Any) -> Any:
    """The class that a module had before `swap`, also where somebody else (FSDP) has put a class of theirs before ours."""
    if not issubclass(made, Swapped):
        return made
    if "_ldp_original" in made.__dict__:
        return original_class(made._ldp_original)
    names = {k: v for k, v in made.__dict__.items() if k not in ("__dict__", "__weakref__")}
    bases, name = tuple(original_class(base) for base in made.__bases__), made.__name__
    for base, original in zip(made.__bases__, bases, strict=True):
        name = name.replace(base.__name__, original.__name__)  # FSDPQuantLinear -> FSDPLinear; FSDPQuantumHead stays
    return type(name, bases, names)


def swap(module: Any, record: Any, mixin: Any) -> None:
    """Put `mixin` before the class of `module`, in place; record: what its forward asks (a site, a plan)."""
    cls: Any = type(module)
    module.__class__ = quantized_class(cls, mixin)
    module.__dict__[ATTRIBUTE] = record


def unswap(module: Any) -> None:
    """Undo every `swap` of a module, exactly."""
    cls: Any = type(module)
    module.__class__ = original_class(cls)
    module.__dict__.pop(ATTRIBUTE, None)
