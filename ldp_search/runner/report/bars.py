"""The layers of a run at its end as bars: their bits, beside their shares of the training cost and of the MACs."""

from __future__ import annotations

import textwrap

import numpy as np

from .layers import Layer
from .load import Run
from .schedule import KINDS
from .style import FAINT, INK, SERIES, TALLEST, WIDTH, BitScale, drawing, label_rows, row_edges, rows_of, say_on_top

BITS = ("weights", "weights and inputs")  # what the bars show: one kind, or both where they are equal
AROUND = 1.2  # inches
COST = "training cost (bit operations of the run)"


def layers_figure(run: Run, layers: list[Layer], scale: BitScale) -> bytes:
    """Bits of each layer, beside its share of the training cost and of the MACs."""
    with drawing(WIDTH, height_of(layers)) as (figure, png):
        draw_layers(figure, run, layers, scale)
    return bytes(png)


def _rows(layers: list[Layer]) -> np.ndarray:
    return row_edges(len(layers), 160 if len(layers) <= 160 else 120)


def height_of(layers: list[Layer]) -> float:
    """Inches that bars of so many layers take, with the room above and below them."""
    return float(np.clip(0.24 * (len(_rows(layers)) - 1), 1.3, TALLEST - 1.4)) + AROUND


def draw_layers(figure, run: Run, layers: list[Layer], scale: BitScale) -> None:
    """The two panels of `layers_figure`."""
    edges = _rows(layers)
    rows = len(edges) - 1
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.1))
    _bits_bars(left, layers, edges, scale)
    left.set_title("Bits at the end" if run.finished else "Bits now", pad=22)
    _share_bars(right, layers, edges, f"known {run.counts_come}")
    left.set_ylim(rows - 0.4, -0.6)
    label_rows(left, [layers[i].name for i in edges[:-1]], height_of(layers) - AROUND)
    if rows < len(layers):
        text = f"{len(layers):,} layers; each row is {rows_of(edges)}: the mean of their bits, the sum of their shares"
        say_on_top(figure, text)


def _bits_bars(axis, layers: list[Layer], edges: np.ndarray, scale: BitScale) -> None:
    bits = {kind: _by_row([getattr(layer, kind) for layer in layers], edges, np.nanmean) for kind in KINDS}
    places = np.arange(len(edges) - 1)
    tied = np.array_equal(bits["input"], bits["weight"], equal_nan=True)
    colours = [scale.colour(value) for value in bits["weight"]]
    axis.barh(places, np.nan_to_num(bits["weight"]), color=colours, label=BITS[tied], height=0.78)
    if not tied:
        axis.scatter(bits["input"], places, label="inputs", **_marks(places, "D"))
    split = not np.isnan(bits["weight_grad"]).all()
    tick = {"marker": "|", "linewidth": 1.6, "zorder": 3}
    # Two gradients at the same bits are both seen: the second tick is the shorter one.
    for kind, label, size, colour in (("grad", "gradients" + ", dL/dx" * split, 2, 1), ("weight_grad", "dL/dw", 0.7, 3)):
        if not np.isnan(bits[kind]).all():
            size *= _marks(places, "|")["s"]
            axis.scatter(bits[kind], places, s=size, color=SERIES[colour], label=label, **tick)
    highest = np.nanmax([np.nanmax(b) for b in bits.values() if not np.isnan(b).all()], initial=1)
    axis.set_xlim(0, highest * 1.04)
    axis.set_xticks(np.arange(0, highest + 1, max(1, int(np.ceil(highest / 8)))))
    axis.grid(axis="x")
    axis.set_axisbelow(True)
    _legend_above(axis)


def _marks(places: np.ndarray, marker: str) -> dict:
    """White marks with a dark edge, to be seen on a bar and beside it; smaller where rows are many."""
    size = 26 if len(places) <= 60 else 8
    return {"s": size, "marker": marker, "color": "white", "edgecolor": INK, "linewidth": 0.9, "zorder": 3}


def _share_bars(axis, layers: list[Layer], edges: np.ndarray, unknown: str) -> None:
    cost = 100 * _by_row([layer.cost_share for layer in layers], edges, np.nansum)
    macs = 100 * _by_row([layer.mac_share for layer in layers], edges, np.nansum)
    axis.set_title("Share of the training cost", pad=22)
    axis.tick_params(axis="y", length=0)
    if not cost.any() and not macs.any():
        axis.text(0.5, 0.5, textwrap.fill(unknown, 32), transform=axis.transAxes, ha="center", color=FAINT)
        axis.set_xticks([])
        return
    places = np.arange(len(edges) - 1)
    axis.barh(places, cost, height=0.78, color=SERIES[0], label=COST)
    axis.scatter(macs, places, label="MACs", **_marks(places, "o"))
    axis.set_xlim(0, max(cost.max(), macs.max()) * 1.06)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axis.grid(axis="x")
    axis.set_axisbelow(True)
    _legend_above(axis)


def _legend_above(axis) -> None:
    handles, labels = axis.get_legend_handles_labels()
    order = np.argsort([label not in (*BITS, COST) for label in labels], kind="stable")  # the bars first
    axis.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        borderpad=0.2,
        borderaxespad=0.2,
        handletextpad=0.5,
    )


def _by_row(values: list[float], edges: np.ndarray, reduce) -> np.ndarray:
    """One value a row of layers; NaN where no layer of the row has one (0 for sums)."""
    values = np.asarray(values, dtype=np.float64)
    parts = [values[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return np.array([reduce(part) if reduce is np.nansum or not np.isnan(part).all() else np.nan for part in parts])
