"""Whose forward is under way: what an owner's mode may touch, and what belongs to a layer inside it."""

from __future__ import annotations

from contextlib import contextmanager

running: list = []
"""The modes of the owners whose forward is under way, the innermost last; None: a layer of its own."""


@contextmanager
def own_products():
    """Within this context the running owners keep their hands off: a layer inside them computes."""
    if not running:
        yield
        return
    running.append(None)
    try:
        yield
    finally:
        running.pop()
