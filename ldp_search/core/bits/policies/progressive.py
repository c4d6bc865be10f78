"""Progressive fractional quantization (PFQ of FracTrain, Fu et al. 2020, arXiv:2012.13113): more bits when the loss stalls."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...registry import register
from .base import Policy


@register("policy", "progressive")
@dataclass
class Progressive(Policy):
    """Moves to the next stage when all four recent drops of the mean loss (last five windows), divided by the mean loss of
    the first ten windows, are at most eps; then eps shrinks. Bits are kept within the ranges of the space.
    """

    forward_bits: tuple = (3, 4, 6, 8)
    grad_bits: tuple = (6, 6, 8, 8)
    window: int = 400  # optimizer steps
    eps: float = 0.05
    decay: float = 0.3
    needs_loss = True

    def __post_init__(self):
        if len(self.forward_bits) != len(self.grad_bits):
            raise ValueError(
                f"forward_bits and grad_bits need one value a stage; received {self.forward_bits} and {self.grad_bits}."
            )

    def begin(self):
        self.state = {"stage": 0, "eps": self.eps, "losses": [], "sum": None, "count": 0, "first": []}
        return self._bits()

    def _bits(self):
        stage, high = self.state["stage"], self.problem.high
        bits = torch.full_like(high, self.forward_bits[stage])
        bits[:, 2] = self.grad_bits[stage]
        return torch.minimum(torch.maximum(bits, self.problem.low), high)

    def step(self, signals):
        s = self.state
        s["sum"] = signals.loss.double() if s["sum"] is None else s["sum"] + signals.loss.double()
        s["count"] += 1
        if s["count"] == self.window:  # the only moment at which the host waits for the device
            mean = float(s["sum"]) / self.window
            s["sum"], s["count"] = None, 0
            s["first"] = (s["first"] + [mean])[:10]
            s["losses"] = (s["losses"] + [mean])[-5:]
            self._maybe_advance()
        return self._bits()

    def _maybe_advance(self) -> None:
        s = self.state
        if len(s["losses"]) < 5 or s["stage"] == len(self.forward_bits) - 1:
            return
        scale = sum(s["first"]) / len(s["first"])
        drops = [(a - b) / scale for a, b in zip(s["losses"], s["losses"][1:], strict=False)]
        if max(drops) <= s["eps"]:
            s["stage"], s["eps"], s["losses"] = s["stage"] + 1, s["eps"] * self.decay, []
