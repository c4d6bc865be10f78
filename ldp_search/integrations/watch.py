"""The picture of a training in a notebook, for transformers' Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ..api import controller
from ..notebook import Picture


class WatchCallback(TrainerCallback):
    """Draws `ldp.plot(kind)` below the cell again and again while the Trainer trains; outside of a notebook nothing.

    Args:
        kind: as of `ldp.plot`.
        every: seconds between two drawings.
    """

    def __init__(self, kind: str = "schedule", every: float = 5.0):
        self.kind, self.every = kind, every
        self._picture: Picture | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs: Any):
        self._picture = Picture(controller(model), self.kind, self.every) if state.is_world_process_zero else None

    def on_step_end(self, args, state, control, **kwargs: Any):
        if self._picture is not None:
            self._picture.refresh()

    def on_train_end(self, args, state, control, **kwargs: Any):
        if self._picture is not None:
            self._picture.refresh(now=True)
