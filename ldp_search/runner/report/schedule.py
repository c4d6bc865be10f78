"""The schedule of a run as arrays: bits of every layer (columns) at every recorded progress (rows)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

KINDS = ("weight", "input", "grad", "weight_grad")
"""What bits are recorded for, in the order of every table and picture; the last where a space splits the gradient's."""
GRADIENTS = KINDS[2:]


@dataclass
class Schedule:
    """Bits over progress and layers. `bits[kind]` is (records, layers), NaN where a layer has no bits of that kind.

    Where the gradient's bits are split, `grad` is in the product dL/dx, and there is a fourth kind, `weight_grad`, in dL/dw.
    A record holds the bits that were in force up to its progress, since the record before.
    """

    progress: np.ndarray
    layers: list[str]
    bits: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.progress)

    @property
    def durations(self) -> np.ndarray:
        """Share of the time that each record stands for: records may be thinned out unevenly."""
        spans = np.diff(self.progress, prepend=min(0.0, self.progress[0]))
        return spans / spans.sum() if spans.sum() > 0 else np.full(len(spans), 1 / len(spans))

    def varies(self, kind: str) -> bool:
        """Whether the bits of `kind` differ anywhere, over progress or over layers."""
        values = self.bits[kind][~np.isnan(self.bits[kind])]
        return values.size > 0 and values.min() != values.max()

    def differs(self, kind: str, other: str) -> bool:
        """Whether two kinds of bits differ anywhere where both are recorded."""
        one, two = self.bits[kind], self.bits[other]
        both = ~np.isnan(one) & ~np.isnan(two)
        return bool(np.any(one[both] != two[both]))

    @property
    def panels(self) -> list[str]:
        """The kinds of bits worth a picture of their own: none of which no layer has any."""
        shown = ["weight"]
        if self.differs("input", "weight"):
            shown.append("input")
        gradients = [kind for kind in GRADIENTS if kind in self.bits and not np.isnan(self.bits[kind]).all()]
        return shown + (gradients if any(map(self.varies, gradients)) else [])

    def compute_bits(self, columns: np.ndarray | None = None) -> np.ndarray:
        """Bits of the forward product of each layer (mean of weight and input bits), as (records, layers)."""
        both = np.stack([self.bits["weight"], self.bits["input"]])
        if columns is not None:
            both = both[:, :, columns]
        known = ~np.isnan(both)
        total = np.where(known, both, 0).sum(0)
        return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)

    def at(self, kind: str, when: np.ndarray) -> np.ndarray:
        """The bits in force at each of the given moments; after the last record, those of the last record."""
        record = np.searchsorted(self.progress, when, side="left")
        return self.bits[kind][np.minimum(record, len(self) - 1)]


def read_schedule(path: Path) -> Schedule:
    """Read `schedule.parquet` (one row per recorded step and layer; layers in forward order).

    Raises:
        ValueError: the file is no such table, or is empty (pyarrow's own errors are ValueErrors or OSErrors too).
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    lacking = [c for c in ("progress", "layer", "weight_bits") if c not in table.column_names]
    if lacking:
        raise ValueError(f"it lacks the columns {', '.join(lacking)}")
    if not table.num_rows:
        raise ValueError("it has no rows")
    coded = pc.dictionary_encode(table["layer"].cast("string")).combine_chunks()
    if hasattr(coded, "chunks"):  # combine_chunks() of a chunked array may give one with one chunk
        coded = coded.chunk(0)
    layers, column = coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False)
    progress, record = np.unique(_numbers(table, "progress"), return_inverse=True)
    bits = {}
    for kind in KINDS[: 4 if "weight_grad_bits" in table.column_names else 3]:
        grid = np.full((len(progress), len(layers)), np.nan, dtype=np.float32)
        if f"{kind}_bits" in table.column_names:
            # After a resume a moment may be there twice: the later row is the one that counts.
            grid[record, column] = _numbers(table, f"{kind}_bits")
        bits[kind] = _filled(grid)
    return Schedule(progress, layers, bits)


def _numbers(table, column: str) -> np.ndarray:
    return np.asarray(table[column].cast("float64").to_numpy(), dtype=np.float64)


def _filled(grid: np.ndarray) -> np.ndarray:
    """Gaps take the value before them (a layer may be recorded only when it changes), leading gaps the first value."""
    known = ~np.isnan(grid)
    if known.all() or not known.any():
        return grid
    rows = np.arange(len(grid))[:, None]
    last = np.maximum.accumulate(np.where(known, rows, -1), axis=0)
    last = np.where(last < 0, np.argmax(known, axis=0)[None, :], last)
    return np.take_along_axis(grid, last, axis=0)
