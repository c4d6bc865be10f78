"""Relaxations: from the real-valued bits that a policy holds to the bits in force in the next step.

All are computed once per optimizer step, for all layers at once; the layers see one vector.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import Component, register


class Relaxation(Component, kind="relaxation"):
    """Base. `realize` maps real-valued bits (layers, kinds) to the bits in force; the gradient passes straight through.

    interpolates: bits in force may be fractional; a layer then evaluates both neighbouring bit-widths.
    """

    interpolates = False

    @abstractmethod
    def realize(
        self, bits: Tensor, previous: Tensor, hysteresis: float, progress: float, uniform: Callable[[], Tensor]
    ) -> Tensor:
        """Args:
        previous: bits in force so far. hysteresis: how far beyond k + 0.5 the real-valued bits must go for a change.
        uniform: call it for random numbers in [0, 1), like `bits` in shape, the same for coordinates that share their bits.
        """


@register("relaxation", "round")
@dataclass
class Round(Relaxation):
    """Straight-through rounding (the paper): b = round(real-valued bits)."""

    def realize(self, bits, previous, hysteresis, progress, uniform):
        rounded = torch.round(bits)
        return (
            torch.where((bits - previous).abs() <= 0.5 + hysteresis, torch.round(previous), rounded) if hysteresis else rounded
        )


@register("relaxation", "interpolate")
@dataclass
class Interpolate(Relaxation):
    """The two neighbouring bit-widths, mixed by the fraction (FracBits, arXiv:2007.02017): two evaluations a tensor."""

    interpolates = True

    def realize(self, bits, previous, hysteresis, progress, uniform):
        return bits.clone()


@register("relaxation", "sample")
@dataclass
class Sample(Relaxation):
    """One of the two neighbouring bit-widths, drawn anew each step (SDQ): the upper one with probability
    sigmoid(logit(fraction) / T). T = 1 is unbiased, T -> 0 is rounding; T is annealed geometrically over progress.
    """

    temperature: float = 1.0
    final_temperature: float = 0.05

    def __post_init__(self):
        if not 0 < self.final_temperature <= self.temperature:
            raise ValueError(
                f"Temperatures must satisfy 0 < final_temperature <= temperature; received {self.final_temperature} and "
                f"{self.temperature}."
            )

    def realize(self, bits, previous, hysteresis, progress, uniform):
        log_ratio = math.log(self.final_temperature / self.temperature)
        temperature = self.temperature * math.exp(log_ratio * min(max(progress, 0.0), 1.0))
        lower = torch.floor(bits)
        upper = torch.sigmoid(torch.logit(bits - lower) / temperature)  # logit(0) = -inf: integers stay what they are
        return lower + (uniform() < upper)
