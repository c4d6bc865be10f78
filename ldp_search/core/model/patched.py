"""A forward that somebody has put before that of a module's class (hooks of offloading and device maps, patches), intercepted.

What stands on the instance is called in the place of the class's forward, so a changed class alone would not be asked. It runs
as it is; its products are quantized beneath it.
"""

from __future__ import annotations

import functools

from torch import nn

from .swap import ATTRIBUTE


class Beneath:
    """In the place of a module's patched forward. original: that one."""

    def __init__(self, module: nn.Module, original, run):
        self.module, self.original, self.run = module, original, run
        functools.update_wrapper(self, original, updated=())  # its signature is read by transformers' Trainer

    def __call__(self, *args, **kwargs):
        if ATTRIBUTE not in self.module.__dict__:
            return self.original(*args, **kwargs)
        return self.run(self.module, lambda module, *args, **kwargs: self.original(*args, **kwargs), args, kwargs)


def is_patched(module: nn.Module) -> bool:
    """Whether a forward stands on the instance that is not intercepted."""
    forward = module.__dict__.get("forward")
    return forward is not None and not isinstance(forward, Beneath)


def intercept(module: nn.Module, run) -> None:
    """Have `run(module, forward, args, kwargs)` called in the place of a patched forward, if there is one."""
    if is_patched(module):
        module.__dict__["forward"] = Beneath(module, module.__dict__["forward"], run)


def release(module: nn.Module) -> None:
    """Undo `intercept`."""
    forward = module.__dict__.get("forward")
    if isinstance(forward, Beneath):
        module.__dict__["forward"] = forward.original
