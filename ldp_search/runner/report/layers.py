"""One record a layer: what it is, the bits it ends with, and its shares of the MACs and of the training cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...core.bits.cost import training_bitops
from ...core.bits.specs import computed
from .load import Run, number
from .schedule import KINDS, Schedule

NONE = math.nan


@dataclass
class Layer:
    """A quantized layer of a run. Unknown numbers are NaN, and bits of a gradient that is never computed; shares are fractions
    of the whole model.

    weight_grad: bits of the gradient in dL/dw, where the run splits them (`grad` then: in dL/dx); else NaN. backward_macs: of
    dL/dx and dL/dw.
    """

    name: str
    kind: str = ""
    searched: bool | None = None
    macs: float = NONE
    backward_macs: tuple[float, ...] = (NONE, NONE)
    weight: float = NONE
    input: float = NONE
    grad: float = NONE
    weight_grad: float = NONE
    mac_share: float = NONE
    cost_share: float = NONE


def layers_of(run: Run) -> list[Layer]:
    """The layers of a run in forward order, from its allocation and, while there is none, from its schedule."""
    layers = _listed(run)
    _add_shares(run, layers, _recorded(run))
    _hide_uncomputed(layers)
    return layers


def _recorded(run: Run) -> dict[str, int]:
    """{layer: its column in the schedule}."""
    return {name: i for i, name in enumerate(run.schedule.layers)} if run.schedule else {}


def _listed(run: Run) -> list[Layer]:
    """The layers without their shares."""
    recorded = _recorded(run)
    listed = run.allocation.get("layers")
    listed = listed if isinstance(listed, dict) else {}
    layers = []
    for name in list(recorded) + [name for name in listed if name not in recorded]:
        row = listed.get(name)
        row = row if isinstance(row, dict) else {}
        macs = _or_nan(row.get("macs"))
        layer = Layer(name, str(row.get("kind", "")), row.get("searched"), macs, _backward(row.get("backward_macs"), macs))
        for kind in KINDS:
            known = name in recorded and kind in run.schedule.bits
            last = run.schedule.bits[kind][-1, recorded[name]] if known else NONE
            value = number(row.get(kind))
            setattr(layer, kind, float(last) if value is None else value)
        layers.append(layer)
    return layers


def total_macs(run: Run, layers: list[Layer]) -> float:
    """MACs of the whole model: of the quantized layers and of what is left out."""
    return sum(layer.macs for layer in layers if layer.macs == layer.macs) + sum(macs for _, macs, _ in left_out(run))


def left_out(run: Run) -> list[tuple[str, float, str]]:
    """(name, MACs, reason) of the products that are not quantized, the largest first."""
    rows = run.coverage.get("left_out")
    found = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, list | tuple):
            row = dict(zip(("name", "macs", "reason"), row, strict=False))
        if isinstance(row, dict):
            found.append((str(row.get("name", "")), number(row.get("macs")) or 0.0, str(row.get("reason", ""))))
    return sorted(found, key=lambda row: -row[1])


def _add_shares(run: Run, layers: list[Layer], recorded: dict[str, int]) -> None:
    """Shares of the MACs of the model, and of the training cost of all quantized layers over the whole run."""
    everything = total_macs(run, layers)
    costs = np.array([_mean_cost(run, layer, recorded) for layer in layers])
    spent = np.nansum(costs)
    for layer, cost in zip(layers, costs, strict=True):
        layer.mac_share = layer.macs / everything if everything else NONE
        layer.cost_share = float(cost / spent) if spent > 0 else NONE


def _hide_uncomputed(layers: list[Layer]) -> None:
    """Take away the bits of gradients that are never computed: they round nothing."""
    for layer in layers:
        kinds = KINDS[:3] if math.isnan(layer.weight_grad) else KINDS
        for kind, used in zip(kinds, computed(len(kinds), layer.macs, layer.backward_macs), strict=True):
            if not used:
                setattr(layer, kind, NONE)


def _mean_cost(run: Run, layer: Layer, recorded: dict[str, int]) -> float:
    """Bit operations of a layer in a training step, averaged over the run (see `core.bits.cost.training_bitops`)."""
    if layer.name in recorded:
        kinds = [bits[:, recorded[layer.name]] for bits in run.schedule.bits.values()]
        return float(np.sum(run.schedule.durations * _bitops(layer, np.stack(kinds, axis=-1))))
    kinds = [getattr(layer, kind) for kind in KINDS]
    return float(_bitops(layer, np.array(kinds[:3] if math.isnan(layer.weight_grad) else kinds)))


def _bitops(layer: Layer, bits: np.ndarray) -> np.ndarray:
    """Bit operations of a layer at bits (..., kinds)."""
    macs, backward = (torch.tensor(of, dtype=torch.float64) for of in (layer.macs, layer.backward_macs))
    return training_bitops(macs, torch.from_numpy(bits.astype(np.float64)), backward).numpy()


def shown(run: Run) -> Schedule:
    """The schedule of a run without the bits of gradients that are never computed: NaN."""
    schedule, listed = run.schedule, _listed(run)
    bits = {kind: values.copy() for kind, values in schedule.bits.items()}
    _hide_uncomputed(listed)
    layers = {layer.name: layer for layer in listed}
    for column, name in enumerate(schedule.layers):
        for kind in bits:
            if math.isnan(getattr(layers[name], kind)):
                bits[kind][:, column] = NONE
    return Schedule(schedule.progress, schedule.layers, bits)


def _backward(value, macs: float) -> tuple[float, ...]:
    """MACs of the two gradients; as many as of the forward where a run does not tell."""
    return (_or_nan(value[0]), _or_nan(value[1])) if isinstance(value, list) and len(value) == 2 else (macs, macs)


def _or_nan(value) -> float:
    found = number(value)
    return NONE if found is None else found
