"""The text table of `ldp.summary()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bits.cost import Cost
from .strays import find_strays

if TYPE_CHECKING:
    from .controller import Controller


def summarize(controller: Controller) -> str:
    """Layers with their MACs, ranges and bits; then the cost and the coverage."""
    bits, problem = controller.bits(), controller.problem
    width = max([len("layer"), *(min(len(name), 48) for name in bits)])
    kinds = "w  x  g" if problem.low.shape[1] == 3 else "w  x gx gw"  # each gradient's bits, where they are split
    lines = [f"{'layer':<{width}}  {'kind':<14} {'MACs':>12} {'weights':>10}   {kinds}  range"]
    for row, (name, spec) in enumerate(controller.layers.items()):
        b = bits[name]
        lines.append(
            f"{elide(name, width):<{width}}  {spec.kind:<14} {spec.macs:>12,} {spec.weight_numel:>10,}  "
            f"{' '.join(f'{n:>2}' for n in b)}  {_ranges(problem.low[row].tolist(), problem.high[row].tolist())}"
        )
    cost, coverage = controller.cost(), controller.coverage
    if (profile := controller.profile) is None:
        return "\n".join([*lines, "MACs are not counted yet: give example_inputs to apply(), or run one forward."])
    lines += [
        f"training {cost.training_bitops / 1e9:,.3f} GBitOPs a sample = {cost.relative:.3f} of the highest bits; "
        f"inference {cost.inference_bitops / 1e9:,.3f} GBitOPs = {cost.relative_inference:.3f}; "
        f"weights {cost.weight_mib:,.3f} MiB",
        *_budgets(controller, cost),
        f"{coverage.share:.1%} of the MACs go through quantized products; counted on inputs {profile.inputs}",
    ]
    if controller.sensor is not None and controller.sensor.ready:
        found = controller.damage()
        each = ", ".join(f"{kind} {value:.2g}" for kind, value in found.kinds.items())
        lines.append(f"expected loss from rounding {found.total:.3g} ({each})")
    if arithmetic := controller.backend.report(list(bits)):
        lines.append(arithmetic)
    lines += [f"  left out: {item.name}: {item.macs:,} MACs ({item.reason})" for item in coverage.left_out]
    return "\n".join(lines + _strays(find_strays(controller)))


def _budgets(controller: Controller, cost: Cost) -> list[str]:
    """A line on how far each budget is used, where the final bits have budgets."""
    space, out = controller.space, []
    if space.target_cost is not None:
        out.append(f"training {cost.mean_relative:.3f} of {space.target_cost:g} so far")
    if space.target_inference is not None:
        out.append(f"inference {cost.relative_inference:.3f} of {space.target_inference:g}")
    if space.target_size is not None:
        out.append(f"weights {cost.weight_mib:,.3f} of {space.target_size:g} MiB")
    return ["budgets: " + "; ".join(out)] if controller.problem.limits else []


def _strays(found) -> list[str]:
    """What no forward reaches, and what came in after `apply`."""
    unreached = [f"  no forward has reached {name}" for name in found.unreached]
    return unreached + [f"  in floating point, since it came in after apply(): {name}" for name in found.newcomers]


def _ranges(low: list, high: list) -> str:
    return " ".join(f"{a:.0f}" if a == b else f"{a:.0f}-{b:.0f}" for a, b in zip(low, high, strict=True))


def elide(name: str, width: int) -> str:
    """`name` in at most `width` characters, its middle left out."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return name[:head] + "…" + name[-(width - 1 - head) :]
