"""Max-pooling of integers: the largest of rounded values is the largest value, rounded, so the rounding may come first."""

from __future__ import annotations

from onnxscript import ir

from .conv_outputs import full_grid, redirect
from .writer import Writer


def round_before(writer: Writer) -> None:
    """Round what a MaxPool reads as its one quantized reader does, or as the one that rounds to 8 whole bits."""
    for node in list(writer.graph):
        if node.op_type == "MaxPool" and not (len(node.outputs) > 1 and node.outputs[1].uses()):
            _round_before(writer, node)


def _round_before(writer: Writer, pool: ir.Node) -> None:
    out, users = pool.outputs[0], [user for user, _ in pool.outputs[0].uses()]
    grid = full_grid(out)
    if grid is not None:
        redirect(writer, out, grid.quantize, grid.dequantized)
        quantize = grid.quantize
    elif len(users) == 1 and users[0].op_type == "QuantizeLinear" and not out.is_graph_output():
        quantize = users[0]
    else:
        return
    scale, zero = quantize.inputs[1:]
    codes = writer.node("QuantizeLinear", [pool.inputs[0], scale, zero], f"{quantize.name}.before")
    pool.replace_input_with(0, writer.node("DequantizeLinear", [codes, scale, zero], f"{quantize.name}.before.dequantize"))
