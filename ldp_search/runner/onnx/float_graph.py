"""The float ONNX graph of a model, and which of its nodes belong to which quantized layer."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note of the modules in whose forward a node was made
PRODUCTS = {  # kind of layer -> ONNX operators that compute its product
    "Linear": ("MatMul", "Gemm"),
    "Conv1D": ("MatMul", "Gemm"),
    **{f"Conv{n}d": ("Conv",) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": ("ConvTranspose",) for n in (1, 2, 3)},
    "Embedding": ("Gather",),
}


@contextmanager
def ready(model: nn.Module):
    """Within this context: evaluation mode, no gradient, no cache of keys and values (transformers) among the outputs, and no
    fused path of torch's own transformer layers, which would hide their products.
    """
    modes, fused = {module: module.training for module in model.modules()}, torch.backends.mha.get_fastpath_enabled()
    config = getattr(model, "config", None)
    cache = getattr(config, "use_cache", None)
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        if cache:
            config.use_cache = False
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        if cache:
            config.use_cache = cache
        for module, training in modes.items():
            module.training = training


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested inputs or outputs, in the order in which the graph has them."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def output_names(output: Any) -> list[str]:
    """Names for the graph's outputs: the fields of a transformers output, else output, or output_0, output_1, ..."""
    if hasattr(output, "keys") and all(isinstance(value, Tensor) for value in output.values()):
        return list(output.keys())
    count = len(tensors(output))
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def float_graph(model: nn.Module, args: tuple, kwargs: dict, names: list[str]):
    """Export `model` as it is now, unoptimized, so that every node still tells its layer.

    Returns:
        the graph (an `onnxscript.ir.Model`), and whether its batch dimension is free. Where the model fixes it (by Python
        code that depends on it), the batch of the example stays, with a warning.
    """
    size = next((x.shape[0] for x in tensors((args, kwargs)) if x.dim()), 1)
    try:
        graph = _export(model, *_with_free_batch(model, args, kwargs, size), names)
        if any(not isinstance(value.shape[0], int) for value in graph.graph.inputs if len(value.shape)):
            return graph, True
        reason = "the exporter found that its computation depends on it"
    except Exception as error:  # it raises many kinds; without a free batch most models still export
        reason = str(error).strip().splitlines()[0][:200]
    warnings.warn(f"The batch dimension of the file stays fixed at {size}: {reason}.", stacklevel=3)
    return _export(model, args, kwargs, None, names), False


def _with_free_batch(model: nn.Module, args: tuple, kwargs: dict, size: int) -> tuple[tuple, dict, tuple | dict]:
    """Inputs and their dynamic shapes. A batch of one is doubled: it would be taken for a constant."""

    def wider(x):
        return torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() and x.shape[0] == 1 == size else x

    def free(x):
        batched = isinstance(x, Tensor) and x.dim() and x.shape[0] == max(size, 2)
        return {0: torch.export.Dim("batch")} if batched else None

    args, kwargs = pytree.tree_map(wider, (args, kwargs))
    return args, kwargs, _by_parameter(model, *pytree.tree_map(free, (args, kwargs)))


def _by_parameter(model: nn.Module, arg_shapes: tuple, kwarg_shapes: dict) -> tuple | dict:
    """The shapes as torch.export wants them: {parameter of forward: shapes}, or a tuple without keyword inputs."""
    if not kwarg_shapes:
        return arg_shapes
    return dict(zip(inspect.signature(model.forward).parameters, arg_shapes, strict=False)) | kwarg_shapes


def _export(model: nn.Module, args: tuple, kwargs: dict, shapes, names: list[str]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False, output_names=names, dynamic_shapes=shapes
        )
    return program.model


def product_nodes(graph, model: nn.Module, kinds: dict[str, str]) -> dict[str, list]:
    """{layer: its product nodes}, one node a call, for the layers of `kinds` (name -> kind)."""
    first = {}  # a module may be reached by several names; the exporter notes any of them
    for name, module in model.named_modules(remove_duplicate=False):
        first.setdefault(id(module), name)
    canonical = {name: first[id(module)] for name, module in model.named_modules(remove_duplicate=False)}
    found: dict[str, list] = {name: [] for name in kinds}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        owner = canonical.get(re.sub(r"@\d+$", "", scopes[-2])) if len(scopes) > 1 else None
        if owner in found and node.op_type in PRODUCTS.get(kinds[owner], ()):
            found[owner].append(node)
    return found
