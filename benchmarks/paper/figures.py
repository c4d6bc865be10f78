"""Figures of a folder of results, a set a network and size.

accuracy-*.png      (or perplexity) against the bit operations of the whole training: every seed, mean and standard deviation
cost-*.png          training cost over time
schedule-*.png      the bits of a learned row over time and layers, one panel for weights, inputs and gradients each
allocation-*.png    the bits at the end, layer by layer, mean and range over the seeds
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ldp_search.runner.report.style import FAINT, GRID, SERIES, BitScale, drawing, label_rows

from .costs import over_time
from .front import front
from .store import Store
from .table import GROUP

MOMENTS = 400  # columns of a schedule


@dataclass
class Bits:
    """Of one cell: progress (records,), layers, kinds, values (records, layers, kinds), macs (layers,)."""

    progress: np.ndarray
    layers: list[str]
    kinds: list[str]
    values: np.ndarray
    macs: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Bits | None:
        """What a done cell left; None of fp32."""
        import pyarrow.parquet as pq

        if not (folder / "schedule.parquet").is_file():
            return None
        columns = pq.read_table(folder / "schedule.parquet").to_pydict()
        layers = list(dict.fromkeys(columns["layer"]))
        kinds = [name for name in columns if name not in ("progress", "layer")]
        values = np.stack([np.array(columns[kind], float).reshape(-1, len(layers)) for kind in kinds], -1)
        details = json.loads((folder / "allocation.json").read_text())["layers"]
        macs = np.array([details[name]["macs"] for name in layers], float)
        return cls(np.array(columns["progress"])[:: len(layers)], layers, kinds, values, macs)

    @property
    def cost(self) -> np.ndarray:
        """(records,) in the published accounting."""
        return over_time(torch.from_numpy(self.values), torch.from_numpy(self.macs)).numpy()


def draw_all(store: Store, table: list[dict], lines: list[dict]) -> list[Path]:
    """Draw everything that the results allow; the files."""
    folder, out = store.folder / "figures", []
    folder.mkdir(exist_ok=True)
    for place in dict.fromkeys(tuple(line[name] for name in GROUP[:3]) for line in lines):
        name = "-".join(filter(None, place)).replace(" ", "-").replace("=", "")
        done = [row for row in table if row["status"] == "done" and tuple(row[n] for n in GROUP[:3]) == place]
        means = [line for line in lines if tuple(line[n] for n in GROUP[:3]) == place]
        bits = {row["cell"]: Bits.read(store.folder / "cells" / row["cell"]) for row in done}
        bits = {cell: found for cell, found in bits.items() if found is not None}
        metric = means[0]["metric"]
        drawn = {f"{metric}-{name}": front(done, means, metric)}
        if bits:
            drawn[f"cost-{name}"] = cost_over_time([row for row in done if row["cell"] in bits], bits)
        known = [row for row in done if row["cell"] in bits]  # results may lie here without the schedules of their cells
        learned = list(dict.fromkeys(row["row"] for row in known if row["row"].startswith("learned")))
        for row in learned:
            cells = [r["cell"] for r in known if r["row"] == row]
            drawn[f"schedule-{name}-{row}"] = schedule(bits[cells[0]], cells[0])
        if learned:
            members = {row: [bits[r["cell"]] for r in known if r["row"] == row] for row in learned}
            drawn[f"allocation-{name}"] = allocations(members)
        for key, png in drawn.items():
            (folder / f"{key}.png").write_bytes(png)
            out.append(folder / f"{key}.png")
    return out


def cost_over_time(cells: list[dict], bits: dict[str, Bits]) -> bytes:
    """The first seed of every row that has bits."""
    first = {row["row"]: row["cell"] for row in reversed(cells) if row["cell"] in bits}
    with drawing(9.0, 5.0) as (figure, png):
        axis = figure.subplots()
        axis.grid(color=GRID)
        for index, (row, cell) in enumerate(sorted(first.items())):
            style = {"color": SERIES[index % len(SERIES)], "linestyle": ("-", "--", ":", "-.")[index // len(SERIES) % 4]}
            found = bits[cell]
            axis.stairs(found.cost, [0, *found.progress], baseline=None, label=row, linewidth=1.2, **style)
        axis.set_xlabel("progress")
        axis.set_ylabel("training cost relative to 8/8/8")
        axis.set_xlim(0, 1)
        axis.set_ylim(bottom=0)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return bytes(png)


def schedule(found: Bits, title: str) -> bytes:
    """A panel a kind: layers from the input down, time to the right."""
    scale = BitScale.covering(found.values)
    height = max(3.0, min(9.0, 0.2 * len(found.layers) + 1.2))
    edges = np.linspace(0, 1, MOMENTS + 1)
    chosen = np.minimum(np.searchsorted(found.progress, (edges[1:] + edges[:-1]) / 2), len(found.progress) - 1)
    with drawing(4.2 * len(found.kinds), height) as (figure, png):
        axes = figure.subplots(1, len(found.kinds), sharey=True, squeeze=False)[0]
        for axis, kind, values in zip(axes, found.kinds, np.moveaxis(found.values, -1, 0), strict=True):
            picture = scale.index(values[chosen].T)
            axis.imshow(picture, cmap=scale.cmap, norm=scale.norm, aspect="auto", interpolation="none",
                        extent=(0, 1, len(found.layers) - 0.5, -0.5))  # fmt: skip
            axis.set_title(kind.replace("_", " "))
            axis.set_xlabel("progress")
        label_rows(axes[0], found.layers, height - 1.2, 26)
        figure.suptitle(title, x=0.005, ha="left", fontsize=9, color=FAINT)
        scale.add_bar(figure, list(axes))
    return bytes(png)


def allocations(members: dict[str, list[Bits]]) -> bytes:
    """Final bits: a panel a learned row; a line a kind (mean over the seeds), its band from the least to the most."""
    with drawing(9.5, 1.9 * len(members) + 0.8) as (figure, png):
        axes = figure.subplots(len(members), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (row, cells) in zip(axes, members.items(), strict=True):
            final = np.stack([found.values[-1] for found in cells])
            place = np.arange(final.shape[1])
            for index, kind in enumerate(cells[0].kinds):
                values, style = final[..., index], {"color": SERIES[index]}
                axis.fill_between(place, values.min(0), values.max(0), step="mid", alpha=0.2, linewidth=0, **style)
                axis.step(place, values.mean(0), where="mid", label=kind.replace("_", " "), linewidth=1.5, **style)
            axis.set_title(row)
            axis.set_ylim(1.5, 8.5)
            axis.set_yticks(range(2, 9))
            axis.grid(axis="y", color=GRID)
        axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        layers = next(iter(members.values()))[0].layers
        axes[-1].set_xticks(range(len(layers)), layers, rotation=90, fontsize=7 if len(layers) <= 40 else 4)
    return bytes(png)
