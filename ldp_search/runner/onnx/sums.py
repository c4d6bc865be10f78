"""Residual sums in integers: onnxruntime adds uint8 codes in one kernel (QLinearAdd), also with the Relu behind the sum.

A sum whose terms are integers already, and which a layer of 8 bits reads, is rounded to that layer's grid for its other readers
too, as the outputs of convolutions are; it stays in floating point where that grid would cut much of it off.
"""

from __future__ import annotations

from onnxscript import ir

from .conv_outputs import end_of, full_grid, redirect
from .writer import Writer


def round_sums(writer: Writer, measure) -> None:
    """Round the sums between integer layers.

    Args:
        measure: from values to {name: (lowest, highest) on the example inputs}.
    """
    writer.graph.sort()
    ends: list[ir.Value] = []
    for node in writer.graph:
        if node.op_type == "Add" and all(_is_integer(value) or value in ends for value in node.inputs):
            end = end_of(node)
            if full_grid(end) is not None:
                ends.append(end)
    if not ends:
        return
    ranges = measure(ends)
    for end in ends:
        last = end.producer()
        terms = (last if last.op_type == "Add" else last.inputs[0].producer()).inputs
        grid = full_grid(end)
        if all(map(_is_integer, terms)) and grid.holds(*ranges[end.name]):
            redirect(writer, end, grid.quantize, grid.dequantized)


def _is_integer(value: ir.Value) -> bool:
    """Whether it is what a node made of 8-bit codes that are computed."""
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0].const_value is None
