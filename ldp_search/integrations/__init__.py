"""Other people's training loops (docs/integrations.md shows each).

LDPCallback              transformers' Trainer: callbacks=[LDPCallback()]
WatchCallback            beside it in a notebook: the schedule as a picture that is drawn again while it trains
attach_to_optimizer      loops that cannot be changed much, such as timm's train.py: the step rides on the optimizer's

A loop of one's own, with or without Accelerate, needs neither: it calls `ldp_search.controller(model).step(progress)`.
"""

from importlib import import_module

from .optimizer import attach_to_optimizer

_NEED_TRANSFORMERS = {"LDPCallback": ".trainer", "WatchCallback": ".watch"}

__all__ = ["LDPCallback", "WatchCallback", "attach_to_optimizer"]


def __getattr__(name: str):
    if name not in _NEED_TRANSFORMERS:
        raise AttributeError(f"module 'ldp_search.integrations' has no attribute {name!r}")
    return getattr(import_module(_NEED_TRANSFORMERS[name], __name__), name)
