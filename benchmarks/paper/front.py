"""The figure of accuracy (or perplexity) against training cost: every seed, mean and standard deviation."""

from __future__ import annotations

import re
from typing import Any

from ldp_search.runner.report.style import FAINT, GRID, INK, MARKERS, SERIES, drawing

from .rows import ROWS

UNIT = 1e15  # bit operations
FULL_PRECISION_COST = 2.0  # rows above cost as much as no quantized one: a line instead of a point
FAMILIES = (
    ("learned", re.compile(r"learned_(\d\.\d+|as_\d+)")),
    ("equal bits everywhere", re.compile(r"uniform_\d+")),
    ("cyclic precision", re.compile(r"cpt.*")),
    ("8 bits, or 4/4/8", re.compile(r"static\d+(_new)?")),
    ("random", re.compile(r"random.*")),
    ("learned final bits from the start", re.compile(r"replay.*")),
    ("learned, a part left out", re.compile(r".*")),
)
"""Rows by the first that fits. Those of the first two differ in their budget alone and are joined."""
JOINED, FAR = 2, ("random", "learned final bits from the start")  # the latter may lie far below: they do not stretch the axis
PLACES = ((7, 4), (7, -11), (-7, 4), (-7, -11), (7, 16), (7, -23), (-7, 16), (-7, -23))  # of a name, in points from its mark


def family_of(row: str) -> int:
    return next(index for index, (_, rows) in enumerate(FAMILIES) if rows.fullmatch(row))


def front(cells: list[dict], means: list[dict], metric: str) -> bytes:
    """PNG. cells, means: lines of the results and of the table, as `table` makes them.

    Rows that lack one part of another and have a line of their own in the table stand there alone.
    """
    means = [line for line in means if line["row"] not in ROWS or ROWS[line["row"]].part_of is None]
    points = [line for line in means if line["cost"] <= FULL_PRECISION_COST]
    with drawing(9.0, 5.5) as (figure, png):
        axis = figure.subplots()
        axis.grid(color=GRID)
        for line in means:
            if line not in points:
                axis.axhline(
                    line["score"], color=FAINT, linestyle="--", linewidth=1, label=f"{line['row']}: {line['score']:.2f}"
                )
        for index in range(len(FAMILIES)):
            members = [line for line in points if family_of(line["row"]) == index]
            if members:
                _draw_family(axis, index, members, cells, metric)
        _frame(axis, points, cells, metric)
        _name(figure, axis, points)
    return bytes(png)


def _draw_family(axis, index: int, members: list[dict], cells: list[dict], metric: str) -> None:
    style: dict[str, Any] = {"color": SERIES[index], "marker": MARKERS[index]}
    members = sorted(members, key=lambda line: line["training_bitops"])
    for line in members:
        seeds = [row for row in cells if row["row"] == line["row"]]
        where = [row["training_bitops"] / UNIT for row in seeds], [row[metric] for row in seeds]
        axis.plot(*where, ".", color=style["color"], alpha=0.4)
    axis.errorbar(
        [line["training_bitops"] / UNIT for line in members],
        [line["score"] for line in members],
        [line["score_sd"] if line["seeds"] > 1 else 0.0 for line in members],
        capsize=3, markersize=6, linewidth=1, label=FAMILIES[index][0], linestyle="-" if index < JOINED else "none", **style,
    )  # fmt: skip


def _frame(axis, points: list[dict], cells: list[dict], metric: str) -> None:
    """Axes, and which scores they show."""
    axis.set_xlim(left=0)
    axis.set_xlabel("bit operations of the training, 10^15")
    axis.set_ylabel("test accuracy, %" if metric == "accuracy" else metric)
    if dearest := max((line["training_bitops"] / line["cost"] / UNIT for line in points), default=None):
        above = axis.secondary_xaxis("top", functions=(lambda x: x / dearest, lambda x: x * dearest))
        above.set_xlabel("relative to 8 bits everywhere")
    if metric == "perplexity":
        axis.invert_yaxis()  # better is up, as with accuracy
        return
    near = {line["row"] for line in points if FAMILIES[family_of(line["row"])][0] not in FAR}
    scores = [row[metric] for row in cells if row["row"] in near] + [line["score"] for line in points if line["row"] in near]
    if scores:
        room = 0.08 * (max(scores) - min(scores)) + 0.1
        axis.set_ylim(min(scores) - 1.5 * room, max(max(scores), axis.dataLim.y1) + room)


def _name(figure, axis, points: list[dict]) -> None:
    """Names beside the marks, but for rows whose cost says all; at the lower edge those that lie below it."""
    axis.legend(loc="lower right")
    figure.canvas.draw()
    taken = [axis.get_legend().get_window_extent()]
    low, high = sorted(axis.get_ylim())
    for line in sorted(points, key=lambda line: line["training_bitops"]):
        x, y, index = line["training_bitops"] / UNIT, line["score"], family_of(line["row"])
        if index == 0:
            continue
        name = line["row"].replace("_", " ") if index > 1 else "/".join(line["row"].removeprefix("uniform_"))
        if not low <= y <= high:
            name, y = f"{name}: {y:.1f} (below)", low
        for place in PLACES:
            side = "left" if place[0] > 0 else "right"
            text = axis.annotate(name, (x, y), place, textcoords="offset points", fontsize=8, ha=side, color=INK)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) and axis.bbox.y0 <= box.y0:
                break
            if place != PLACES[-1]:
                text.remove()
        taken.append(text.get_window_extent())
