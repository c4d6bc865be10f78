"""The figures of a study's results: metric against cost with the front, and how both came about, trial by trial."""

from __future__ import annotations

import numpy as np

from .style import FAINT, SERIES, WIDTH, drawing
from .trials import StudyView, TrialRow

DEFAULT, BEST = SERIES[2], SERIES[1]


def front_figure(view: StudyView) -> bytes:
    """Every complete trial, metric over cost; the front of the feasible ones; bars: standard deviation over a trial's seeds."""
    with drawing(WIDTH, 5.4) as (figure, png):
        axis = figure.subplots()
        rows = [r for r in view.complete if r.cost is not None]
        groups = [
            ([r for r in rows if not r.feasible], {"color": FAINT, "marker": "x", "alpha": 0.7}, "above the bound on the cost"),
            ([r for r in rows if r.feasible and not r.figures.get("given")], {"color": SERIES[0], "marker": "o"}, "searched"),
            ([r for r in rows if r.feasible and r.figures.get("given")], {"color": DEFAULT, "marker": "s"}, "given: defaults"),
        ]
        for members, style, label in groups:
            if members:
                x, y = [r.cost for r in members], [r.metric for r in members]
                axis.plot(x, y, linestyle="", markersize=6, label=f"{label} ({len(members)})", **style)
        _spreads(axis, rows)
        _front_line(axis, view)
        if view.max_cost is not None:
            axis.axvline(view.max_cost, color=FAINT, linestyle="--", linewidth=1.2, label=f"bound: {view.max_cost:g}")
        axis.set_xlabel(f"{view.cost} (relative to the highest bits)" if view.cost != "weight_mib" else "weights, MiB")
        axis.set_ylabel(view.metric)
        axis.grid()
        axis.set_axisbelow(True)
        axis.margins(0.08)
        if rows:
            axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
        else:
            axis.text(0.5, 0.5, "no trial is complete yet", transform=axis.transAxes, ha="center", color=FAINT)
    return bytes(png)


def _spreads(axis, rows: list[TrialRow]) -> None:
    several = [r for r in rows if r.spread is not None]
    if several:
        x, y, e = zip(*((r.cost, r.metric, r.spread) for r in several), strict=True)
        axis.errorbar(x, y, yerr=e, fmt="none", ecolor=FAINT, elinewidth=1, capsize=2.5, zorder=1)


def _front_line(axis, view: StudyView) -> None:
    front = view.front()
    if not front:
        return
    x, y = [r.cost for r in front], [r.metric for r in front]
    axis.step([*x, max(x[-1], axis.get_xlim()[1])], [*y, y[-1]], where="post", color=BEST, linewidth=1.6, label="front")
    best = view.ranked()[0]
    axis.plot(best.cost, best.metric, marker="*", color=BEST, markersize=15, linestyle="", label=f"best: trial {best.number}")
    for row in front if len(front) <= 12 else [best]:
        axis.annotate(str(row.number), (row.cost, row.metric), xytext=(4, 5), textcoords="offset points", fontsize=8)


def history_figure(view: StudyView) -> bytes:
    """The metric of every trial and the best so far; beside it the hypervolume of the front."""
    with drawing(WIDTH, 3.8) as (figure, png):
        metric, volume = figure.subplots(1, 2)
        done = [r for r in view.rows if r.metric is not None]
        for state, feasible, style in (
            ("complete", True, {"color": SERIES[0], "marker": "o", "label": "complete"}),
            ("complete", False, {"color": FAINT, "marker": "x", "label": "above the bound"}),
            ("pruned", None, {"color": SERIES[4], "marker": "v", "label": "pruned (where it was)"}),
        ):
            rows = [r for r in done if r.state == state and (feasible is None or r.feasible == feasible)]
            if rows:
                metric.plot([r.number for r in rows], [r.metric for r in rows], linestyle="", markersize=5, **style)
        best = _best_so_far(view)
        if best:
            metric.step(*zip(*best, strict=True), where="post", color=BEST, linewidth=1.6, label="best so far")
            metric.legend(loc="lower right")
        metric.set_title(f"{view.metric} of every trial")
        counts = range(1, len(view.rows) + 1)
        worst, dearest = corner(view)
        volume.plot(counts, [view.hypervolume(n, worst, dearest) for n in counts], color=SERIES[0], linewidth=1.8)
        volume.set_title(f"Hypervolume of the front, from ({dearest:.3g}, {worst:.3g})")
        for axis in (metric, volume):
            axis.set_xlabel("trials")
            axis.grid()
            axis.set_axisbelow(True)
    return bytes(png)


def _best_so_far(view: StudyView) -> list[tuple[int, float]]:
    out: list[tuple[int, float]] = []
    for row in view.complete:
        if row.feasible and (not out or view.sign * row.metric > view.sign * out[-1][1]):
            out.append((row.number, row.metric))
    return [*out, (view.rows[-1].number, out[-1][1])] if out else []


def corner(view: StudyView) -> tuple[float, float]:
    """The corner that hypervolumes are counted from: the worst metric and the highest cost of a feasible trial."""
    rows = [r for r in view.rows if r.counts]
    if not rows:
        return 0.0, 1.0
    metrics = [r.metric for r in rows]
    return float(min(metrics) if view.sign > 0 else max(metrics)), float(max(1.0, np.max([r.cost for r in rows])))
