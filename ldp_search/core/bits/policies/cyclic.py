"""Cyclic precision training (CPT, Fu et al. 2021, arXiv:2101.09868)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...registry import register
from .base import Schedule

ROUNDING = 1e-9  # a cycle that ends at progress k / cycles must begin anew there, whatever the last digit


@register("policy", "cyclic")
@dataclass
class Cyclic(Schedule):
    """b_t = rint(b_min + (b_max - b_min)/2 * (1 + cos(pi (t mod T)/T + pi))), T = steps / cycles: rises, then jumps back.

    A cycle needs some steps to rise in: give a short run fewer cycles.
    """

    cycles: int = 32

    def fraction(self, progress):
        phase = (progress * self.cycles + ROUNDING) % 1
        return 0.5 * (1 + math.cos(math.pi * phase + math.pi))
