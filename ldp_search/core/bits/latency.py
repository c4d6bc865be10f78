"""Measured latency: the table that `python -m ldp_search.profile` writes, and what it says of a network's layers.

A layer takes the time of the smallest container that holds its weight bits and its input bits: an integer product needs both.
Between neighbours of different containers values are converted, which is the layer's time for `edges`; a network all in one
container has none of that. What a network does beside its layers (norms, activations, sums) is measured with the whole, in
every container, and is shared out to the layers by the size of their inputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..model.sites import SiteSpec

FORMAT = 1
KIND = "ldp_search latency table"
MAKE = "Make one there: python -m ldp_search.profile model=... output=TABLE.json."
AGAIN = "Measure anew: python -m ldp_search.profile model=... output=TABLE.json."
FLOAT = 32
"""The container of layers in floating point: of more bits than any integer kernel takes, or kept in full precision."""
TARGETS = {"onnxruntime-cpu": (8, FLOAT), "torch-cpu": (8, FLOAT)}
"""{what runs the network: the containers that it has kernels for}. Smaller containers run on the next of these."""


def kernel_of(target: str, container: int) -> int:
    """The container whose kernel runs a layer in `container`."""
    return next(width for width in TARGETS[target] if width >= container)


@dataclass(frozen=True)
class LayerTime:
    """Microseconds of one call: median, half of the middle half's range, and what is added between other containers."""

    us: float
    spread: float
    edges: float


@dataclass(frozen=True)
class LatencyTable:
    """What was measured.

    content: the file as plain data. containers: ascending, the last is FLOAT. times: {shape: {container: LayerTime}}.
    whole: {container: microseconds of the whole network with all its layers in it}.
    """

    content: dict[str, Any]
    containers: tuple[int, ...]
    times: dict[str, dict[int, LayerTime]]
    whole: dict[int, float]

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a file.

        Raises:
            FileNotFoundError: there is none. ValueError: it is no table, was cut short, or is of another version.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"latency={path} must be a table of the device; there is no such file. {MAKE}")
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"latency={path} is not a whole table ({error}): it was cut short or changed. {AGAIN}") from error
        return cls.of(content, f"latency={path}")

    @classmethod
    def of(cls, content: Any, where: str = "latency") -> LatencyTable:
        """A table from plain data. ValueError as of `load`."""
        if not isinstance(content, Mapping) or content.get("kind") != KIND:
            raise ValueError(f"{where} must be a table that ldp_search.profile wrote; it is none. {AGAIN}")
        if content.get("format") != FORMAT:
            raise ValueError(f"{where} must be of format {FORMAT}; it is of {content.get('format')!r}. {AGAIN}")
        try:
            containers = tuple(int(width) for width in content["containers"])
            whole = {width: _time(content["whole"][str(width)]) for width in containers}
            times = {row["shape"]: _times(row["times"], containers) for row in content["rows"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} is not whole ({type(error).__name__}: {error}). {AGAIN}") from error
        if not times or list(containers) != sorted(set(containers)) or containers[-1] != FLOAT:
            raise ValueError(f"{where} must have rows, and ascending containers up to {FLOAT}; received {containers}. {AGAIN}")
        return cls(dict(content), containers, times, whole)

    def searched_containers(self, most: int) -> list[int]:
        """The containers as numbers of bits that a search may give: those in floating point have `most`."""
        return sorted({min(width, most) for width in self.containers})

    def of_layers(self, specs: Mapping[str, SiteSpec], device: Any = "cpu") -> Latency:
        """The times of a network's layers. Products outside of layers run in floating point whatever their bits: in the whole.

        Raises:
            ValueError: a layer's shape was not measured: the table is of another model, or of other inputs.
        """
        shapes = {name: shape_of(spec) for name, spec in specs.items() if spec.module is not None and spec.calls}
        missing = {name: shape for name, shape in shapes.items() if shape not in self.times}
        if missing:
            listed = "; ".join(f"{name}: {shape}" for name, shape in [*missing.items()][:3])
            raise ValueError(
                f"The latency table must have every layer's shape, but {len(missing)} of {len(shapes)} layers are not in it "
                f"({listed}). It is of {self.content.get('model')!r} with inputs {self.content.get('inputs')}. Give the table "
                f"of this model at this size of inputs. {AGAIN}"
            )
        uniform, between = ([[0.0] * len(self.containers) for _ in specs] for _ in range(2))
        for row, (name, spec) in enumerate(specs.items()):
            for place, width in enumerate(self.containers if name in shapes else ()):
                found = self.times[shapes[name]][width]
                uniform[row][place], between[row][place] = found.us * spec.calls, found.edges * spec.calls
        numel = torch.tensor([s.input_numel if name in shapes else 0 for name, s in specs.items()], dtype=torch.float64)
        alone = torch.tensor(uniform, dtype=torch.float64)
        whole = torch.tensor([self.whole[width] for width in self.containers], dtype=torch.float64)
        beside = whole - alone.sum(0)  # less than nothing where kernels of neighbours are one in the whole
        alone *= torch.where(beside < 0, whole / alone.sum(0), 1.0)
        alone += (numel / numel.sum().clamp_min(1))[:, None] * beside.clamp_min(0)
        widths = torch.tensor(self.containers, dtype=torch.float64)
        return Latency(widths, alone + torch.tensor(between, dtype=torch.float64), alone).to(device)


@dataclass(frozen=True)
class Latency:
    """Predicted microseconds of a network's layers.

    containers: (containers,) ascending. mixed, alone: (layers, containers), where the neighbours are in other containers, and
    where all layers are in this one.
    """

    containers: Tensor
    mixed: Tensor
    alone: Tensor

    def to(self, device: Any) -> Latency:
        return Latency(self.containers.to(device), self.mixed.to(device), self.alone.to(device))

    def layer_times(self, bits: Tensor) -> Tensor:
        """(..., layers) microseconds at `bits` (..., layers, kinds), among neighbours in other containers."""
        return self._times(self.mixed, self._places(bits))

    def total(self, bits: Tensor) -> Tensor:
        """(...) microseconds of the network at `bits` (..., layers, kinds)."""
        places = self._places(bits)
        runs = (self.alone != 0).any(1)  # a product outside of layers has no container
        one = (places[..., runs] == places[..., runs][..., :1]).all(-1)
        mixed, alone = (self._times(times, places).sum(-1) for times in (self.mixed, self.alone))
        return torch.where(one, alone, mixed)

    def _places(self, bits: Tensor) -> Tensor:
        needed = torch.maximum(bits[..., 0], bits[..., 1]).double().contiguous()
        return torch.searchsorted(self.containers, needed).clamp(max=len(self.containers) - 1)

    @staticmethod
    def _times(times: Tensor, places: Tensor) -> Tensor:
        return times.expand(*places.shape, -1).gather(-1, places[..., None]).squeeze(-1)


def shape_of(spec: SiteSpec) -> str:
    """Kind and shape of a layer, on which its time depends: of one call, a sample."""
    layer, calls = spec.module, max(1, spec.calls)
    words = [spec.kind, "x".join(map(str, spec.weights[0].shape))]
    for name in ("stride", "padding", "dilation", "groups", "padding_mode"):
        value = getattr(layer, name, None)
        if value is not None:
            words.append(f"{name}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    bias = "bias" if getattr(layer, "bias", None) is not None else "no bias"
    return " ".join([*words, bias, f"input={spec.input_numel // calls} macs={spec.macs // calls}"])


def _times(times: Mapping[str, Mapping[str, float]], containers: tuple[int, ...]) -> dict[int, LayerTime]:
    return {
        width: LayerTime(_time(row["us"]), float(row["spread"]), _time(row["edges"]))
        for width in containers
        for row in (times[str(width)],)
    }


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"times are microseconds; received {value!r}")
    return float(value)
