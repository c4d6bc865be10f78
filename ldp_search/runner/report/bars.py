"""The layers of a run at its end as bars: their bits, beside their shares of the training cost and of the MACs."""

from __future__ import annotations

import numpy as np

from .layers import Layer
from .schedule import KINDS
from .style import FAINT, INK, SERIES, TALLEST, WIDTH, BitScale, drawing, label_rows, row_edges

COST = "training cost (bit operations of the run)"


def layers_figure(layers: list[Layer], scale: BitScale) -> bytes:
    """Bits of each layer at the end, beside its share of the training cost and of the MACs."""
    edges = row_edges(len(layers), 160 if len(layers) <= 160 else 120)
    rows = len(edges) - 1
    inner = float(np.clip(0.24 * rows, 1.3, TALLEST - 1.4))
    with drawing(WIDTH, inner + 1.2) as (figure, png):
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.1))
        _bits_bars(left, layers, edges, scale)
        _share_bars(right, layers, edges)
        left.set_ylim(rows - 0.4, -0.6)
        label_rows(left, [layers[i].name for i in edges[:-1]], inner)
        if rows < len(layers):
            left.set_ylabel(
                f"{len(layers):,} layers; each row {np.diff(edges).max()} in a row: mean bits, sum of shares"
            )
    return bytes(png)


def _bits_bars(axis, layers: list[Layer], edges: np.ndarray, scale: BitScale) -> None:
    bits = {kind: _by_row([getattr(layer, kind) for layer in layers], edges, np.nanmean) for kind in KINDS}
    places = np.arange(len(edges) - 1)
    axis.barh(
        places,
        np.nan_to_num(bits["weight"]),
        height=0.78,
        color=[scale.colour(b) for b in bits["weight"]],
        label="weights",
    )
    size = 26 if len(places) <= 60 else 8
    if not np.array_equal(bits["input"], bits["weight"], equal_nan=True):
        axis.scatter(
            bits["input"],
            places,
            s=size,
            marker="D",
            color="white",
            edgecolor=INK,
            linewidth=0.9,
            zorder=3,
            label="inputs",
        )
    if not np.isnan(bits["grad"]).all():
        axis.scatter(
            bits["grad"], places, s=size * 2, marker="|", color=SERIES[1], linewidth=1.6, zorder=3, label="gradients"
        )
    highest = np.nanmax([np.nanmax(b) for b in bits.values() if not np.isnan(b).all()], initial=1)
    axis.set_xlim(0, highest * 1.04)
    step = max(1, int(np.ceil(highest / 8)))
    axis.set_xticks(np.arange(0, highest + 1, step))
    axis.grid(axis="x", zorder=0)
    axis.set_axisbelow(True)
    axis.set_title("Bits at the end", pad=22)
    _legend_above(axis)


def _share_bars(axis, layers: list[Layer], edges: np.ndarray) -> None:
    cost = 100 * _by_row([layer.cost_share for layer in layers], edges, np.nansum)
    macs = 100 * _by_row([layer.mac_share for layer in layers], edges, np.nansum)
    axis.set_title("Share of the training cost", pad=22)
    if not cost.any() and not macs.any():
        axis.text(
            0.5, 0.5, "known once allocation.json\nis written", transform=axis.transAxes, ha="center", color=FAINT
        )
        axis.set_xticks([])
        return
    places = np.arange(len(edges) - 1)
    axis.barh(places, cost, height=0.78, color=SERIES[0], label=COST)
    size = 26 if len(places) <= 60 else 8
    axis.scatter(macs, places, s=size, marker="o", color="white", edgecolor=INK, linewidth=0.9, zorder=3, label="MACs")
    axis.set_xlim(0, max(cost.max(), macs.max()) * 1.06)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axis.grid(axis="x")
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    _legend_above(axis)


def _legend_above(axis) -> None:
    handles, labels = axis.get_legend_handles_labels()
    order = np.argsort([label not in ("weights", COST) for label in labels], kind="stable")  # the bars first
    axis.legend([handles[i] for i in order], [labels[i] for i in order], loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0.2, borderaxespad=0.2, handletextpad=0.5)


def _by_row(values: list[float], edges: np.ndarray, reduce) -> np.ndarray:
    """One value a row of layers; NaN where no layer of the row has one (0 for sums)."""
    values = np.asarray(values, dtype=np.float64)
    parts = [values[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return np.array([reduce(part) if reduce is np.nansum or not np.isnan(part).all() else np.nan for part in parts])
