"""The trajectory: bits of every layer over progress, in bounded memory whatever the length of the training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import tables

KINDS = ("weight_bits", "input_bits", "grad_bits", "weight_grad_bits")
"""Columns of a table; the last one where a space splits the gradient's bits."""
BUDGET_BYTES = 64 * 2**20


class Trajectory:
    """Records (progress, bits) once per step. When full, every second record is dropped; first and last stay exact.

    Rows live where the bits live and are copied to the host only when read, so recording never waits for the device.

    computed: (layers, kinds), which bits are in a product that training computes; None where that is not known.
    """

    def __init__(self, layers: list[str], capacity: int | None = None):
        self.layers = list(layers)
        self.computed: list[list[bool]] | None = None
        row_bytes = max(1, 3 * len(self.layers))
        self.capacity = capacity or max(64, min(4096, BUDGET_BYTES // row_bytes)) // 2 * 2
        self.stride, self.seen = 1, 0
        self._progress: list[float] = []
        self._rows: Tensor | None = None
        self._last: tuple[float, Tensor] | None = None

    def append(self, progress: float, bits: Tensor) -> None:
        """Record the bits (layers, kinds) that were in force up to `progress`."""
        row = bits.to(torch.uint8) if not bits.is_floating_point() else torch.round(bits).to(torch.uint8)
        self._last = (progress, row)
        if self.seen % self.stride == 0:
            if self._rows is None or self._rows.device != row.device:
                rows = torch.empty(self.capacity, *row.shape, dtype=torch.uint8, device=row.device)
                if self._rows is not None:
                    rows.copy_(self._rows)
                self._rows = rows
            if len(self._progress) == self.capacity:
                self._rows[: self.capacity // 2] = self._rows[::2].clone()
                self._progress = self._progress[::2]
                self.stride *= 2
            if self.seen % self.stride == 0:
                self._rows[len(self._progress)] = row
                self._progress.append(progress)
        self.seen += 1

    def __len__(self) -> int:
        return len(self.progress)

    @property
    def progress(self) -> list[float]:
        """Progress at the end of each recorded step."""
        last = [] if self._last is None or self._progress[-1] == self._last[0] else [self._last[0]]
        return self._progress + last

    @property
    def bits(self) -> Tensor:
        """(records, layers, kinds) uint8 on the host."""
        if self._last is None or self._rows is None:
            return torch.empty(0, len(self.layers), 3, dtype=torch.uint8, device="cpu")
        rows = self._rows[: len(self._progress)].cpu()
        return torch.cat([rows, self._last[1].cpu()[None]]) if len(self) > len(rows) else rows

    @property
    def last(self) -> Tensor:
        """(layers, kinds) uint8 on the host: the bits of the newest record, which is never thinned out.

        Raises:
            ValueError: nothing is recorded yet.
        """
        if self._last is None:
            raise ValueError("No step is recorded yet: ldp.step(progress) records one.")
        return self._last[1].cpu()

    def _repr_html_(self) -> str:
        """Bits of every layer (weights, inputs, gradients) at five moments of what is recorded; a dash for a gradient's that is
        never computed.
        """
        bits, progress = self.bits, self.progress
        if not progress:
            return tables.lines([f"No step is recorded yet, of {len(self.layers):,} layers."])
        moments = sorted({round(i * (len(progress) - 1) / 4) for i in range(5)})
        columns = ["layer", *(f"{progress[moment]:.0%}" for moment in moments)]
        used = self.computed or [[True] * bits.shape[-1]] * len(self.layers)

        def field(moment: int, layer: int) -> str:
            pairs = zip(bits[moment, layer].tolist(), used[layer], strict=True)
            return " ".join(str(value) if is_used else "-" for value, is_used in pairs)

        rows = [[name, *(field(moment, i) for moment in moments)] for i, name in enumerate(self.layers)]
        each = ", ".join(kind.replace("_", " ") for kind in KINDS[: bits.shape[-1]])
        told = f"{self.seen:,} steps, {len(progress):,} of them recorded, up to {progress[-1]:.0%}; in a field: {each}"
        return tables.as_html(columns, rows) + tables.lines([told])

    def state_dict(self) -> dict:
        return {
            "layers": self.layers,
            "capacity": self.capacity,
            "stride": self.stride,
            "seen": self.seen,
            "progress": list(self._progress),
            "rows": None if self._rows is None else self._rows[: len(self._progress)].cpu().clone(),
            "last": None if self._last is None else (self._last[0], self._last[1].cpu().clone()),
        }

    def load_state_dict(self, state: dict) -> None:
        self.layers, self.capacity = list(state["layers"]), state["capacity"]
        self.stride, self.seen = state["stride"], state["seen"]
        self._progress, self._last = list(state["progress"]), state["last"]
        self._rows = None
        if state["rows"] is not None:
            self._rows = torch.empty(self.capacity, *state["rows"].shape[1:], dtype=torch.uint8, device="cpu")
            self._rows[: len(self._progress)] = state["rows"]

    def columns(self) -> dict[str, list]:
        """Long form, one row a record and layer: progress, layer, weight_bits, input_bits, grad_bits."""
        bits, progress = self.bits, self.progress
        out: dict[str, list] = {
            "progress": [p for p in progress for _ in self.layers],
            "layer": self.layers * len(progress),
        }
        return out | {kind: bits[..., k].flatten().tolist() for k, kind in enumerate(KINDS[: bits.shape[-1]])}

    def to_frame(self):
        """The long form as a pandas DataFrame."""
        return _pandas().DataFrame(self.columns())

    def save(self, path: str | Path) -> None:
        """Write the long form, as Parquet or CSV by the suffix."""
        path = Path(path)
        if path.suffix == ".parquet":
            self.to_frame().to_parquet(path, index=False)
        elif path.suffix == ".csv":
            self.to_frame().to_csv(path, index=False)
        else:
            raise ValueError(f"A trajectory is saved as .parquet or .csv; received {path.name!r}.")

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` wrote."""
        path, pandas = Path(path), _pandas()
        if path.suffix not in (".parquet", ".csv"):
            raise ValueError(f"A trajectory is a .parquet or .csv file; received {path.name!r}.")
        if not path.is_file():
            raise FileNotFoundError(f"No trajectory at {path}: give the schedule.parquet of a run.")
        names = {"dtype": {"layer": str}, "keep_default_na": False}  # a layer may be called "0", or "" where it is the model
        frame = pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path, **names)
        missing = {"progress", "layer", *KINDS[:3]} - set(frame.columns)
        if missing:
            raise ValueError(
                f"A trajectory needs the columns progress, layer, {', '.join(KINDS[:3])}; {path} lacks {sorted(missing)}."
            )
        layers = list(dict.fromkeys(frame["layer"]))
        kinds = [kind for kind in KINDS if kind in frame.columns]
        values = torch.from_numpy(frame[kinds].to_numpy(dtype="uint8").copy()).view(-1, len(layers), len(kinds))
        out = cls(layers, capacity=max(2, len(values) + len(values) % 2))
        for progress, row in zip(frame["progress"].to_numpy()[:: len(layers)].tolist(), values, strict=True):
            out.append(progress, row)
        return out


def _pandas():
    """pandas only where a table is asked for: the method itself needs torch alone."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Tables need pandas and pyarrow: pip install pandas pyarrow") from error
    return pandas
