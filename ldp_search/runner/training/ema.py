"""An exponential moving average of the weights, which is what is evaluated and saved where it is asked for (`ema=0.999`).

The shadow holds parameters and floating-point buffers; the model itself goes on with its own. As in timm, the average follows
faster in the beginning: decay = min(ema, (1 + steps) / (10 + steps)).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.steps = model, decay, 0
        self.shadow = [tensor.detach().clone() for tensor in self._tensors()]

    def _tensors(self) -> list[Tensor]:
        found = [*self.model.parameters(), *self.model.buffers()]
        return [tensor.detach() for tensor in found if tensor.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, self._tensors(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the average's values."""
        own = [tensor.clone() for tensor in self._tensors()]
        try:
            self.apply()
            yield
        finally:
            torch._foreach_copy_(self._tensors(), own)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the model the average's values for good."""
        torch._foreach_copy_(self._tensors(), self.shadow)

    def state_dict(self) -> dict:
        return {"steps": self.steps, "shadow": self.shadow}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        torch._foreach_copy_(
            self.shadow, [tensor.to(own.device) for tensor, own in zip(state["shadow"], self.shadow, strict=True)]
        )
