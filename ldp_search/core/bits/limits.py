"""Budgets of the final bits: each a sum over layers of a function of the layer's bits, bounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .cost import inference_bitops, weight_mib
from .latency import Latency

WITHIN = 1 + 1e-9
"""Share of a limit up to which it is kept: sums of many layers differ in their last digits."""


@dataclass(frozen=True)
class Limit(ABC):
    """A bound on the final bits.

    name: the field of the space that sets it. most: what it allows, in the field's unit. unit: of `most`, in words.
    together: weights and inputs of a layer may have to move at once, since either alone changes nothing; and fewer bits may
    take more. least_at: what bits take least, in words.
    """

    name: str
    most: float
    unit: str
    together: ClassVar[bool] = False
    least_at: ClassVar[str] = "the lowest bits"

    @abstractmethod
    def layer_values(self, bits: Tensor) -> Tensor:
        """(..., layers) what each layer takes at `bits` (..., layers, kinds), in the field's unit; float64. Of that layer's
        bits alone, in whatever way: the search tries all of them.
        """

    def layer_costs(self, bits: Tensor) -> Tensor:
        """(..., layers) share of the limit that each layer takes."""
        return self.layer_values(bits) / self.most

    def share(self, bits: Tensor) -> float:
        """Of the limit that `bits` (layers, kinds) take; up to 1 it is kept."""
        return float(self.layer_costs(bits).sum())


@dataclass(frozen=True)
class InferenceLimit(Limit):
    """Of the operations of inference. macs: (layers,), divided by those at the highest bits."""

    macs: Tensor

    def layer_values(self, bits: Tensor) -> Tensor:
        return inference_bitops(self.macs, bits.double())


@dataclass(frozen=True)
class SizeLimit(Limit):
    """Of the weights' MiB. weight_numel: (layers,)."""

    weight_numel: Tensor

    def layer_values(self, bits: Tensor) -> Tensor:
        return weight_mib(self.weight_numel, bits.double())


@dataclass(frozen=True)
class LatencyLimit(Limit):
    """Of the predicted latency. reference: microseconds at the highest bits."""

    latency: Latency
    reference: float
    together: ClassVar[bool] = True
    least_at: ClassVar[str] = "the fastest containers everywhere"

    def layer_values(self, bits: Tensor) -> Tensor:
        return self.latency.layer_times(bits) / self.reference

    def share(self, bits: Tensor) -> float:
        return float(self.latency.total(bits)) / self.reference / self.most
