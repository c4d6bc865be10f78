"""The table of `ldp.summary()`: text, and HTML where a notebook asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import tables
from ..bits.cost import Cost
from ..bits.specs import AnyBits, LayerSpec
from .strays import find_strays, refrozen, some

if TYPE_CHECKING:
    from .controller import Controller


KINDS = {3: ("w", "x", "g"), 4: ("w", "x", "gx", "gw")}
"""Bits of weights, inputs and gradients; of each gradient where they are split."""


class Summary(str):
    """The text of `ldp.summary()`, which a notebook shows as a table.

    columns: of its table. rows: one a layer. notes: the lines below them.
    """

    columns: Sequence[str]
    rows: Sequence[tuple]
    notes: Sequence[str]

    def __new__(cls, text: str, columns: Sequence[str] = (), rows: Sequence[tuple] = (), notes: Sequence[str] = ()) -> Summary:
        self = super().__new__(cls, text)
        self.columns, self.rows, self.notes = columns, rows, notes
        return self

    def _repr_html_(self) -> str:
        bits = range(4, len(self.columns) - 1)
        return tables.as_html(self.columns, self.rows, bits) + tables.lines(self.notes)


def summarize(controller: Controller) -> Summary:
    """Layers with their MACs, ranges and bits; then the cost and the coverage."""
    problem, bits, changed = controller.problem, controller.bits(), refrozen(controller)
    ranges = [_ranges(low, high) for low, high in zip(problem.low.tolist(), problem.high.tolist(), strict=True)]
    rows: list[tuple] = [
        (name, spec.kind, spec.macs, spec.weight_numel, *_shown(bits[name], None if name in changed else spec), each)
        for (name, spec), each in zip(controller.layers.items(), ranges, strict=True)
    ]
    kinds = KINDS[problem.low.shape[1]]
    width = max([len("layer"), *(min(len(name), 48) for name in bits)])
    lines = [f"{'layer':<{width}}  {'kind':<14} {'MACs':>12} {'weights':>10}  {' '.join(f'{k:>2}' for k in kinds)}  range"]
    for name, kind, macs, weights, *numbers, each in rows:
        shown = " ".join(f"{n:>2}" for n in numbers)
        lines.append(f"{elide(name, width):<{width}}  {kind:<14} {macs:>12,} {weights:>10,}  {shown}  {each}")
    notes = _notes(controller)
    columns = ("layer", "kind", "MACs", "weights", *kinds, "range")
    return Summary("\n".join([*lines, *notes]), columns, rows, notes)


def _shown(bits: AnyBits, spec: LayerSpec | None) -> list[int | str]:
    """The bits of a layer, and a dash for those of a gradient that is never computed. spec: None: all are shown."""
    if spec is None:
        return [*bits]
    return [number if used else "-" for number, used in zip(bits, spec.computes(bits), strict=True)]


def _notes(controller: Controller) -> list[str]:
    """Cost, coverage, expected loss, arithmetic, and what is left out."""
    cost, coverage = controller.cost(), controller.coverage
    if (profile := controller.profile) is None:
        return ["MACs are not counted yet: give example_inputs to apply(), or run one forward."]
    lines = [
        f"training {short(cost.training_bitops / 1e9)} GBitOPs a sample = {short(cost.relative)} of the highest bits; "
        f"inference {short(cost.inference_bitops / 1e9)} GBitOPs = {short(cost.relative_inference)}; "
        f"weights {short(cost.weight_mib)} MiB{_latency(cost)}",
        *_budgets(controller, cost),
        *_uncomputed(controller),
        f"{coverage.share:.1%} of the MACs go through quantized products; counted on inputs {profile.inputs}",
    ]
    if controller.sensor is not None and controller.sensor.ready:
        found = controller.damage()
        each = ", ".join(f"{kind} {value:.2g}" for kind, value in found.kinds.items() if value)
        lines.append(f"expected loss from rounding {found.total:.3g} ({each})")
    if arithmetic := controller.backend.report(list(controller.bits())):
        lines.append(arithmetic)
    lines += [f"  left out: {item.name}: {item.macs:,} MACs ({item.reason})" for item in coverage.left_out]
    return lines + _strays(find_strays(controller))


def _latency(cost: Cost) -> str:
    """What the space's table predicts."""
    if cost.latency_ms is None or cost.relative_latency is None:
        return ""
    return f"; latency {short(cost.latency_ms)} ms as predicted = {short(cost.relative_latency)}"


def _uncomputed(controller: Controller) -> list[str]:
    """What of the backward pass is in no cost."""
    layers = controller.layers.values()
    counts = [sum(layer.macs > layer.backward_macs[which] for layer in layers) for which in (0, 1)]
    each = [f"{name} of {count}" for name, count in zip(("dL/dx", "dL/dw"), counts, strict=True) if count]
    lines = [f"never computed, and so not counted: {', '.join(each)} of {len(layers)} layers"] if each else []
    if changed := refrozen(controller):
        lines.append(f"frozen or unfrozen since they were counted, so that their costs are wrong: {some(changed)}")
    return lines


def _budgets(controller: Controller, cost: Cost) -> list[str]:
    """A line on how far each budget is used, where the final bits have budgets."""
    space, out = controller.space, []
    if space.target_cost is not None:
        out.append(f"training {short(cost.mean_relative)} of {space.target_cost:g} so far")
    if space.target_inference is not None:
        out.append(f"inference {short(cost.relative_inference)} of {space.target_inference:g}")
    if space.target_size is not None:
        out.append(f"weights {short(cost.weight_mib)} of {space.target_size:g} MiB")
    if space.target_latency is not None and cost.relative_latency is not None:
        out.append(f"latency {short(cost.relative_latency)} of {space.target_latency:g}")
    return ["budgets: " + "; ".join(out)] if controller.problem.limits else []


def _strays(found) -> list[str]:
    """What no forward reaches, and what came in after `apply`."""
    unreached = [f"  no forward has reached {name}" for name in found.unreached]
    return unreached + [f"  in floating point, since it came in after apply(): {name}" for name in found.newcomers]


def _ranges(low: list, high: list) -> str:
    return " ".join(f"{a:.0f}" if a == b else f"{a:.0f}-{b:.0f}" for a, b in zip(low, high, strict=True))


def short(value: float) -> str:
    """A number in three decimals, and in three significant digits where these would leave little of it."""
    return f"{value:,.3f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"


def elide(name: str, width: int) -> str:
    """`name` in at most `width` characters, its middle left out."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return name[:head] + "…" + name[-(width - 1 - head) :]
