"""Grids that a graph computes, of what is rounded by its own range: attention's operands, weights that depend on the input.

The formulas are those of the quantizers (`core/quantize`), in ONNX's operators.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from onnxscript import ir

from ...core.quantize.grid import SMALLEST_SCALE, Grid
from ...core.quantize.least_squares import LeastSquares
from ...core.quantize.quantizers import Clip, MinMax, Quantizer, Symmetric, clip_ratio
from .integer_codes import CONTAINER_BITS
from .writer import Writer

Number = ir.Value | float


class OwnGrid(NamedTuple):
    """x_q = scale * (clip(round((x - shift) / scale) + zero, first, last) - zero) + shift, of values in the graph or numbers.

    first, last: None: the codes keep to them by themselves.
    """

    scale: Number
    zero: Number = 0.0
    first: Number | None = None
    last: Number | None = None
    shift: Number | None = None

    @classmethod
    def of(cls, grid: Grid) -> OwnGrid:
        """A fixed grid of one scale."""
        scale, offset = float(grid.scale), 0.0 if grid.offset is None else float(grid.offset)
        bounds = [None if b is None else float(np.rint((float(b) - offset) / scale)) for b in (grid.low, grid.high)]
        return cls(scale, 0.0, *bounds, shift=offset or None)


class Formula:
    """Nodes of one formula; numbers among their inputs become constants."""

    def __init__(self, writer: Writer, name: str):
        self.writer, self.name = writer, name

    def __call__(self, op: str, *inputs: Number, **attributes) -> ir.Value:
        values = [value if isinstance(value, ir.Value) else self.constant(value) for value in inputs]
        return self.writer.node(op, values, f"{self.name}.{op}", **attributes)

    def constant(self, value: float, dtype=np.float32) -> ir.Value:
        return self.writer.constant(f"{self.name}.constant", dtype(value))

    def codes(self, value: Number) -> ir.Value:
        """A whole number as uint8."""
        if isinstance(value, ir.Value):
            return self("Cast", value, to=ir.DataType.UINT8.value)
        return self.constant(value, np.uint8)


class _Range:
    """Statistics of a tensor in the graph, computed where they are asked for. axes: those that have their own."""

    def __init__(self, formula: Formula, x: ir.Value, axes: tuple[int, ...]):
        self.formula, self.x, self.axes = formula, x, axes

    def _reduced(self, op: str, x: ir.Value) -> ir.Value:
        if not self.axes:
            return self.formula(op, x, keepdims=0)
        others = np.array([d for d in range(len(self.x.shape)) if d not in self.axes])
        return self.formula(op, x, self.formula.writer.constant(f"{self.formula.name}.axes", others), keepdims=1)

    @property
    def low(self) -> ir.Value:
        return self._reduced("ReduceMin", self.x)

    @property
    def high(self) -> ir.Value:
        return self._reduced("ReduceMax", self.x)

    @property
    def spread(self) -> ir.Value:
        return self._reduced("ReduceMean", self.formula("Abs", self.x))


def _minmax(f: Formula, x: _Range, quantizer, bits: int, clip: float | None) -> OwnGrid:
    low = x.low
    return OwnGrid(_scale(f, f("Sub", x.high, low), 2.0**bits - 1), shift=low)


def _symmetric(f: Formula, x: _Range, quantizer, bits: int, clip: float | None) -> OwnGrid:
    low, middle = x.low, 2.0 ** (bits - 1)
    signed = f("Less", low, 0.0)
    most = f("Where", signed, middle - 1, 2 * middle - 1)
    return OwnGrid(_scale(f, f("Max", f("Neg", low), x.high), most), f("Where", signed, middle, 0.0))


def _clip(f: Formula, x: _Range, quantizer, bits: int, clip: float | None) -> OwnGrid:
    low, middle = x.low, 2.0 ** (bits - 1)
    signed = f("Less", low, 0.0)
    of_signed, of_positive = (float(clip_ratio(torch.tensor(float(b)))) for b in (bits, bits + 1))
    ratio = f("Where", signed, of_signed * (clip or 1.0), of_positive * 1.5 * (clip or 1.0))
    bound = f("Min", f("Mul", x.spread, ratio), f("Max", f("Neg", low), x.high))
    most = f("Where", signed, middle - 1, 2 * middle - 1)
    first = f("Where", signed, 1.0, 0.0)
    return OwnGrid(_scale(f, bound, most), f("Where", signed, middle, 0.0), first, 2 * middle - 1)


def _least_squares(f: Formula, x: _Range, quantizer: LeastSquares, bits: int, clip: float | None) -> OwnGrid:
    low, high, most = x.low, x.high, 2.0**bits - 1
    if clip is not None:
        bound = f("Mul", x.spread, clip)
        low, high = f("Max", low, f("Neg", bound)), f("Min", high, bound)
    ends = (0.0, most) if clip is not None else (None, None)
    if not quantizer.exact_zero:
        return OwnGrid(_scale(f, f("Sub", high, low), most), 0.0, *ends, shift=low)
    low, high = f("Min", low, 0.0), f("Max", high, 0.0)
    scale = _scale(f, f("Sub", high, low), most)
    zero = f("Neg", f("Floor", f("Add", f("Div", low, scale), 0.501)))
    return OwnGrid(scale, zero, *ends)


def _scale(f: Formula, width: ir.Value, most: Number) -> ir.Value:
    return f("Max", f("Div", width, most), SMALLEST_SCALE)


_GRIDS = {MinMax: _minmax, Symmetric: _symmetric, Clip: _clip, LeastSquares: _least_squares}


def known(quantizer: Quantizer) -> bool:
    """Whether its formula is here; by exact type, since a subclass has its own."""
    return type(quantizer) in _GRIDS


def own_grid(f: Formula, x: ir.Value, quantizer: Quantizer, bits: int, axes: tuple = (), clip: float | None = None) -> OwnGrid:
    """What `Quantizer.grid` gives for the tensor's own statistics. clip: as there."""
    return _GRIDS[type(quantizer)](f, _Range(f, x, axes), quantizer, bits, clip)


def in_one_node(f: Formula, x: ir.Value, quantizer: Quantizer, bits: int) -> ir.Value | None:
    """`x` rounded by its own range where one operator finds it and rounds to it: 8 bits of `mse`. It differs by one level at an
    end of the range, where that end lies within a thousandth of the middle between two levels.
    """
    if bits != CONTAINER_BITS or type(quantizer) is not LeastSquares or not quantizer.exact_zero:
        return None
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f.writer.unique(f"{f.name}.quantize"))
    for value, name in zip(node.outputs, ("codes", "scale", "zero_point"), strict=True):
        value.name = f"{node.name}.{name}"
    f.writer.graph.append(node)
    return f("DequantizeLinear", *node.outputs)


def rounded(f: Formula, x: ir.Value, grid: OwnGrid, in_codes: bool) -> ir.Value:
    """`x` on its grid. in_codes: as uint8 in between, of grids of up to 8 bits and one scale."""
    x = x if grid.shift is None else f("Sub", x, grid.shift)
    x = _by_codes(f, x, grid) if in_codes else _by_values(f, x, grid)
    return x if grid.shift is None else f("Add", x, grid.shift)


def _by_codes(f: Formula, x: ir.Value, grid: OwnGrid) -> ir.Value:
    scale = grid.scale if isinstance(grid.scale, ir.Value) else f.constant(grid.scale)
    zero = f.codes(grid.zero)
    codes = f("QuantizeLinear", x, scale, zero)
    if grid.first is not None and (grid.first, grid.last) != (0.0, 255.0):
        codes = f("Clip", codes, f.codes(grid.first), f.codes(grid.last))
    return f("DequantizeLinear", codes, scale, zero)


def _by_values(f: Formula, x: ir.Value, grid: OwnGrid) -> ir.Value:
    x = f("Round", f("Div", x, grid.scale))
    if grid.first is not None:
        first, last = ((f("Sub", end, grid.zero) if grid.zero != 0.0 else end) for end in (grid.first, grid.last))
        x = f("Min", f("Max", x, first), last)
    return f("Mul", x, grid.scale)
