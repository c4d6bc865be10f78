"""What rounding is expected to cost, as pictures: the damage of the bits in force, and the least damage at every cost."""

from __future__ import annotations

import numpy as np

from ...core.controller.forecast import Damage, Front
from .style import FAINT, SERIES, TALLEST, label_rows, row_edges, rows_of, say_on_top

WORDS = {"weight": "weights", "input": "inputs", "grad": "gradients", "weight_grad": "gradients, dL/dw"}
SPLIT = WORDS | {"grad": "gradients, dL/dx"}
MOST_ROWS = 120
AROUND = 1.3  # inches


def damage_height(found: Damage) -> float:
    """Inches that a bar a layer takes, with the room above and below."""
    return float(np.clip(0.24 * min(len(found.layers), MOST_ROWS), 1.3, TALLEST - AROUND)) + AROUND


def draw_damage(figure, found: Damage) -> None:
    """A bar a layer, first on top: expected loss from rounding its weights, inputs and gradients, one behind the other."""
    axis, names = figure.subplots(), list(found.layers)
    words = SPLIT if "weight_grad" in found.kinds else WORDS
    edges = row_edges(len(names), MOST_ROWS)
    places, left = np.arange(len(edges) - 1), np.zeros(len(edges) - 1)
    for k, (kind, total) in enumerate(found.kinds.items()):
        if not total:  # a gradient that no layer computes
            continue
        each = np.add.reduceat(np.array([found.layers[name].get(kind, 0.0) for name in names]), edges[:-1])
        axis.barh(places, each, left=left, color=SERIES[k], height=0.78, label=f"{words[kind]}: {total:.3g}")
        left += each
    axis.set_ylim(len(places) - 0.4, -0.6)
    label_rows(axis, [names[i] for i in edges[:-1]], damage_height(found) - AROUND)
    axis.set_title(f"Expected loss from rounding at the bits in force: {found.total:.3g}", pad=22)
    axis.set_xlabel("loss")
    axis.grid(axis="x")
    axis.set_axisbelow(True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    if found.total:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(found.kinds), borderpad=0.2, borderaxespad=0.2)
    if len(places) < len(names):
        say_on_top(figure, f"{len(names):,} layers; each row is the sum of {rows_of(edges)}")


def draw_front(figure, found: Front, target: float | None) -> None:
    """The least expected loss at every training cost, the bits in force, and the budget."""
    axis = figure.subplots()
    points = sorted(found.points, key=lambda point: point.cost)
    cost, damage = ([getattr(point, name) for point in points] for name in ("cost", "damage"))
    line = {"color": SERIES[0], "linewidth": 1.8, "marker": "o", "markersize": 3}
    axis.plot([100 * c for c in cost], damage, label="least at this cost", **line)
    star = {"marker": "*", "markersize": 14, "linestyle": "", "color": SERIES[1], "zorder": 4}
    axis.plot(100 * found.now.cost, found.now.damage, label="bits in force", **star)
    if target is not None:
        label = f"target of the mean: {100 * target:.4g} %"
        axis.axvline(100 * target, color=FAINT, linestyle="--", linewidth=1.4, label=label)
    if min(damage) > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_title("Expected loss from rounding")
    axis.set_xlabel("training cost of a step (highest bits = 100 %)")
    axis.set_ylabel("loss")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axis.grid()
    axis.set_axisbelow(True)
    axis.legend(loc="best")
