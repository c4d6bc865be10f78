"""What rounding is expected to cost, said beforehand: the damage of the bits in force, and the least damage at every cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .. import tables
from ..bits.cost import inference_bitops, weight_mib
from ..bits.least_damage import LeastDamage
from ..bits.within_limits import search_of
from .search_problem import computed_of

if TYPE_CHECKING:
    from .controller import Controller
    from .damage_sensor import DamageSensor

KINDS = {3: ("weight", "input", "grad"), 4: ("weight", "input", "grad", "weight_grad")}


class Damage(NamedTuple):
    """Expected loss from rounding, at the bits in force.

    layers: {layer: {kind: loss}}. kinds: {kind: loss}, summed over the layers. total: over all.
    """

    layers: dict[str, dict[str, float]]
    kinds: dict[str, float]
    total: float

    def table(self) -> list[tuple[str, ...]]:
        """Names of the columns, a row a layer, and the sum."""
        rows = [(name, *(f"{loss:.2e}" for loss in kinds.values())) for name, kinds in self.layers.items()]
        return [("layer", *self.kinds), *rows, ("all layers", *(f"{loss:.2e}" for loss in self.kinds.values()))]

    def __str__(self) -> str:
        return f"expected loss from rounding {self.total:.3g}\n{tables.as_text(self.table())}"

    def _repr_html_(self) -> str:
        names, *rows = self.table()
        return tables.lines([f"expected loss from rounding {self.total:.3g}"]) + tables.as_html(names, rows)


class FrontPoint(NamedTuple):
    """cost: relative training cost of a step. damage: the least expected loss from rounding. bits: {layer: its bits}.

    inference: relative operations of inference. weight_mib: of the weights. latency: relative, as predicted (None: no table).
    """

    cost: float
    damage: float
    bits: dict[str, tuple[int, ...]]
    inference: float
    weight_mib: float
    latency: float | None = None


class Front(NamedTuple):
    """points: from the dearest to the cheapest. now: the bits in force, which may lie above the line of the points."""

    points: list[FrontPoint]
    now: FrontPoint

    def table(self) -> list[tuple[str, ...]]:
        """Names of the columns, a row a point, and the bits in force."""
        named = [*(("", point) for point in self.points), ("in force", self.now)]
        rows = [
            (f"{p.cost:.3f}", f"{p.damage:.2e}", f"{p.inference:.3f}", f"{p.weight_mib:.4g}", *_latency(p), what)
            for what, p in named
        ]
        latency = ["latency"] if _latency(self.now) else []
        return [("training cost", "expected loss", "inference cost", "weights, MiB", *latency, ""), *rows]

    def __str__(self) -> str:
        return tables.as_text(self.table())

    def _repr_html_(self) -> str:
        names, *rows = self.table()
        return tables.as_html(names, rows)

    def at(self, cost: float) -> FrontPoint:
        """The point of least damage that costs no more.

        Raises:
            ValueError: even the lowest bits cost more.
        """
        within = [point for point in self.points if point.cost <= cost + 1e-9]
        if not within:
            raise ValueError(
                f"No bits of this space cost {cost}: the lowest cost {self.points[-1].cost:.3f}. Widen bits=... down."
            )
        return min(within, key=lambda point: point.damage)


def _latency(point: FrontPoint) -> list[str]:
    return [] if point.latency is None else [f"{point.latency:.3f}"]


def damage(controller: Controller) -> Damage:
    """`Damage` of a controller whose training has measured it; 0 of a gradient that is never computed."""
    found = search_now(controller).damage(torch.round(controller.tensors.bits).cpu().double())
    found = found * torch.tensor(computed_of(controller.specs, controller.space, found.shape[1]), device="cpu")
    kinds = KINDS[found.shape[1]]
    layers = {name: dict(zip(kinds, row, strict=True)) for name, row in zip(controller.specs, found.tolist(), strict=True)}
    return Damage(layers, dict(zip(kinds, found.sum(0).tolist(), strict=True)), float(found.sum()))


def front(controller: Controller, points: int) -> Front:
    """`Front` of a controller whose training has measured it."""
    search = search_now(controller)
    now = search.choice(torch.round(controller.tensors.bits).cpu().double())
    return Front([_point(controller, choice) for choice in search.front(points)], _point(controller, now))


def _point(controller: Controller, choice) -> FrontPoint:
    rows = (tuple(int(b) for b in row) for row in choice.bits.tolist())
    p = controller.problem.to("cpu")
    inference, highest = (float(inference_bitops(p.macs, bits).sum()) for bits in (choice.bits, p.high.double()))
    size = 0.0 if p.weight_numel is None else float(weight_mib(p.weight_numel, choice.bits).sum())
    each, latency = dict(zip(controller.specs, rows, strict=True)), p.relative_latency(choice.bits)
    return FrontPoint(choice.cost, choice.damage, each, inference / highest, size, latency)


def sensor_of(controller: Controller) -> DamageSensor:
    """Raises ValueError where the policy does not measure what rounding costs."""
    if controller.sensor is None:
        raise ValueError(
            f"The policy {controller.policy.name!r} does not measure what rounding costs the loss; "
            "apply(model, policy='learned', ...) does."
        )
    return controller.sensor


def search_now(controller: Controller) -> LeastDamage:
    """Raises ValueError where nothing is measured."""
    sensor, every = sensor_of(controller), controller.space.sense_every
    if not sensor.ready:
        when = "every training step" if every == 1 else f"the first training step, and every {every} steps from there"
        raise ValueError(
            f"Nothing is measured yet: that happens at {when}. Run a forward and a backward in training mode, and ldp.step()."
        )
    curves = sensor.curves(controller.tensors.bits.shape[1])
    return search_of(controller.problem.to("cpu"), curves, controller.levels.cpu())
