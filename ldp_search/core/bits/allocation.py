"""The allocation: the integer bits of every layer, the result of a search."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from .. import tables
from .specs import AnyBits, Bits, SplitBits, as_bits, computed


@dataclass
class Allocation:
    """Layer -> bits, with what it costs.

    layers: {name: Bits}. details: {name: {"kind", "macs", "backward_macs", "weight_numel", "searched"}}. summary:
    relative_cost, mean_relative_cost (training, to the space's highest bits), relative_inference_cost, weight_mib, coverage;
    relative_latency and latency_ms where they were predicted; progress where the training had not come to its end.
    """

    layers: dict[str, AnyBits]
    details: dict[str, dict] = field(default_factory=dict)
    summary: dict = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        layers = {name: bits._asdict() | self.details.get(name, {}) for name, bits in self.layers.items()}
        Path(path).write_text(json.dumps({"layers": layers} | self.summary, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Allocation:
        """Read what `save` wrote; FileNotFoundError or ValueError with the remedy when it is not that."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No allocation at {path}: give the allocation.json of a run.")
        try:
            data = json.loads(path.read_text())
            rows = data.pop("layers")
            kinds = {name: [k for k in SplitBits._fields if k in row or k in Bits._fields] for name, row in rows.items()}
            layers = {name: as_bits([int(row.pop(k)) for k in kinds[name]]) for name, row in rows.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"An allocation is JSON with layers -> weight, input, grad; {path} is not: {error}.") from error
        return cls(layers, rows, data)

    def _shown(self, name: str, kinds: tuple[str, ...]) -> tuple[int | str, ...]:
        """A layer's bits of these kinds; a dash for those of a gradient that is never computed."""
        bits, details = self.layers[name], self.details.get(name, {})
        macs = details.get("macs", 0)
        used = dict(zip(bits._fields, computed(len(bits), macs, details.get("backward_macs", (macs, macs))), strict=True))
        return tuple((getattr(bits, kind) if used[kind] else "-") if kind in used else "" for kind in kinds)

    def table(self) -> tuple[list[str], list[tuple[int | str, ...]]]:
        """Columns, and a row a layer: name, kind, MACs, its bits, and "-" for those of a gradient that is never computed."""
        kinds = max((bits._fields for bits in self.layers.values()), key=len, default=Bits._fields)
        rows = [
            (name, *(self.details.get(name, {}).get(key, "") for key in ("kind", "macs"))) + self._shown(name, kinds)
            for name in self.layers
        ]
        return ["layer", "kind", "MACs", *(f"{kind.replace('_', ' ')} bits" for kind in kinds)], rows

    def _costs(self) -> list[str]:
        """A line, where costs are known."""
        shown = {key: value for key, value in self.summary.items() if isinstance(value, int | float)}
        return [", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())] if shown else []

    def __str__(self) -> str:
        columns, rows = self.table()
        return "\n".join([tables.as_text([columns, *rows], left=2), *self._costs()])

    def _repr_html_(self) -> str:
        columns, rows = self.table()
        return tables.as_html(columns, rows, bits=range(3, len(columns))) + tables.lines(self._costs())
