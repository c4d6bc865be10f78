"""The float ONNX graph of a model, and which of its nodes belong to which quantized layer."""

from __future__ import annotations

import ast
import re
import warnings
from contextlib import contextmanager
from typing import Any

import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from ...core.messages import warn
from .dynamic_shapes import Freedom, by_parameter, fixed_lengths, name_lengths, tensors

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note of the modules in whose forward a node was made
PRODUCTS = {  # kind of layer -> ONNX operators that compute its product
    "Linear": ("MatMul", "Gemm"),
    "Conv1D": ("MatMul", "Gemm"),
    **{f"Conv{n}d": ("Conv",) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": ("ConvTranspose",) for n in (1, 2, 3)},
    "Embedding": ("Gather",),
}


def output_names(output: Any) -> list[str]:
    """Names for the graph's outputs: the fields of a transformers output, else output, or output_0, output_1, ..."""
    if hasattr(output, "keys") and all(isinstance(value, Tensor) for value in output.values()):
        return list(output.keys())
    count = len(tensors(output))
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def float_graph(model: nn.Module, args: tuple, kwargs: dict, names: list[str]):
    """Export `model` as it is now, unoptimized, so that every node still tells its layer.

    Returns:
        the graph (an `onnxscript.ir.Model`), and what of its inputs is free (`Freedom`). What the model fixes, by Python code
        that depends on it, stays as in the example, with a warning.
    """
    wanted = Freedom.of(args, kwargs)
    fixed: dict[str, str] = {}  # what stays fixed: why
    if wanted.lengths and (reason := _refusal(model, *wanted.of_other_length(args, kwargs))):
        fixed[f"length {_listed(wanted.lengths)}"] = f"the model takes no other ({reason})"
        wanted = wanted._replace(lengths=frozenset())
    if wanted.batch is not None and (reason := _refusal(model, *wanted.of_other_batch(args, kwargs))):
        fixed[f"batch size {wanted.batch}"] = f"the model takes no other ({reason})"
        wanted = Freedom(None)
    for freedom in dict.fromkeys([wanted, wanted._replace(lengths=frozenset()), Freedom(None)]):
        try:
            graph, freedom = _export(model, args, kwargs, freedom, names)
            break
        except Exception as error:  # it raises many kinds; with less freedom most models still export
            if freedom.batch is None:
                raise
            what = f"length {_listed(freedom.lengths)}" if freedom.lengths else f"batch size {freedom.batch}"
            fixed[what] = first_line(error)
    if stiff := fixed_lengths(graph.graph, freedom):
        fixed[f"length of {', '.join(stiff)}"] = "its computation depends on it"
        freedom = freedom._replace(lengths=frozenset())
    for what, why in fixed.items():
        warn(f"The {what} stays fixed in the file, as in the example: {why}.")
    name_lengths(graph.graph)
    return graph, freedom


def _refusal(model: nn.Module, args: tuple, kwargs: dict) -> str | None:
    """Why the model does not run on these inputs; the exporter would leave that to whoever runs the file."""
    try:
        model(*args, **kwargs)
    except Exception as error:
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    """What an error of others says, for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _listed(numbers) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _export(model: nn.Module, args: tuple, kwargs: dict, freedom: Freedom, names: list[str]):
    """(graph, the freedom that it has) of one attempt."""
    shapes = None
    if freedom.batch is not None:
        freedom, args, kwargs = freedom.widened(args, kwargs)
        shapes = by_parameter(model, *pytree.tree_map(freedom.free, (args, kwargs)))
    return traced(model, args, kwargs, names, shapes), freedom


def traced(model: nn.Module, args: tuple, kwargs: dict, names: list[str], shapes: Any) -> ir.Model:
    """The unoptimized graph of a forward. names: of its outputs. shapes: dynamic ones of its inputs; None: all as here."""
    with warnings.catch_warnings(), _parametrizations_computed(model):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False, output_names=names, dynamic_shapes=shapes
        )
    return program.model


@contextmanager
def _parametrizations_computed(model: nn.Module):
    """Parametrized weights (orthogonal, spectral norm) are constants of the graph: ONNX knows not every way to compute them."""
    with parametrize.cached():
        for module in model.modules():
            for name in module.parametrizations if parametrize.is_parametrized(module) else ():
                getattr(module, name)
        yield


def product_nodes(graph, model: nn.Module, kinds: dict[str, str]) -> dict[str, list]:
    """{layer: its product nodes}, one node a call, for the layers of `kinds` (name -> kind).

    A layer's product multiplies what depends on an input of the graph by a constant that is made of the layer's own tensors:
    others in its forward (of a hook, of a norm of its weight) are not the layer's.
    """
    own = _names_of_tensors(model)
    first = {}  # a module may be reached by several names; the exporter notes any of them
    for name, module in model.named_modules(remove_duplicate=False):
        first.setdefault(id(module), name)
    canonical = {name: first[id(module)] for name, module in model.named_modules(remove_duplicate=False)}
    found: dict[str, list] = {name: [] for name in kinds}
    varying = varying_values(graph)
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        owner = canonical.get(re.sub(r"@\d+$", "", scopes[-2])) if len(scopes) > 1 else None
        if owner in found and node.op_type in PRODUCTS.get(kinds[owner], ()):
            data, weight = reversed(node.inputs[:2]) if node.op_type == "Gather" else node.inputs[:2]
            if data in varying and weight not in varying and _sources(weight) & own[owner]:
                found[owner].append(node)
    return found


def cast_by_type(graph) -> None:
    """Casts to "the type of that value" become casts to the type: else they read the value, which has more readers than it
    computes for.
    """
    for node in list(graph):
        if node.op_type == "CastLike" and node.inputs[1].dtype is not None:
            node.op_type = "Cast"
            node.attributes["to"] = ir.AttrInt64("to", node.inputs[1].dtype.value)
            node.resize_inputs(1)


def _names_of_tensors(model: nn.Module) -> dict[str, set[str]]:
    """{module: all names of its own parameters and buffers}, those of tied ones in other modules too."""
    names: dict[int, set[str]] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        names.setdefault(id(tensor), set()).add(name)
    return {
        name: {n for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)] for n in names[id(t)]}
        for name, module in model.named_modules()
    }


def varying_values(graph) -> set:
    """The values that depend on an input of the graph."""
    varying = set(graph.inputs)
    for node in graph:
        if any(value in varying for value in node.inputs):
            varying.update(node.outputs)
    return varying


def _sources(value) -> set[str]:
    """The names of the constants that a value is made of."""
    waiting, found = [value], {}
    while waiting:
        value = waiting.pop()
        if value is not None and value not in found:
            found[value] = value.name
            waiting += value.producer().inputs if value.producer() is not None else []
    return set(found.values())
