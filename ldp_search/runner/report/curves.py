"""The course of a run as curves: metric, loss, accumulated cost and cost in force over progress."""

from __future__ import annotations

import numpy as np

from .load import Run
from .style import FAINT, SERIES, WIDTH, drawing

COSTS_HEIGHT = 3.1  # inches


def course_figure(run: Run) -> bytes:
    """Metric, loss, accumulated cost and cost in force over the training; the costs alone where the others are not recorded."""
    if not any(run.curve(key, "train", "eval")[0] for key in (run.metric_name, "loss")):
        with drawing(WIDTH, COSTS_HEIGHT) as (figure, png):
            draw_costs(figure, run)
        return bytes(png)
    with drawing(WIDTH, 6.6) as (figure, png):
        (score, spent), (loss, force) = figure.subplots(2, 2, sharex=True)
        _metric(score, run, run.metric_name, run.metric.title, run.metric.percent)
        _metric(loss, run, "loss", "Loss", percent=False)
        _accumulated(spent, run)
        _in_force(force, run)
        for axis in (score, loss, spent, force):
            axis.set_xlim(0, 1)
            axis.grid()
            axis.set_axisbelow(True)
        for axis in (loss, force):
            axis.set_xlabel("progress of the training")
    return bytes(png)


def draw_costs(figure, run: Run) -> None:
    """Accumulated cost and cost in force, side by side, on a figure or a part of one."""
    spent, force = figure.subplots(1, 2)
    _accumulated(spent, run)
    _in_force(force, run)
    for axis in (spent, force):
        axis.set_xlim(0, 1)
        axis.grid()
        axis.set_axisbelow(True)
        axis.set_xlabel("progress of the training")


def _metric(axis, run: Run, key: str, title: str, percent: bool) -> None:
    axis.set_title(title)
    factor = 100 if percent else 1
    drawn = 0
    for split, label, colour in (("train", "training batches", SERIES[5]), ("eval", "evaluation", SERIES[0])):
        x, y = run.curve(key, split)
        if x:
            style = (
                {"linewidth": 1, "alpha": 0.75} if split == "train" else {"linewidth": 1.8, "marker": "o", "markersize": 3.5}
            )
            axis.plot(x, factor * np.array(y), color=colour, label=label, **style)
            drawn += 1
    final = run.result.get(key) if (found := run.last(key, "final")) is None else found
    if final is not None:
        star = {"color": SERIES[1], "markersize": 11, "linestyle": "", "clip_on": False, "zorder": 4}
        axis.plot(1, factor * final, marker="*", label="final model", **star)
        drawn += 1
    if percent:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    _legend_or_note(axis, drawn, f"no {title.lower()} recorded yet")


def accumulated(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Cost spent so far over progress, in units of a whole run at the static highest bits."""
    x, mean = run.curve("mean_cost", "train", "eval", "final")
    if not x:
        x, cost = run.curve("cost", "train")
        mean = np.cumsum(np.array(cost) * np.diff(x, prepend=0.0)) / np.maximum(x, 1e-12) if x else []
    return np.append(0.0, x), np.append(0.0, np.array(x) * np.array(mean))


def _accumulated(axis, run: Run) -> None:
    axis.set_title("Accumulated training cost")
    x, y = accumulated(run)
    axis.plot([0, 1], [0, 100], color=FAINT, linestyle="--", linewidth=1.4, label=run.static_name)
    if run.target_cost is not None:
        target = 100 * run.target_cost
        axis.plot([0, 1], [0, target], color=SERIES[1], linestyle="--", linewidth=1.4, label=f"target: {target:.4g} %")
    if len(x) > 1:
        axis.plot(x, 100 * y, color=SERIES[0], linewidth=2, label=f"this run: {100 * y[-1]:.1f} %")
        axis.fill_between(x, 100 * y, 100 * x, color=SERIES[0], alpha=0.12, linewidth=0)
    axis.set_ylim(0, None)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    _legend_or_note(axis, len(x) - 1, "no cost recorded yet", loc="upper left")


def _in_force(axis, run: Run) -> None:
    axis.set_title(f"Training cost in force ({run.static_name} = 100 %)")
    x, y = run.curve("cost", "train")
    axis.plot(x, 100 * np.array(y), color=SERIES[5], linewidth=1.1, label="in force")
    x_mean, mean = run.curve("mean_cost", "train")
    axis.plot(x_mean, 100 * np.array(mean), color=SERIES[0], linewidth=2, label="mean so far")
    if run.target_cost is not None:
        axis.axhline(100 * run.target_cost, color=SERIES[1], linestyle="--", linewidth=1.4, label="target of the mean")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    if y and max(y) - min(y) < 0.02:  # a constant is a line in a calm panel, not magnified rounding
        axis.set_ylim(max(0, 100 * min(y) - 10), 100 * max(y) + 10)
    _legend_or_note(axis, len(x) + len(x_mean), "no cost recorded yet")


def _legend_or_note(axis, drawn: int, note: str, loc: str = "best") -> None:
    if drawn:
        axis.legend(loc=loc)
    else:
        axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", color=FAINT)
        axis.set_facecolor("white")
