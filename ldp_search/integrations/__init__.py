"""Other people's training loops (docs/integrations.md shows each).

LDPCallback              transformers' Trainer: callbacks=[LDPCallback()]
attach_to_optimizer      loops that cannot be changed much, such as timm's train.py: the step rides on the optimizer's

A loop of one's own, with or without Accelerate, needs neither: it calls `ldp_search.controller(model).step(progress)`.
"""

from .optimizer import attach_to_optimizer

__all__ = ["LDPCallback", "attach_to_optimizer"]


def __getattr__(name: str):
    if name != "LDPCallback":
        raise AttributeError(f"module 'ldp_search.integrations' has no attribute {name!r}")
    from .trainer import LDPCallback  # here, so that the others do not need transformers

    return LDPCallback
