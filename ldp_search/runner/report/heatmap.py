"""The schedule of a run as a heatmap: bits, layers x progress."""

from __future__ import annotations

import numpy as np

from .layers import shown
from .load import Run
from .schedule import GRADIENTS, Schedule
from .style import DPI, FAINT, GRID, NOT_YET, TALLEST, WIDTH, BitScale, drawing, label_rows, row_edges, rows_of, say_on_top

COLUMNS = 800  # moments a heatmap shows: no less than the pixels of the widest panel
HATCH = "////"
TITLES = {"weight": "Weight bits", "input": "Input bits", "grad": "Gradient bits", "weight_grad": "Gradient bits, dL/dw"}


def scale_of(*runs: Run) -> BitScale:
    """One colour scale for all the bits of these runs."""
    schedules = [shown(run) for run in runs if run.schedule]
    seen = [np.unique(schedule.bits[kind]) for schedule in schedules for kind in ("weight", "input")]
    panels = [(schedule, kind) for schedule in schedules for kind in schedule.panels if kind in GRADIENTS]
    seen += [np.unique(schedule.bits[kind]) for schedule, kind in panels]
    allowed = [end for run in runs if run.bit_range for end in run.bit_range]
    return BitScale.covering(np.concatenate(seen or [[]]), (min(allowed), max(allowed)) if allowed else None)


def draw_heatmap(axis, schedule: Schedule, kind: str, scale: BitScale, finished: bool, most: int) -> np.ndarray:
    """Bits of one kind, layers (first on top) x progress; hatched where there are none.

    Returns the edges of the rows: layers may share a row.
    """
    when = (np.arange(COLUMNS) + 0.5) / COLUMNS
    edges = row_edges(len(schedule.layers), most)
    bits = schedule.at(kind, when)
    if len(edges) <= len(schedule.layers):
        known = np.add.reduceat(~np.isnan(bits), edges[:-1], axis=1, dtype=int)
        sums = np.add.reduceat(np.nan_to_num(bits), edges[:-1], axis=1)
        bits = np.where(known, sums / np.maximum(known, 1), np.nan)
    picture, without = scale.index(bits.T), np.flatnonzero(np.isnan(bits).all(0))
    if not finished:
        picture = np.ma.masked_where(np.broadcast_to(when > schedule.progress[-1], picture.shape), picture)
    axis.set_facecolor(NOT_YET)
    axis.imshow(
        picture,
        cmap=scale.cmap,
        norm=scale.norm,
        aspect="auto",
        interpolation="nearest",
        extent=(0, 1, len(edges) - 1.5, -0.5),
    )
    axis.barh(
        without, 1 if finished else schedule.progress[-1], height=1, color="white", hatch=HATCH, edgecolor=GRID, linewidth=0
    )
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "¼", "½", "¾", "1"])
    axis.spines[:].set_visible(False)
    if not finished and schedule.progress[-1] < 0.93:
        axis.text(
            (1 + schedule.progress[-1]) / 2,
            0.5,
            "not yet",
            transform=axis.get_xaxis_transform(),
            ha="center",
            color=FAINT,
        )
    return edges


def schedule_figure(run: Run, scale: BitScale) -> bytes:
    """Heatmap of bits, layers x progress: weights, and inputs and gradients where they have a story of their own."""
    inner = height_of(run.schedule)
    with drawing(WIDTH, inner + 1.0) as (figure, png):
        draw_schedule(figure, run, scale, inner)
    return bytes(png)


def height_of(schedule: Schedule) -> float:
    """Inches that the panels of a heatmap take."""
    return float(np.clip(0.24 * len(schedule.layers), 1.3, TALLEST - 1.2))


def draw_schedule(figure, run: Run, scale: BitScale, inner: float) -> None:
    """The panels of `schedule_figure`, `inner` inches high, on a figure or a part of one."""
    schedule, count = shown(run), len(run.schedule.layers)
    axes = figure.subplots(1, len(schedule.panels), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, schedule.panels, strict=True):
        edges = draw_heatmap(axis, schedule, kind, scale, run.finished, most=int(inner * DPI / 2))
        axis.set_title(panel_title(schedule, kind))
        axis.set_xlabel("progress of the training")
        axis.tick_params(axis="y", length=0)
    label_rows(axes[0], [schedule.layers[i] for i in edges[:-1]], inner)
    told = [f"{count:,} layers, first on top; each row is the mean of {rows_of(edges)}"] if len(edges) <= count else []
    if any(axis.patches for axis, kind in zip(axes, schedule.panels, strict=True) if kind in GRADIENTS):
        told.append("hatched: this gradient is never computed")
    if told:
        say_on_top(figure, "; ".join(told))
    scale.add_bar(figure, list(axes))


def panel_title(schedule: Schedule, kind: str) -> str:
    """What a panel shows; the weights stand for the inputs too where these never differ."""
    both = kind == "weight" and "input" not in schedule.panels and not np.isnan(schedule.bits["input"]).all()
    if both:
        return "Bits of weights and inputs"
    return TITLES[kind] + (", dL/dx" if kind == "grad" and "weight_grad" in schedule.bits else "")
