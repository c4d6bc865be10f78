"""`ldp.plot(kind)`: a controller's pictures as matplotlib figures, drawn by what draws the report."""

from __future__ import annotations

from collections.abc import Callable

from ...core import Controller
from ...core.controller.display import check_picture
from . import bars, heatmap
from .curves import COSTS_HEIGHT, draw_costs
from .forecast import damage_height, draw_damage, draw_front
from .layers import layers_of
from .live import run_of
from .schedule import KINDS
from .style import WIDTH, BitScale, StyledFigure, styled


def draw(ldp: Controller, kind: str = "schedule") -> StyledFigure:
    """The figure of this kind.

    Raises:
        ValueError: an unknown kind, or nothing is measured yet that it would show.
    """
    check_picture(ldp, kind)
    with styled():
        return FIGURES[kind](ldp)


def _schedule(ldp: Controller) -> StyledFigure:
    run = run_of(ldp)
    if run.schedule is None:
        raise ValueError(
            "No step is recorded yet: the picture of a schedule needs one training step and its ldp.step(progress). "
            'ldp.plot(kind="allocation") shows the bits in force.'
        )
    inner = heatmap.height_of(run.schedule)
    if not run.metrics:  # MACs are not counted, and so no costs
        figure = StyledFigure(WIDTH, inner + 1.0)
        heatmap.draw_schedule(figure, run, heatmap.scale_of(run), inner)
        return figure
    figure = StyledFigure(WIDTH, inner + 1.0 + COSTS_HEIGHT)
    above, below = figure.subfigures(2, 1, height_ratios=(inner + 1.0, COSTS_HEIGHT), hspace=0.02)
    heatmap.draw_schedule(above, run, heatmap.scale_of(run), inner)
    draw_costs(below, run)
    return figure


def _allocation(ldp: Controller) -> StyledFigure:
    run = run_of(ldp)
    layers = layers_of(run)
    seen = [getattr(layer, kind) for layer in layers for kind in KINDS]
    figure = StyledFigure(WIDTH, bars.height_of(layers))
    bars.draw_layers(figure, run, layers, BitScale.covering(seen, run.bit_range))
    return figure


def _damage(ldp: Controller) -> StyledFigure:
    found = ldp.damage()
    figure = StyledFigure(WIDTH, damage_height(found))
    draw_damage(figure, found)
    return figure


def _front(ldp: Controller) -> StyledFigure:
    found = ldp.front()
    figure = StyledFigure(WIDTH * 0.75, 4.2)
    draw_front(figure, found, ldp.space.target_cost)
    return figure


FIGURES: dict[str, Callable[[Controller], StyledFigure]] = {
    "schedule": _schedule,
    "allocation": _allocation,
    "damage": _damage,
    "front": _front,
}
