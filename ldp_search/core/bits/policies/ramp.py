"""Ramp: the bits rise linearly from the lowest to the highest."""

from __future__ import annotations

from dataclasses import dataclass

from ...registry import register
from .base import Schedule


@register("policy", "ramp")
@dataclass
class Ramp(Schedule):
    """From `first` to `last`, as fractions of the range (0 the lowest bits, 1 the highest)."""

    first: float = 0.0
    last: float = 1.0

    def fraction(self, progress):
        return self.first + (self.last - self.first) * progress
