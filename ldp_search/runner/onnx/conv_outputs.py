"""The rounding of convolutions' outputs, without which onnxruntime has no integer kernel for a convolution.

An output that only the next quantized layer reads is rounded already: that layer's own grid is taken. Any other (a residual
sum, a SiLU, the end of the network) is rounded to 8 bits here, in addition to what training did: on the grid of one of its
readers where that has all 8 bits and holds the values, else on the range that the example inputs show, widened to four standard
deviations of the folded batch-norm, so that a poor example does not cut off what real data needs; without a batch-norm, by as
much as the grid of the convolution's input, which training has found, is wider than the example's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnxscript import ir

from .integer_codes import InputCodes
from .writer import Convolution, Writer, set_input

FULL = 255  # codes of a grid, at least, that loses nothing that 8 bits could hold
MOST_BEYOND = 0.25  # of a grid's width that values may lie outside of it
MOST_WIDER = 8.0  # that real data is taken to be than the example: three of eight bits


class FullGrid(NamedTuple):
    """The 8-bit grid to which a reader rounds a value: its nodes, and the real values between which it lies."""

    quantize: ir.Node
    dequantized: ir.Value
    low: float
    high: float

    def holds(self, low: float, high: float) -> bool:
        """Whether it cuts little off values between `low` and `high`. A layer may clip its input much; what passes by it needs
        all of its values.
        """
        return max(self.low - low, high - self.high) <= MOST_BEYOND * (self.high - self.low)


def write_biases(writer: Writer) -> None:
    """Before it the graph cannot run."""
    for convolution in writer.convolutions:
        bias = _take_shift(convolution, end_of(convolution.node)).bias
        codes = np.rint(bias / convolution.bias_scale).astype(np.int32)
        set_input(convolution.node, 2, writer.integers(codes, convolution.bias_scale, 0, f"{convolution.layer}.bias"))


def round_outputs(writer: Writer, measure) -> list[str]:
    """Round the outputs that are not rounded yet.

    Args:
        measure: from values to {name: (lowest, highest) on the example inputs}; None: round nothing more than the layers
            themselves do.

    Returns:
        the layers whose output stays in floating point, so that they have no integer kernel.
    """
    ends = [(convolution, end_of(convolution.node)) for convolution in writer.convolutions]
    open_ended = [(convolution, end) for convolution, end in ends if not _rounded_already(end)]
    if measure is None or not open_ended:
        return [convolution.layer for convolution, _ in open_ended]
    ranges = measure([*(end for _, end in open_ended), *(c.node.inputs[0] for c, _ in open_ended if c.spread is None)])
    for convolution, end in open_ended:
        grid = full_grid(end)
        if grid is not None and grid.holds(*ranges[end.name]):
            redirect(writer, end, grid.quantize, grid.dequantized)
        else:
            found = ranges[end.name]
            if end.producer().op_type != "Clip":
                found = _of_real_data(convolution, found, ranges.get(convolution.node.inputs[0].name))
            _round(writer, end, convolution, *found)
    return []


def end_of(node: ir.Node) -> ir.Value:
    """The convolution's output, or that of the Relu or Clip that alone reads it: both fuse into the kernel."""
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0][0].op_type in ("Relu", "Clip") and not node.outputs[0].is_graph_output():
        return uses[0][0].outputs[0]
    return node.outputs[0]


def _take_shift(convolution: Convolution, end: ir.Value) -> Convolution:
    """Where only a Sub of a constant reads the output (a minmax grid's shift), put it into the bias."""
    uses = list(end.uses())
    if len(uses) != 1 or uses[0][0].op_type != "Sub" or end is not convolution.node.outputs[0] or end.is_graph_output():
        return convolution
    sub = uses[0][0]
    if sub.inputs[1].const_value is None or sub.inputs[1].const_value.size != 1:
        return convolution
    bias = convolution.bias - float(sub.inputs[1].const_value.numpy())
    sub.outputs[0].replace_all_uses_with(end, replace_graph_outputs=True)
    sub.graph.remove(sub, safe=True)
    return convolution._replace(bias=bias)


def _rounded_already(end: ir.Value) -> bool:
    users = [user for user, _ in end.uses()]
    return len(users) == 1 and rounds_to_fixed_grid(users[0]) and not end.is_graph_output()


def _of_real_data(convolution: Convolution, found: tuple, inputs: tuple | None) -> tuple[float, float]:
    """The range of an output, from that on the example inputs.

    inputs: (lowest, highest) of the convolution's input on them; None: its batch-norm tells more.
    """
    if convolution.spread is not None:
        return min(found[0], convolution.spread[0]), max(found[1], convolution.spread[1])
    last = convolution.node.inputs[0].producer()
    if inputs is None or last is None or last.op_type != "DequantizeLinear" or last.inputs[1].const_value is None:
        return found
    codes = last.inputs[0].producer()
    bounds = (0, 255)
    if codes is not None and codes.op_type == "Clip":
        bounds = tuple(int(bound.const_value.numpy()) for bound in codes.inputs[1:])
    width = float(last.inputs[1].const_value.numpy()) * (bounds[1] - bounds[0])
    wider = max(1.0, width / max(inputs[1] - inputs[0], width / MOST_WIDER))
    return found[0] * wider, found[1] * wider


def full_grid(value: ir.Value) -> FullGrid | None:
    """That of the first reader with one."""
    for user, _ in value.uses():
        if rounds_to_fixed_grid(user):
            low, high, end = 0, 255, only_reader(user)
            if end is not None and end.op_type == "Clip":
                low, high = (int(bound.const_value.numpy()) for bound in end.inputs[1:])
                end = only_reader(end)
            if end is not None and end.op_type == "DequantizeLinear" and high - low + 1 >= FULL:
                scale, zero = (float(constant.const_value.numpy()) for constant in user.inputs[1:])
                return FullGrid(user, end.outputs[0], scale * (low - zero), scale * (high - zero))
    return None


def rounds_to_fixed_grid(node: ir.Node | None) -> bool:
    """Whether a node is the rounding of a layer's input; attention's operands have grids that the graph computes."""
    return node is not None and node.op_type == "QuantizeLinear" and all(v.const_value is not None for v in node.inputs[1:])


def only_reader(node: ir.Node) -> ir.Node | None:
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 else None


def _round(writer: Writer, end: ir.Value, convolution: Convolution, low: float, high: float) -> None:
    """Round a value to 8 bits between `low` and `high`, for all its readers."""
    positive = end.producer().op_type == "Relu"
    low, high = 0.0 if positive else min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-8)
    codes = InputCodes(scale, round(-low / scale), 0, 255, 0.0)
    out = writer.quantized(end, codes, f"{convolution.layer}.output")
    redirect(writer, end, out.producer().inputs[0].producer(), out)


def redirect(writer: Writer, end: ir.Value, quantize: ir.Node, out: ir.Value) -> None:
    """All who read `end`, except `quantize`, read `out` instead."""
    for user, index in list(end.uses()):
        if user is not quantize:
            user.replace_input_with(index, out)
    for index, value in enumerate(list(writer.graph.outputs)):
        if value is end:
            name = end.name
            end.name, out.name = f"{name}.exact", name
            writer.graph.outputs[index] = out
