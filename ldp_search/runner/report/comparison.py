"""The figures of several runs: metric against cost, their curves over each other, their schedules side by side."""

from __future__ import annotations

import math

import numpy as np

from ..tasks.metrics import Metric
from .curves import accumulated
from .groups import Group
from .heatmap import draw_heatmap
from .load import Run
from .schedule import GRADIENTS
from .style import DASHES, DPI, FAINT, MARKERS, SERIES, WIDTH, BitScale, drawing, elide, label_rows


def look(index: int) -> dict:
    """Colour and marker of a group; past the colours, markers and dashes go on telling groups apart."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[(index + index // len(SERIES)) % len(MARKERS)]}


def metrics_of(groups: list[Group]) -> list[Metric]:
    """The metrics of these runs, each once: each has an axis of its own. A controller without a folder knows of none."""
    return list(dict.fromkeys(run.metric for group in groups for run in group.runs if run.folder is not None))


def _set_unit(axis, metric: Metric) -> None:
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %" if metric.percent else f"{value:g}")


def _shown(metric: Metric, values) -> np.ndarray:
    return (100 if metric.percent else 1) * np.array(values)


def scatter_figure(groups: list[Group]) -> bytes:
    """Metric against mean training cost: a point a run, the mean and standard deviation of each group around it."""
    any_finished = any(group.finished for group in groups)  # among these, half a training would only distort the scale
    metrics = metrics_of(groups)
    with drawing(WIDTH, 5.4 * len(metrics)) as (figure, png):
        for axis, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
            members = [(i, group) for i, group in enumerate(groups) if group.runs[0].metric == metric]
            drawn = sum(_scatter_group(axis, group, look(i), any_finished) for i, group in members)
            axis.set_xlabel("training cost, mean over the run (static highest bits = 100 %)")
            axis.set_ylabel(metric.title)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            _set_unit(axis, metric)
            axis.grid()
            axis.set_axisbelow(True)
            axis.margins(0.08)
            if drawn:
                beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0, "labelspacing": 1.0}
                axis.legend(title="mean ± standard deviation", alignment="left", **beside)
            else:
                note = f"no run has {metric.title} and cost yet"
                axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", color=FAINT)
    return bytes(png)


def _scatter_group(axis, group: Group, style: dict, finished_only: bool) -> int:
    """Draw one group; the number of its points."""
    runs = group.finished if finished_only else group.runs
    factor = 100 if group.runs[0].metric.percent else 1
    points = [(100 * run.mean_cost, factor * run.score) for run in runs if None not in (run.mean_cost, run.score)]
    if not points:
        return 0
    small = {"linestyle": "", "markersize": 5, "zorder": 4, "markeredgewidth": 0.8}
    edge = {"markeredgecolor": "white"} if finished_only else {"markerfacecolor": "white"}
    axis.plot(*zip(*points, strict=True), **small, **edge, **style)
    (cost, cost_sd, n), (score, score_sd, _) = group.mean_sd("mean_cost"), group.mean_sd("score")
    label = f"{elide(group.label, 44)}  (n = {n})"
    if cost is None or score is None:
        axis.plot([], [], linestyle="", markerfacecolor="white", label=f"{elide(group.label, 44)}  (not finished)", **style)
        return len(points)
    large = {"linestyle": "", "markersize": 13, "alpha": 0.4, "markeredgecolor": "none", "zorder": 2}
    axis.plot(100 * cost, factor * score, label=label, **large, **style)
    if n > 1:
        spread = {"xerr": 100 * (cost_sd or 0), "yerr": factor * (score_sd or 0)}
        axis.errorbar(100 * cost, factor * score, fmt="none", ecolor=style["color"], capsize=4, elinewidth=1.6, **spread)
    return len(points)


def curves_figure(groups: list[Group]) -> bytes:
    """Metric, accumulated cost and mean bits over progress, every run a line, every group a colour."""
    with drawing(WIDTH, 4.4 + 0.2 * math.ceil(len(groups) / 3)) as (figure, png):
        metrics = metrics_of(groups)
        *scores, spent, mean_bits = figure.subplots(1, len(metrics) + 2)
        places = dict(zip(metrics, scores, strict=True))
        for i, group in enumerate(groups):
            for k, run in enumerate(group.runs):
                line = {
                    "color": SERIES[i % len(SERIES)],
                    "linestyle": DASHES[i // len(SERIES) % len(DASHES)],
                    "linewidth": 1.4,
                }
                line |= {"alpha": 0.8, "label": elide(group.label, 44) if k == 0 else None}
                _overlay(places.get(run.metric) if run.folder is not None else None, spent, mean_bits, run, line)
        spent.plot([0, 1], [0, 100], color=FAINT, linestyle="--", linewidth=1.2, label="static highest bits")
        titles = [*(metric.title for metric in metrics), "Accumulated cost", "Mean bits"]
        for axis, text in zip((*scores, spent, mean_bits), titles, strict=True):
            axis.set_title(text)
            axis.set_xlabel("progress")
            axis.set_xlim(0, 1)
            axis.grid()
        for metric, axis in places.items():
            _set_unit(axis, metric)
        spent.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        handles, labels = spent.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return bytes(png)


def _overlay(score, spent, mean_bits, run: Run, line: dict) -> None:
    if score is not None:
        x, y = run.curve(run.metric_name, "eval")
        score.plot(x, _shown(run.metric, y), marker="o", markersize=3, **line)  # there may be one evaluation alone
    x, y = accumulated(run)
    spent.plot(x, 100 * y, **line)
    if run.schedule is not None:
        bits = run.schedule.compute_bits()
        mean_bits.plot(run.schedule.progress, np.nanmean(bits[:, ~np.isnan(bits).all(0)], axis=1), **line)


def schedules_figure(runs: list[Run], scale: BitScale) -> bytes:
    """The bits of each run, layers x progress; input bits beside the weight bits where they differ."""
    split = any("input" in run.schedule.panels for run in runs)
    across = min(len(runs), 2 if split else 3)
    down = math.ceil(len(runs) / across)
    most = max(len(run.schedule.layers) for run in runs)
    inner = float(np.clip(0.125 * most, 1.1, 3.2))
    with drawing(WIDTH, down * (inner + 0.6) + 0.7) as (figure, png):
        grid = figure.add_gridspec(down, 2 * across)  # two fields a run: weights and inputs, or one picture over both
        axes = []
        for place, run in enumerate(runs):
            row, column = divmod(place, across)
            kinds = [kind for kind in run.schedule.panels if kind not in GRADIENTS]
            beside = column and run.schedule.layers == runs[place - 1].schedule.layers
            for k, kind in enumerate(kinds):
                field = grid[row, 2 * column + k] if len(kinds) == 2 else grid[row, 2 * column : 2 * column + 2]
                axis = figure.add_subplot(field)
                edges = draw_heatmap(axis, run.schedule, kind, scale, run.finished, most=int(inner * DPI / 2))
                title = elide(run.name, 28) + (": weights" if len(kinds) == 2 else "") if k == 0 else f"{kind}s"
                axis.set_title(title, fontsize=8)
                # Names once a row of pictures: beside a picture of the same layers they would only take its room.
                label_rows(axis, [run.schedule.layers[i] for i in edges[:-1]], inner, longest=22)
                if k or beside:
                    axis.tick_params(axis="y", labelleft=False, length=0)
                axes.append(axis)
        scale.add_bar(figure, axes, on_top=True)
    return bytes(png)
