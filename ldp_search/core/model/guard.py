"""Whose forward is under way: what an owner's mode may touch, what belongs to a layer inside it, what to no compiled graph."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch


class _Running(threading.local):
    """owners: the modes of the owners whose forward is under way in this thread, the innermost last; None: a layer's own."""

    def __init__(self) -> None:
        self.owners: list[Any] = []


running = _Running()


@contextmanager
def not_intercepted():
    """Within this context the running owners keep their hands off: a layer inside them computes."""
    if not running.owners:
        yield
        return
    running.owners.append(None)
    try:
        yield
    finally:
        running.owners.pop()


def outside_of_graphs(function: Callable) -> Callable:
    """`torch.compiler.disable`, which loads the compiler: half of the time that importing torch takes. Here only who uses it
    waits for it.
    """
    disabled: list[Callable] = []

    @functools.wraps(function)
    def call(*args, **kwargs):
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call
