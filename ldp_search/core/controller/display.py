"""The controller in a notebook: its table, and the seam to its pictures, which need matplotlib; core does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import html_table

if TYPE_CHECKING:
    from .controller import Controller

Draw = Callable[["Controller", str], Any]
_draw: list[Draw] = []


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


def as_html(controller: Controller) -> str:
    """What the controller holds, its costs beside their budgets, and the table of its layers behind a click."""
    cost, (_, progress) = controller.cost(), controller.spent
    state = "bits are frozen" if controller.frozen else f"{progress:.0%} of the training"
    title = f"{type(controller.model).__name__}: {len(controller.specs):,} layers, policy {controller.policy.name}, {state}"
    if not controller.profiled:
        return html_table.lines([title]) + controller.summary()._repr_html_()
    target = controller.space.target_cost
    rows = [
        ("training, mean so far", f"{cost.mean_relative:.4f}", "" if target is None else f"{target:g}"),
        ("training, now", f"{cost.relative:.4f}", ""),
        ("inference, now", f"{cost.relative_inference:.4f}", ""),
        ("weights, now", f"{cost.weight_mib:,.3f} MiB", ""),
        ("MACs in quantized products", f"{controller.coverage.share:.1%}", ""),
    ]
    costs = html_table.table(("relative to the highest bits", "cost", "budget"), rows)
    return html_table.lines([title]) + costs + html_table.folded("layers", controller.summary()._repr_html_())
