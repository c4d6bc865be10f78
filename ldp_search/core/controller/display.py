"""The controller in a notebook: its table, and the seam to its pictures, which need matplotlib; core does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import tables
from ..bits.cost import Cost
from ..bits.space import SearchSpace
from ..messages import did_you_mean
from .forecast import sensor_of
from .summary import short

if TYPE_CHECKING:
    from .controller import Controller

Draw = Callable[["Controller", str], Any]
_draw: list[Draw] = []

PICTURES = ("schedule", "allocation", "damage", "front")
"""The kinds of `Controller.plot`."""
OF_DAMAGES = ("damage", "front")


def provide_drawing(draw: Draw) -> None:
    """Make `draw(controller, kind)` what `Controller.plot` calls; whoever stands above core says what it is."""
    _draw[:] = [draw]


def drawn(controller: Controller, kind: str) -> Any:
    """The picture of a controller.

    Raises:
        ImportError: nothing has provided drawing.
    """
    if not _draw:
        raise ImportError("Pictures are drawn by the whole package: import ldp_search, and not a copy of its core alone.")
    return _draw[0](controller, kind)


def check_picture(controller: Controller, kind: str) -> None:
    """ValueError on an unknown kind, and on one of damages under a policy that measures none."""
    if kind not in PICTURES:
        raise ValueError(f"Unknown kind of picture {kind!r}.{did_you_mean(kind, PICTURES)}")
    if kind in OF_DAMAGES:
        sensor_of(controller)


def as_html(controller: Controller) -> str:
    """What the controller holds, its costs beside their budgets, and the table of its layers behind a click."""
    cost, (_, progress) = controller.cost(), controller.spent
    state = "bits are frozen" if controller.frozen else f"{progress:.0%} of the training"
    title = f"{type(controller.model).__name__}: {len(controller.specs):,} layers, policy {controller.policy.name}, {state}"
    if not controller.profiled:
        return tables.lines([title]) + controller.summary()._repr_html_()
    space = controller.space
    rows = [
        ("training, mean so far", f"{cost.mean_relative:.4f}", _budget(space.target_cost)),
        ("training, now", f"{cost.relative:.4f}", ""),
        ("inference, now", f"{cost.relative_inference:.4f}", _budget(space.target_inference)),
        ("weights, now", f"{short(cost.weight_mib)} MiB", _budget(space.target_size, " MiB")),
        *_latency(cost, space),
        ("MACs in quantized products", f"{controller.coverage.share:.1%}", ""),
    ]
    costs = tables.as_html(("relative to the highest bits", "cost", "budget"), rows)
    return tables.lines([title]) + costs + tables.folded("layers", controller.summary()._repr_html_())


def _latency(cost: Cost, space: SearchSpace) -> list[tuple]:
    """A row where a latency is predicted."""
    if cost.relative_latency is None:
        return []
    return [("latency, now", f"{cost.relative_latency:.4f} ({short(cost.latency_ms or 0)} ms)", _budget(space.target_latency))]


def _budget(most: float | None, unit: str = "") -> str:
    return "" if most is None else f"{most:g}{unit}"
