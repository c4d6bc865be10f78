"""Max-pooling of integers: the largest of rounded values is the largest value, rounded, so the rounding may come first."""

from __future__ import annotations

from onnxscript import ir

from .conv_outputs import full_grid, only_reader, redirect, rounds_to_fixed_grid
from .writer import Writer


def round_before(writer: Writer, measure) -> None:
    """Round what a MaxPool reads as its one reader does; else as a reader of 8 whole bits, which the others then share.

    Args:
        measure: from values to {name: (lowest, highest) on the example inputs}; None: nothing is shared.
    """
    pools = [node for node in writer.graph if node.op_type == "MaxPool" and not any(o.uses() for o in node.outputs[1:])]
    shared = [pool.outputs[0] for pool in pools if not _has_one_reader(pool) and full_grid(pool.outputs[0]) is not None]
    ranges = measure(shared) if measure is not None and shared else {}
    for pool in pools:
        out, grid = pool.outputs[0], full_grid(pool.outputs[0])
        if _has_one_reader(pool):
            _round(writer, pool, only_reader(pool))
        elif grid is not None and out.name in ranges and grid.holds(*ranges[out.name]):
            redirect(writer, out, grid.quantize, grid.dequantized)
            _round(writer, pool, grid.quantize)


def _has_one_reader(pool: ir.Node) -> bool:
    reader = only_reader(pool)
    return rounds_to_fixed_grid(reader) and not pool.outputs[0].is_graph_output()


def _round(writer: Writer, pool: ir.Node, quantize: ir.Node) -> None:
    """Put a rounding like `quantize` before the pool."""
    scale, zero = quantize.inputs[1:]
    codes = writer.node("QuantizeLinear", [pool.inputs[0], scale, zero], f"{quantize.name}.before")
    pool.replace_input_with(0, writer.node("DequantizeLinear", [codes, scale, zero], f"{quantize.name}.before.dequantize"))
