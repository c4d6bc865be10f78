"""The mean training loss of an optimizer step, for the policies that read it, heard from the model itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LossListener:
    """Listens to the losses that a model returns, with the weight that each has in the step's loss.

    Whatever the loop does to a loss (divide it among micro-batches, weight it by labels, scale it for fp16) is in the gradient
    that backward brings to it. Only losses that backward reaches count.
    """

    def __init__(self) -> None:
        self._hook, self._sum = None, None

    def start(self, model: nn.Module) -> None:
        """Listen to `model` from now on, and to no other."""
        self.stop()
        self._hook = model.register_forward_hook(self._listen)

    def stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._sum = None

    def take(self) -> Tensor | None:
        """The loss of the step (0-d), None when backward went through none; the next one begins."""
        heard, self._sum = self._sum, None
        return heard

    def _listen(self, model, inputs, output) -> None:
        loss = loss_of(output)
        if model.training and loss is not None and loss.requires_grad:
            loss.register_hook(lambda weight: self._add(loss.detach() * weight.detach()))

    def _add(self, part: Tensor) -> None:
        self._sum = part if self._sum is None else self._sum + part


def loss_of(output: Any) -> Tensor | None:
    """The scalar loss of a model's output, where there is one: its field `loss`, the first of a tuple, or itself."""
    loss = output
    if hasattr(output, "keys"):
        loss = output.get("loss")
    elif isinstance(output, tuple | list):
        loss = next(iter(output), None)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None
