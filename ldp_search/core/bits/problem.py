"""What a policy knows of the network, and what one step tells it: all that stands between a controller and a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .cost import inference_bitops, training_bitops, training_bitops_gradient
from .latency import Latency
from .limits import InferenceLimit, LatencyLimit, Limit, SizeLimit
from .space import FULL_PRECISION

GOLDEN = 0.618034  # whose multiples lie evenly between whole numbers


@dataclass
class Problem:
    """What a policy may know of the network. A coordinate is (layer, kind), kind being weight, input, grad.

    low, high: (layers, kinds) ranges; equal where the bits are fixed. macs: (layers,), per sample.
    group: (layers, kinds) index of the coordinate's group (by granularity and ties), any where the bits are fixed. groups: how
    many; the searched coordinates of one share their range. weight_numel: (layers,) of the weights that each owns.
    containers: the numbers of bits that searched weights and inputs may have, low and high among them; None: any. counted:
    whether the MACs are the network's; False: all alike, and costs say nothing yet. latency: of the layers, where measured.
    backward: (layers, 2) MACs of dL/dx and of dL/dw; None: as many as of the forward.
    """

    layers: list[str]
    low: Tensor
    high: Tensor
    macs: Tensor
    group: Tensor
    groups: int
    target_cost: float | None = None
    cost_weight: float | None = None
    seed: int = 0
    weight_numel: Tensor | None = None
    target_inference: float | None = None
    target_size: float | None = None
    containers: tuple[int, ...] | None = None
    counted: bool = True
    target_latency: float | None = None
    latency: Latency | None = None
    backward: Tensor | None = None

    def to(self, device) -> Problem:
        names = ("low", "high", "macs", "group", "weight_numel", "latency", "backward")
        held = {name: value for name in names if (value := getattr(self, name)) is not None}
        return dataclasses.replace(self, **{name: value.to(device) for name, value in held.items()})

    @property
    def searched(self) -> Tensor:
        """(layers, kinds) mask of the coordinates that have a range."""
        return self.high > self.low

    @property
    def levels(self) -> Tensor:
        """(levels,) every number of bits that a coordinate may take, but for full precision."""
        low, high = self.low.min(), torch.where(self.high < FULL_PRECISION, self.high, 0).max()
        return torch.arange(float(low), float(torch.maximum(low, high)) + 1, dtype=torch.float32, device=self.low.device)

    @property
    def limits(self) -> list[Limit]:
        """The budgets of the final bits."""
        found: list[Limit] = []
        if (most := self.target_inference) is not None:
            highest = inference_bitops(self.macs, self.high.double()).sum()
            unit = "of the operations at the highest bits"
            found.append(InferenceLimit("target_inference", most, unit, self.macs / highest))
        if (most := self.target_size) is not None and self.weight_numel is not None:
            found.append(SizeLimit("target_size", most, "MiB", self.weight_numel))
        if (most := self.target_latency) is not None and self.latency is not None:
            unit = "of the predicted latency at the highest bits"
            found.append(LatencyLimit("target_latency", most, unit, self.latency, float(self.latency.total(self.high))))
        return found

    def in_force(self, bits: Tensor) -> Tensor:
        """Whole numbers from `bits` (layers, kinds): the nearest, and for searched weights and inputs the next container."""
        bits = torch.round(bits)
        if self.containers is None:
            return bits
        widths = torch.tensor(self.containers, dtype=bits.dtype, device=bits.device)
        place = torch.searchsorted(widths, bits.contiguous()).clamp(max=len(widths) - 1)
        return torch.where(self.searched & self._forward, widths[place], bits)

    def beside(self, bits: Tensor, sign: float) -> Tensor:
        """The next number up (sign 1) or down (-1) of every searched coordinate; outside of its range where there is none."""
        trial = bits + torch.where(self.searched, sign, 0.0).to(bits)
        if self.containers is None:
            return trial
        widths = torch.tensor(self.containers, dtype=bits.dtype, device=bits.device)
        place = torch.searchsorted(widths, bits.contiguous(), right=sign > 0) - int(sign < 0)
        known = self.searched & self._forward & (place >= 0) & (place < len(widths))
        return torch.where(known, widths[place.clamp(0, len(widths) - 1)], trial)

    @property
    def _forward(self) -> Tensor:
        """(kinds,) mask of the weights and the inputs."""
        return torch.arange(self.low.shape[1], device=self.low.device) < 2

    def allowed(self, levels: Tensor) -> Tensor:
        """(layers, kinds, levels) mask of the numbers of bits that a coordinate may have."""
        within = (levels >= self.low[..., None]) & (levels <= self.high[..., None])
        if self.containers is None:
            return within
        widths = torch.tensor(self.containers, dtype=levels.dtype, device=levels.device)
        return within & (torch.isin(levels, widths) | ~(self.searched & self._forward)[..., None])

    def layer_costs(self, bits: Tensor) -> Tensor:
        """(..., layers) share of each layer in the relative training cost at `bits` (..., layers, kinds); float64."""
        return training_bitops(self.macs, bits.double(), self.backward) / self._dearest

    def relative_latency(self, bits: Tensor) -> float | None:
        """Predicted latency at `bits` (layers, kinds), relative to the highest bits; None where none was measured."""
        return None if self.latency is None else float(self.latency.total(bits) / self.latency.total(self.high))

    def relative_cost(self, bits: Tensor) -> Tensor:
        """Training BitOPs at `bits` (..., layers, kinds), relative to the highest bits; float64."""
        return training_bitops(self.macs, bits.double(), self.backward).sum(-1) / self._dearest

    def cost_gradient(self, bits: Tensor) -> Tensor:
        """d relative_cost / d bits, (layers, kinds)."""
        return training_bitops_gradient(self.macs, bits.double(), self.backward) / self._dearest

    @cached_property
    def _dearest(self) -> Tensor:
        """Training BitOPs at the highest bits; once, since a search for bits asks at every trial."""
        with torch.inference_mode(False):  # whoever asks first: a tensor of that mode would be none for autograd
            return training_bitops(self.macs, self.high.double(), self.backward).sum()

    @property
    def apart(self) -> Tensor:
        """(layers, kinds) numbers from -0.5 to 0.5, evenly spread, one a group: an order for bits that are equal."""
        return (torch.arange(self.groups, dtype=torch.float64, device=self.low.device) * GOLDEN % 1.0 - 0.5)[self.group]

    @property
    def members(self) -> Tensor:
        """(groups,) number of searched coordinates of each group."""
        return self.pool(torch.ones_like(self.low))

    def mean(self, values: Tensor) -> Tensor:
        """(layers, kinds) -> (groups,): means over the searched coordinates of each group."""
        return self.pool(values) / self.members

    def pool(self, values: Tensor) -> Tensor:
        """(layers, kinds) -> (groups,): sums over the searched coordinates of each group."""
        values = torch.where(self.searched, values, 0).flatten()
        return torch.zeros(self.groups, dtype=values.dtype, device=values.device).index_add_(0, self.group.flatten(), values)

    def spread(self, values: Tensor) -> Tensor:
        """(..., groups) -> (..., layers, kinds): each coordinate takes its group's value, within its own range."""
        return torch.minimum(torch.maximum(values[..., self.group], self.low), self.high)


@dataclass
class Signals:
    """What one optimizer step tells the policy.

    progress: end of the step, 0 to 1. bits: (layers, kinds) in force during it. grads: d loss / d bits, of that shape, averaged
    over the ranks. loss: mean training loss (0-d) or None. spent: integral of the relative cost over progress so far (0-d).
    warming_up: the learning rate still rises, so that damages measured now say little about the steps to come.
    damage: call it for the (layers, kinds, levels) damages of `bits.damage`, on the CPU; None before anything is measured.
    """

    progress: float
    bits: Tensor
    grads: Tensor | None
    loss: Tensor | None
    spent: Tensor
    damage: Callable[[], Tensor] | None = None
    warming_up: bool = False
