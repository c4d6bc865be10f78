"""Export: from a frozen model to a file that runs in integer arithmetic.

    record = ldp_search.export(model, "model.onnx", example_inputs)

The float graph is exported with quantization off (`trace`); quantized nodes are then written from the layers' own integers
(`integer_codes`, `writer`, `conv_outputs`), and the file is run against the quantized model before it counts as made (`check`).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from ...api import controller
from ...core.apply import as_call
from ...core.bits.space import FULL_PRECISION
from ...core.controller.strays import warn_of_strays
from ...core.messages import did_you_mean
from ...core.older_torch import TORCH, needs_torch
from ..exports.ready import check_frozen, check_ranges, why_float
from .integer_codes import CONTAINER_BITS, float_weight, input_codes, weight_codes
from .nbits import NBitsCodes, check_runtime, integer_kernels, nbits_codes

if TYPE_CHECKING:  # it needs onnxscript
    from .writer import Writer

FORMATS = ("onnx",)
LARGEST_FLOAT_BYTES = 1_900_000_000  # of a protobuf message, which holds the float weights for a while


class Export(NamedTuple):
    """What was written.

    max_error: largest difference between onnxruntime and the quantized model in torch, on the example inputs, relative to
        the largest magnitude of each output; None without onnxruntime.
    own_error: the yardstick for it, the same difference of the model in torch from itself when every layer's output is
        changed by a ten-thousandth: rounding turns any difference into whole steps, which grow from layer to layer.
    integer_layers, float_layers: the layers written as integers, and {layer: why it computes in floating point}.
    rounded_again: integer layers whose weights are not exactly those of training (see `integer_codes`).
    bytes: size of the file. free_batch, free_length: the batch size of the inputs, and the length of token inputs (integers
        with a batch and a length, and what is as long), may be any; without token inputs there is no free length.
    kernels: {integer operator: how many} in the graph as onnxruntime runs it here; None without onnxruntime.
    nbits_layers, not_nbits: with `nbits`, {integer layer: bits of its codes in MatMulNBits}; {linear layer: why it is int8}.
    cached_layers, same_tokens: with `cache`, layers whose keys and values are inputs and outputs; share of the next tokens that
        are the model's. max_error and same_tokens are the worse of two ways: whole texts behind an empty past, and the last
        tokens one by one with the cache.
    """

    path: Path
    max_error: float | None
    own_error: float
    integer_layers: list[str]
    float_layers: dict[str, str]
    rounded_again: list[str]
    bytes: int
    free_batch: bool
    free_length: bool
    kernels: dict[str, int] | None
    nbits_layers: dict[str, int]
    not_nbits: dict[str, str]
    cached_layers: int = 0
    same_tokens: float | None = None


def export(
    model: nn.Module,
    path: str | os.PathLike,
    example_inputs,
    format: str = "onnx",
    round_outputs: bool = True,
    nbits: bool = False,
    cache: bool = False,
) -> Export:
    """Write `model` with its integer bits to `path`. The model itself stays as it is.

    Layers of up to 8 bits are stored and computed as 8-bit integers, restricted to the codes of their true bits; layers of
    more bits or in full precision stay floats (their weights at their bits, their inputs unrounded).

    Args:
        example_inputs: a tensor, a tuple of arguments or a mapping of keyword arguments; a batch of real data, since it also
            calibrates `round_outputs` and is what the file is compared on.
        format: "onnx", for onnxruntime.
        round_outputs: also round those convolution outputs to 8 bits that training left in floating point (residual sums).
            Integer convolutions need it; False keeps to training's values and leaves these convolutions in floating point.
        nbits: linear layers of up to 4 weight bits as MatMulNBits, which has them packed (see `nbits`): faster with one row
            (one token, batch 1), slower with many.
        cache: of causal language models of transformers: keys and values of what was read, in floating point, are inputs and
            outputs (see `cache`), so that writing a text reads each token once.

    Raises:
        ValueError: unknown format, bits not frozen yet, unknown input ranges, weights that are not fp32 or too large; with
            `nbits`, an onnxruntime without its kernels; with `cache`, a model that has none or fixes a length.
        ImportError: onnx or onnxscript is missing, or torch is older than 2.7. LookupError: `apply` was never called. All
            before any work is done.
    """
    if format not in FORMATS:
        raise ValueError(f"Unknown export format {format!r}.{did_you_mean(format, FORMATS)}")
    ldp, path = controller(model), Path(path)
    _check(ldp, path)
    if nbits:
        check_runtime()
    warn_of_strays(ldp)
    from . import check, clips, conv_outputs, float_graph, pools, sums, trace  # they need onnx, onnxscript

    args, kwargs = _on_device(ldp.model, example_inputs)
    traced = (trace.with_cache if cache else trace.plain)(ldp, args, kwargs)
    graph, feed, runs = traced.graph, traced.feed, _has("onnxruntime")
    float_graph.cast_by_type(graph.graph)
    writer, float_layers, rounded_again, *few_bits = _write(ldp, graph, traced, nbits)
    conv_outputs.write_biases(writer)
    measure = (lambda values: check.ranges(graph, values, feed)) if round_outputs and runs else None
    why = f"its output is read in floating point, and {'round_outputs=False' if runs else 'onnxruntime is missing'}"
    pools.round_before(writer, measure)
    float_layers |= dict.fromkeys(conv_outputs.round_outputs(writer, measure), why)
    if measure is not None:
        sums.round_sums(writer, measure)
    clips.bound_codes(writer)
    error, kernels, same = check.save(graph, path, feed, traced.expected, traced.outputs, runs, traced.by_token)
    integers, size = [name for name in traced.nodes if name not in float_layers], path.stat().st_size
    free, layers = (traced.free_batch, traced.free_length), traced.cached_layers
    known = path, error, traced.own_error, integers, float_layers, rounded_again, size
    return Export(*known, *free, kernels, *few_bits, layers, same)


def _on_device(model: nn.Module, example_inputs) -> tuple[tuple, dict]:
    """(args, kwargs) of a forward, where the model is."""
    device = next(model.parameters()).device
    return torch.utils._pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, as_call(example_inputs))


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _check(ldp, path: Path) -> None:
    """Everything that the export needs, before it starts."""
    if TORCH < (2, 7):  # its exporter knows no batch norm, and frees no length of token inputs
        raise needs_torch("2.7", "Export to ONNX", 'take format="torch" or "packed"')
    missing = [package for package in ("onnx", "onnxscript") if not _has(package)]
    if missing:
        raise ImportError(f"Export to ONNX needs {' and '.join(missing)}: pip install 'ldp_search[onnx]'")
    check_frozen(ldp)
    check_ranges(ldp, CONTAINER_BITS)
    dtypes = {p.dtype for p in ldp.model.parameters() if p.is_floating_point()}
    if dtypes != {torch.float32}:
        raise ValueError(f"Export needs fp32 weights; received {sorted(map(str, dtypes))}. Call model.float() first.")
    size = sum(p.numel() * p.element_size() for p in ldp.model.parameters())
    if size > LARGEST_FLOAT_BYTES:
        raise ValueError(f"Export holds the float weights in one message of at most 1.9 GB; received {size / 1e9:.1f} GB.")
    if path.is_dir():
        raise ValueError(f"Export writes a file, but {path} is a folder. Give a name in it, such as {path / 'model.onnx'}.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"Export writes into an existing folder; {path.absolute().parent} is none. Make it first.")


class _Written(NamedTuple):
    """The writer, and of `Export` what is known once its nodes are written."""

    writer: Writer
    float_layers: dict[str, str]
    rounded_again: list[str]
    nbits_layers: dict[str, int]
    not_nbits: dict[str, str]


def _write(ldp, graph, traced, nbits: bool) -> _Written:
    """Quantized nodes for every layer that has an integer form, and for products outside of layers."""
    from . import own_products
    from .writer import Writer

    made, nodes = _Written(Writer(graph.graph), {}, [], {}, {}), traced.nodes
    writer, float_layers, bits = made.writer, made.float_layers, ldp.bits()
    outside, again = own_products.write(writer, ldp, traced.markers, {name for name in nodes if nodes[name]})
    made.rounded_again.extend(again)
    if nbits:
        fixed = [name for name, reason in outside.items() if reason is None and ldp.specs[name].weights and not nodes[name]]
        made.not_nbits.update(dict.fromkeys(fixed, "its product is outside of a layer"))
    for site, (name, spec) in zip(ldp.sites, ldp.specs.items(), strict=True):
        layer = spec.module
        reason = outside[name] if name in outside and not nodes[name] else _why_float(bits[name], spec, nodes[name])
        if reason is not None:
            float_layers[name] = reason
            if bits[name].weight < FULL_PRECISION and layer is not None:
                for node in nodes[name]:
                    _replace_weight(writer, node, name, float_weight(site, layer).cpu().numpy())
            continue
        if outside.get(name) is not None:
            float_layers[name] = f"outside of its layer {outside[name]}"
        if not nodes[name]:
            continue
        w = (_few_bits(made, site, layer, nodes[name][0]) if nbits else None) or weight_codes(site, layer.weight)
        bias = None if getattr(layer, "bias", None) is None else layer.bias.detach().double().cpu().numpy()
        for call, node in enumerate(nodes[name]):
            x = input_codes(site, call % len(site.ranges))
            if node.op_type == "Conv":
                writer.convolution(node, name, x, w, np.zeros(len(w.scale)) if bias is None else bias)
            elif node.op_type == "ConvTranspose":
                writer.transposed_convolution(node, name, x, w)
                float_layers[name] = "onnxruntime has no integer kernel for it; it is stored and read as integers"
            elif isinstance(w, NBitsCodes):
                writer.nbits_linear(node, name, x, w, bias)
            else:
                writer.linear(node, name, x, w, bias)
        if not w.exact:
            made.rounded_again.append(name)
    return made


def _few_bits(made: _Written, site, layer, node) -> NBitsCodes | None:
    """A linear layer's weight for MatMulNBits, put on record; None: the layer stays int8, on record too where it is linear."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    found = nbits_codes(site, layer.weight, integer_kernels())
    if isinstance(found, str):
        made.not_nbits[site.name] = found
        return None
    made.nbits_layers[site.name] = found.bits
    return found


def _why_float(bits, spec, nodes: list) -> str | None:
    """Why a layer has no integer form here; None: it has one."""
    if reason := why_float(bits, spec, "do not fit in 8-bit containers"):
        return reason
    if not nodes:
        return "its forward did not run, or left no product of its own in the graph"
    return None


def _replace_weight(writer, node, name: str, weight: np.ndarray) -> None:
    """Let a node read `weight` instead of what it reads, transposed where that is."""
    place = 0 if node.op_type == "Gather" else 1
    producer = node.inputs[place].producer()
    transposed = producer is not None and producer.op_type == "Transpose"
    value = writer.constant(f"{name}.weight_at_its_bits", np.ascontiguousarray(weight.T) if transposed else weight)
    node.replace_input_with(place, value)
