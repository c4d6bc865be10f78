"""Budgets of the final bits: operations of inference and size of the weights, each as shares of what is allowed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

WITHIN = 1 + 1e-9
"""Share of a limit up to which it is kept: sums of many layers differ in their last digits."""


@dataclass(frozen=True)
class Limit:
    """A bound on the final bits.

    name: the field of the space that sets it. most: what it allows, in the field's unit. each: (layers,) share of it that a
    weight bit takes, or, where `products`, a weight bit times an input bit. unit: of `most`, in words.
    """

    name: str
    most: float
    each: Tensor
    products: bool
    unit: str

    def layer_costs(self, bits: Tensor) -> Tensor:
        """(..., layers) share of the limit that each layer takes at `bits` (..., layers, kinds); float64."""
        bits = bits.double()
        return self.each * (bits[..., 0] * bits[..., 1] if self.products else bits[..., 0])

    def share(self, bits: Tensor) -> float:
        """Of the limit that `bits` take; up to 1 it is kept."""
        return float(self.layer_costs(bits).sum())
