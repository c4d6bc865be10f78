"""Bounds of values that are rounded next (ReLU6) become bounds of their codes: rounding keeps the order.

onnxruntime puts a Clip into the integer kernel before it only where the grid ends before the Clip does.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from .conv_outputs import only_reader, rounds_to_fixed_grid
from .writer import Writer


def bound_codes(writer: Writer) -> None:
    """Clip codes instead of values, wherever a Clip stands alone before a QuantizeLinear."""
    for clip in [node for node in writer.graph if node.op_type == "Clip" and not node.outputs[0].is_graph_output()]:
        quantize, bounds = only_reader(clip), [constant_of(value) for value in clip.inputs[1:]]
        if rounds_to_fixed_grid(quantize) and len(bounds) == 2 and None not in bounds:
            _bound(writer, quantize, *bounds)
            quantize.replace_input_with(0, clip.inputs[0])
            writer.graph.remove(clip, safe=True)


def _bound(writer: Writer, quantize: ir.Node, lowest: float, highest: float) -> None:
    """Clip what `quantize` gives, in place of the Clip that may do so already."""
    scale, zero = (constant.const_value.numpy() for constant in quantize.inputs[1:])
    bounds = np.clip(np.rint(np.array([lowest, highest], np.float32) / scale) + zero, 0, 255)
    source, reader = quantize, only_reader(quantize)
    if reader is not None and reader.op_type == "Clip":
        bounds = bounds.clip(*(bound.const_value.numpy() for bound in reader.inputs[1:]))
        source = reader
    users = list(source.outputs[0].uses())
    if tuple(bounds) == (0, 255) or not users:
        return
    limits = [writer.constant(f"{quantize.name}.bound", np.uint8(bound)) for bound in bounds]
    clipped = writer.node("Clip", [quantize.outputs[0], *limits], f"{quantize.name}.bounded")
    for user, index in users:
        user.replace_input_with(index, clipped)


def constant_of(value: ir.Value | None) -> float | None:
    """The number that a value is, also through casts that are not computed yet; None: it is no constant, or there is none."""
    if value is None:
        return None
    tensor, node = ir.convenience.get_const_tensor(value), value.producer()
    if tensor is not None:
        return float(tensor.numpy().item()) if tensor.size == 1 else None
    return constant_of(node.inputs[0]) if node is not None and node.op_type == "Cast" else None
