"""Writing quantized nodes into a float ONNX graph: QuantizeLinear, DequantizeLinear and integer weights around a product.

The forms are those that onnxruntime fuses into integer kernels (found by trying: it does not fuse their neighbours):

    convolution      DQ(x), DQ(w), DQ(int32 bias) -> Conv -> [Relu] -> Q        QLinearConv; nothing without the Q behind it
    linear, 2-D x    DQ(x), DQ(w), DQ(int32 bias) -> Gemm                       QGemm; MatMul + Add would end as a float Gemm
    linear, N-D x    DQ(x), DQ(w) -> MatMul -> Add(float bias)                  MatMulIntegerToFloat
    with nbits       DQ(x), packed w -> MatMulNBits -> Add(float bias)          itself (see `nbits`)

Batch-norm is folded into a convolution's scales and bias, so that it does not stand before that Q. Where a grid has fewer
codes than uint8 a Clip of the codes follows the Q (before it, on real values, it would stop the fusion).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnxscript import ir

from .integer_codes import InputCodes, WeightCodes, adds_pairs_in_16_bits
from .nbits import DOMAIN, OPERATOR, NBitsCodes

LARGEST_BIAS = 2**30  # code of an int32 bias


class Convolution(NamedTuple):
    """A convolution whose bias is still to be written: (channels,) in real units, and the scale of its int32 codes.

    spread: (lowest, highest) output to expect from a folded batch-norm's statistics; None without one.
    """

    node: ir.Node
    layer: str
    bias: np.ndarray
    bias_scale: np.ndarray
    spread: tuple[float, float] | None


class Writer:
    """Adds nodes and constants to one graph; call `graph.sort()` when done."""

    def __init__(self, graph: ir.Graph):
        self.graph = graph
        self.convolutions: list[Convolution] = []
        self._inputs: dict[tuple, ir.Value] = {}
        self._sums: dict[str, ir.Value] = {}
        self._taken = set(graph.initializers) | {node.name for node in graph}

    def unique(self, name: str) -> str:
        """`name`, with a number where it is taken (a layer that runs several times)."""
        free, count = name, 1
        while free in self._taken:
            free, count = f"{name}_{count}", count + 1
        self._taken.add(free)
        return free

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer."""
        unique = self.unique(name)
        value = ir.Value(name=unique, const_value=ir.tensor(array, name=unique))
        value.dtype, value.shape = value.const_value.dtype, value.const_value.shape
        self.graph.register_initializer(value)
        return value

    def node(self, op: str, inputs: list, name: str, **attributes) -> ir.Value:
        """Append a node with one output."""
        added = ir.node(op, inputs, attributes=attributes, name=self.unique(name))
        added.outputs[0].name = f"{added.name}.out"
        self.graph.append(added)
        return added.outputs[0]

    def quantized(self, x: ir.Value, codes: InputCodes, name: str) -> ir.Value:
        """`x` rounded to the codes' grid, shift left out: Q, Clip where it is needed, DQ. Equal requests share the nodes."""
        key = (x.name, codes)
        if key not in self._inputs:
            if codes.shift:
                x = self.node("Sub", [x, self.constant(f"{name}.shift", np.float32(codes.shift))], f"{name}.shifted")
            scale = self.constant(f"{name}.scale", np.float32(codes.scale))
            zero = self.constant(f"{name}.zero_point", np.uint8(codes.zero_point))
            q = self.node("QuantizeLinear", [x, scale, zero], f"{name}.quantize")
            if (codes.low, codes.high) != (0, 255):
                low, high = (self.constant(f"{name}.{k}", np.uint8(getattr(codes, k))) for k in ("low", "high"))
                q = self.node("Clip", [q, low, high], f"{name}.clip")
            self._inputs[key] = self.node("DequantizeLinear", [q, scale, zero], f"{name}.dequantize")
        return self._inputs[key]

    def integers(self, codes: np.ndarray, scale: np.ndarray, axis: int, name: str) -> ir.Value:
        """Constant integer codes with (channels,) scales, dequantized; zero points are 0."""
        values = self.constant(f"{name}.codes", codes)
        scale = self.constant(f"{name}.scale", scale.astype(np.float32))
        zero = self.constant(f"{name}.zero_point", np.zeros(scale.shape[0], codes.dtype))
        return self.node("DequantizeLinear", [values, scale, zero], f"{name}.dequantize", axis=axis)

    def weights(self, w: WeightCodes, x: InputCodes, axis: int, name: str) -> ir.Value:
        """Constant weights, dequantized; unsigned ones where this machine's kernels for signed ones would cut sums off."""
        if w.pairs_fit(max(x.high, x.zero_point)) or not adds_pairs_in_16_bits():
            return self.integers(w.codes, w.scale, axis, name)
        values = self.constant(f"{name}.codes", (w.codes.astype(np.int16) + 128).astype(np.uint8))
        scale = self.constant(f"{name}.scale", w.scale.astype(np.float32))
        zero = self.constant(f"{name}.zero_point", np.full(scale.shape[0], 128, np.uint8))
        return self.node("DequantizeLinear", [values, scale, zero], f"{name}.dequantize", axis=axis)

    # -- products ---------------------------------------------------------------------------------------------------

    def convolution(self, node: ir.Node, layer: str, x: InputCodes, w: WeightCodes, bias: np.ndarray) -> None:
        """Quantize a Conv, with the batch-norm behind it folded in. `conv_outputs.write_biases` writes the biases."""
        bias, spread = bias + x.shift * w.channel_sums(), None
        folded = _batch_norm_behind(node)
        if folded is not None:
            norm, gain, offset, spread = folded
            w, bias = w.times(gain), bias * gain + offset
            self._skip(norm, node)
        w = w.finer(max(x.high, x.zero_point)).coarser(np.abs(bias) / (LARGEST_BIAS * x.scale))
        node.replace_input_with(0, self.quantized(node.inputs[0], x, f"{layer}.input"))
        node.replace_input_with(1, self.weights(w, x, w.axis, f"{layer}.weight"))
        node.name = self.unique(layer)
        self.convolutions.append(Convolution(node, layer, bias, w.scale * x.scale, spread))

    def transposed_convolution(self, node: ir.Node, layer: str, x: InputCodes, w: WeightCodes) -> None:
        """Quantize what a ConvTranspose reads. It has no integer kernel, so the shift may be added to its input itself."""
        value = self.quantized(node.inputs[0], x, f"{layer}.input")
        if x.shift:
            value = self.node("Add", [value, self.constant(f"{layer}.back", np.float32(x.shift))], f"{layer}.add_shift")
        node.replace_input_with(0, value)
        node.replace_input_with(1, self.integers(w.codes, w.scale, w.axis, f"{layer}.weight"))

    def linear(self, node: ir.Node, layer: str, x: InputCodes, w: WeightCodes, bias: np.ndarray | None) -> None:
        """Quantize a Gemm or MatMul. bias: the layer's, (outputs,), None without one."""
        if w.axis == 0:  # stored as (outputs, inputs)
            w = w._replace(codes=np.ascontiguousarray(w.codes.T), axis=1)
        add = None if node.op_type == "Gemm" else _bias_behind(node, bias)
        total = x.shift * w.channel_sums() + (0 if bias is None else bias)
        flat = node.op_type == "Gemm" or (node.outputs[0].shape is not None and len(node.outputs[0].shape) == 2)
        if flat:
            w = w.finer(max(x.high, x.zero_point)).coarser(np.abs(total) / (LARGEST_BIAS * x.scale))
        node.replace_input_with(0, self.quantized(node.inputs[0], x, f"{layer}.input"))
        node.replace_input_with(1, self.weights(w, x, 1, f"{layer}.weight"))
        node.name = self.unique(layer)
        if add is not None:
            self._skip(add, node)
        if flat:
            node.op_type = "Gemm"
            node.attributes.clear()
            scale = w.scale * x.scale
            set_input(node, 2, self.integers(np.rint(total / scale).astype(np.int32), scale, 0, f"{layer}.bias"))
        else:
            self._add_bias(node, layer, total)

    def nbits_linear(self, node: ir.Node, layer: str, x: InputCodes, w: NBitsCodes, bias: np.ndarray | None) -> None:
        """Turn a Gemm or MatMul into a MatMulNBits. bias: as of `linear`."""
        add = None if node.op_type == "Gemm" else _bias_behind(node, bias)
        total = x.shift * w.channel_sums() + (0 if bias is None else bias)
        constants = [self.constant(f"{layer}.weight.{name}", value) for name, value in w.constants().items()]
        node.resize_inputs(1 + len(constants))
        for index, value in enumerate([self.quantized(node.inputs[0], x, f"{layer}.input"), *constants]):
            node.replace_input_with(index, value)
        node.name, node.op_type, node.domain = self.unique(layer), OPERATOR, DOMAIN
        node.attributes.clear()
        for name, number in w.attributes().items():
            node.attributes[name] = ir.AttrInt64(name, number)
        self.graph.opset_imports[DOMAIN] = 1
        if add is not None:
            self._skip(add, node)
        if not w.beyond.any():
            self._add_bias(node, layer, total)
            return
        rest = self.constant(f"{layer}.beyond", w.beyond.astype(np.float32))
        rest = self.node("Mul", [self._sum_of(node.inputs[0]), rest], f"{layer}.of_sum")
        if total.any():
            rest = self.node("Add", [rest, self.constant(f"{layer}.bias", total.astype(np.float32))], f"{layer}.add_bias")
        self._add(node, layer, rest)

    def _sum_of(self, x: ir.Value) -> ir.Value:
        """The sum of an input's last dimension, which stays as one of size 1; layers that read one input share it."""
        if x.name not in self._sums:
            last = self.constant(f"{x.name}.last", np.array([-1]))
            self._sums[x.name] = self.node("ReduceSum", [x, last], f"{x.name}.sum", keepdims=1)
        return self._sums[x.name]

    def _add_bias(self, node: ir.Node, layer: str, bias: np.ndarray) -> None:
        """Add a bias in floating point, where there is one."""
        if bias.any():
            self._add(node, layer, self.constant(f"{layer}.bias", bias.astype(np.float32)))

    def _add(self, node: ir.Node, layer: str, value: ir.Value) -> None:
        """Add a value to what all others read of the node."""
        uses, exposed = list(node.outputs[0].uses()), node.outputs[0].is_graph_output()
        out = self.node("Add", [node.outputs[0], value], f"{layer}.add")
        for user, index in uses:
            user.replace_input_with(index, out)
        if exposed:
            self.graph.outputs[list(self.graph.outputs).index(node.outputs[0])] = out

    def _skip(self, node: ir.Node, source: ir.Node) -> None:
        """Take out `node`: who reads it reads `source` instead."""
        node.outputs[0].replace_all_uses_with(source.outputs[0], replace_graph_outputs=True)
        self.graph.remove(node, safe=True)


def _batch_norm_behind(node: ir.Node):
    """(node, gain, offset, spread) of a BatchNormalization that alone reads the node, with constant statistics; else None."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].op_type != "BatchNormalization" or node.outputs[0].is_graph_output():
        return None
    norm = uses[0][0]
    if any(value is None or value.const_value is None for value in norm.inputs[1:5]):
        return None
    gamma, beta, mean, variance = (value.const_value.numpy().astype(np.float64) for value in norm.inputs[1:5])
    epsilon = norm.attributes["epsilon"].value if "epsilon" in norm.attributes else 1e-5
    gain = gamma / np.sqrt(variance + epsilon)
    reach = 4 * np.abs(gamma)  # standard deviations of the output, as the running statistics have it
    return norm, gain, beta - mean * gain, (float((beta - reach).min()), float((beta + reach).max()))


def _bias_behind(node: ir.Node, bias: np.ndarray | None) -> ir.Node | None:
    """The Add of the layer's bias that alone reads a MatMul's output; None without one."""
    uses = list(node.outputs[0].uses())
    if bias is None or len(uses) != 1 or uses[0][0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    constants = (value.const_value for value in uses[0][0].inputs if value.const_value is not None)
    return uses[0][0] if any(np.array_equal(c.numpy(), bias.astype(np.float32)) for c in constants) else None


def set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    """Put `value` at a place that the node may not have yet."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
