"""Products outside of layers, whose operands are rounded in the file as in training.

* a linear map or convolution by a fixed weight (a raw parameter, one that is computed from parameters, a layer's read from
  outside): as a layer, on integer kernels;
* two activations (attention's): each by its own range, which the graph finds anew, QuantizeLinear and DequantizeLinear around
  the product. onnxruntime makes an integer product of that (MatMulIntegerToFloat) where both grids have an exact zero;
* anything else (experts, einsum, a weight that depends on the input): computed in floating point, of rounded operands.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from onnxscript import ir

from ...core.bits.specs import Bits
from ...core.quantize.fake_quantize import rounded as rounded_values
from . import float_graph, marks, own_grids
from .integer_codes import CONTAINER_BITS, MAX_CODE, input_codes, weight_codes
from .marks import Fixed, Mark, Marker
from .own_grids import Formula, OwnGrid, own_grid
from .writer import Writer

LAYERS = ("MatMul", "Gemm", "Conv")
FLOATING = "computed in floating point, of operands rounded as in training"


class _Operand(NamedTuple):
    """varies: depends on an input of the graph."""

    node: ir.Node
    mark: Mark
    varies: bool


class _Product(NamedTuple):
    """One call. x: the operand with input bits. w: that with weight bits. fixed: its weight, where that depends on no input."""

    site: Any
    call: int
    bits: Bits
    x: _Operand
    w: _Operand
    fixed: Fixed | None

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def axes(self) -> tuple[int, ...]:
        return self.w.mark.axes


def write(writer: Writer, ldp, markers: dict[str, Marker], layers: set[str]) -> tuple[dict[str, str | None], list[str]]:
    """Take all marks out of the graph, with the rounding that they stand for.

    Args:
        layers: sites that are also computed as layers.

    Returns:
        {site: why it computes in floating point; None: in integers}, of the sites that the graph has products of; and the
        integer ones whose weights are not exactly those of training.
    """
    varying, calls = float_graph.varying_values(writer.graph), defaultdict(list)
    for node, mark in marks.found(writer.graph):
        calls[mark.site, mark.call].append(_Operand(node, mark, node.inputs[0] in varying))
    reasons: dict[str, str | None] = {}
    again: list[str] = []
    for (name, call), operands in calls.items():
        marker, weight = markers[name], operands[0].mark.weight
        x, w = (operands[0], operands[-1]) if weight != 0 else (operands[-1], operands[0])
        fixed = None if weight is None or w.varies else marker.weights.get(call)
        reason = _why_unrounded(ldp, marker.site, operands, fixed, name in layers)
        if reason is None:
            reason = _write(writer, ldp, _Product(marker.site, call, ldp.bits()[name], x, w, fixed), again)
        else:
            for operand in operands:
                _replace(writer, operand, operand.node.inputs[0])
        reasons[name] = reasons.get(name) or reason
    return reasons, list(dict.fromkeys(again))


def _why_unrounded(ldp, site, operands: list[_Operand], fixed: Fixed | None, is_layer: bool) -> str | None:
    """Why the operands of a product stay as they are; None: they are rounded."""
    weight = operands[0].mark.weight
    quantizer = ldp.input_quantizer if weight is None else ldp.weight_quantizer  # of grids that the graph computes
    if len(operands) != 2:
        return "one of its operands is not in the graph"
    if fixed is None and not own_grids.known(quantizer):
        kind = type(quantizer).__name__
        return f"its operands stay unrounded: the grid of {kind}, a quantizer of your own, has no formula in ONNX"
    if weight is not None and not bool(site.ranges[:, 3].all()):
        return "its operands stay unrounded: the range of its input is not known; finalize(loader) on inputs that reach it"
    if is_layer and len(site.ranges) > 1:
        return "its weight is read by its layer and outside of it, in an order that the graph does not tell"
    return None


def _write(writer: Writer, ldp, product: _Product, again: list[str]) -> str | None:
    """Why the product computes in floating point; None: in integers."""
    if product.fixed is not None and max(product.bits[:2]) <= CONTAINER_BITS and _as_layer(writer, product, again):
        return None
    if product.x.mark.weight is None:
        exact = [_by_own_range(writer, ldp, product, product.x, product.bits.input)]
        exact.append(_by_own_range(writer, ldp, product, product.w, product.bits.weight))
        return None if all(exact) else FLOATING
    grid, wide = product.site.input_grid(product.call % len(product.site.ranges)), product.bits.input > CONTAINER_BITS
    f = Formula(writer, f"{product.name}.{product.call}.input")
    if wide:
        x = own_grids.rounded(f, product.x.node.inputs[0], OwnGrid.of(grid), in_codes=False)
    else:
        x = _by_codes(writer, f, product)
    _replace(writer, product.x, x)
    w = _own_weight(writer, ldp, product) if product.fixed is None else _fixed_weight(writer, product)
    _replace(writer, product.w, w)
    return FLOATING


def _replace(writer: Writer, operand: _Operand, value: ir.Value) -> None:
    marks.take_out(writer.graph, operand.node, value)


def _by_codes(writer: Writer, f: Formula, product: _Product) -> ir.Value:
    codes = input_codes(product.site, product.call % len(product.site.ranges))
    x = writer.quantized(product.x.node.inputs[0], codes, f.name)
    return f("Add", x, codes.shift) if codes.shift else x


# -- two activations ----------------------------------------------------------------------------------------------------


def _by_own_range(writer: Writer, ldp, product: _Product, operand: _Operand, bits: int) -> bool:
    """Round an operand by its own range. Whether an integer product can be made of it."""
    x, quantizer = operand.node.inputs[0], ldp.input_quantizer
    f = Formula(writer, f"{product.name}.{product.call}.{operand.mark.operand}")
    made = own_grids.in_one_node(f, x, quantizer, bits)
    grid = None if made is not None else own_grid(f, x, quantizer, bits)
    in_codes = bits <= CONTAINER_BITS
    _replace(writer, operand, made if grid is None else own_grids.rounded(f, x, grid, in_codes))
    return in_codes and (grid is None or grid.shift is None)


# -- weights ------------------------------------------------------------------------------------------------------------


def _as_layer(writer: Writer, product: _Product, again: list[str]) -> bool:
    """Write a product by a fixed weight as that of a layer; False: it is none."""
    (node, place), axis = _reader(product.x), product.axes
    if node is None or place != 0 or _reader(product.w) != (node, 1) or len(axis) != 1:
        return False
    stored = node.inputs[1].producer()
    transposed = stored is not product.w.node
    if node.op_type == "Gemm":
        if any(attribute.value != 1 for name, attribute in node.attributes.items() if name in ("alpha", "beta")):
            return False
        transposed = transposed != bool(_attribute(node, "transB"))
    linear = node.op_type in ("MatMul", "Gemm") and product.fixed.weight.dim() == 2 and axis[0] == (0 if transposed else 1)
    if not linear and not (node.op_type == "Conv" and axis == (0,) and not transposed) or _attribute(node, "transA"):
        return False
    bias = None if product.fixed.bias is None else product.fixed.bias.detach().double().cpu().numpy()
    if bias is None and node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:  # of addmm
        if node.inputs[2].const_value is None:
            return False
        bias = node.inputs[2].const_value.numpy().astype(np.float64)
    x = input_codes(product.site, product.call % len(product.site.ranges))
    w = weight_codes(product.site, product.fixed.weight, axis[0])
    again += [] if w.exact else [product.name]
    for operand in (product.x, product.w):
        _replace(writer, operand, operand.node.inputs[0])
    if linear:
        writer.linear(node, product.name, x, w, bias)
    else:
        writer.convolution(node, product.name, x, w, np.zeros(len(w.scale)) if bias is None else bias)
    return True


def _attribute(node: ir.Node, name: str) -> int:
    return node.attributes[name].value if name in node.attributes else 0


def _reader(operand: _Operand) -> tuple[ir.Node | None, int]:
    """(node, place) of the one product that reads an operand, through a transpose of it; (None, 0): there is none."""
    uses = list(operand.node.outputs[0].uses())
    if len(uses) == 1 and uses[0][0].op_type == "Transpose":
        uses = list(uses[0][0].outputs[0].uses())
    uses = [use for use in uses if use[0].op_type in LAYERS]  # the exporter makes zeros of a weight's type, for a bias
    return tuple(uses[0]) if len(uses) == 1 else (None, 0)


def _fixed_weight(writer: Writer, product: _Product) -> ir.Value:
    """The weight at its bits: codes of 8 bits times their scale, which runtimes multiply when they load the file."""
    site, w, name = product.site, product.fixed.weight.float(), f"{product.name}.weight"
    with torch.no_grad():
        grid = site._weight_grid(w, product.axes)(site.bits[0].detach())
        values = rounded_values(w, grid)
        codes = torch.round(values / grid.scale)
    exact = grid.offset is None and float(codes.abs().max()) <= MAX_CODE
    if not exact:
        return writer.constant(f"{name}_at_its_bits", values.cpu().numpy())
    f = Formula(writer, name)
    codes = writer.constant(f"{name}.codes", codes.to(torch.int8).cpu().numpy())
    scale = writer.constant(f"{name}.scale", grid.scale.float().cpu().numpy())
    return f("Mul", f("Cast", codes, to=ir.DataType.FLOAT.value), scale)


def _own_weight(writer: Writer, ldp, product: _Product) -> ir.Value:
    """A weight that depends on the input, by its own range."""
    site, x = product.site, product.w.node.inputs[0]
    x.shape = product.w.node.outputs[0].shape  # a node that was written just now does not tell it
    f = Formula(writer, f"{product.name}.{product.call}.weight")
    bound = site.weight_bound()
    grid = own_grid(f, x, ldp.weight_quantizer, product.bits.weight, product.axes, None if bound is None else float(bound))
    return own_grids.rounded(f, x, grid, in_codes=not product.axes and product.bits.weight <= CONTAINER_BITS)
