"""`ldp_search.export`: one function for every format."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import nn

from ... import packed
from ...api import controller, remove
from ...core.apply import as_call
from ...core.messages import did_you_mean
from ..onnx.export import Export
from ..onnx.export import export as export_onnx
from .int8 import TorchFile, write_torch
from .outputs import difference, evaluating
from .packed import PackedFile, write_packed

FORMATS = {"onnx": "model.onnx", "packed": "model.packed.safetensors", "torch": "model.pt2"}
"""{format: how its file is called}."""


def export(
    model: nn.Module,
    path: str | os.PathLike,
    example_inputs=None,
    format: str = "onnx",
    round_outputs: bool = True,
    nbits: bool = False,
    cache: bool = False,
) -> Export | PackedFile | TorchFile:
    """Write `model` with its integer bits to `path`, and compare the file with it. The model itself stays as it is.

    Formats: "onnx", for onnxruntime; "torch", a torch.export program on torch's int8 kernels; "packed", weights in their true
    bits. See docs/export.md.

    Args:
        example_inputs: a tensor, a tuple of arguments or a mapping of keyword arguments; a batch of real data. What is written
            is compared on it; "onnx" also calibrates on it. "packed" can do without.
        round_outputs: of "onnx": also round those convolution outputs to 8 bits that training left in floating point
            (residual sums). Integer convolutions need it.
        nbits: of "onnx": linear layers of up to 4 weight bits as MatMulNBits, which has them packed: faster with one row (one
            token, batch 1), slower with many.
        cache: of "onnx": a causal language model of transformers with its cache of keys and values among inputs and outputs:
            writing a text reads each token once. The example inputs are then input_ids, with attention_mask or without.

    Returns:
        a record of what was written, by format: Export, TorchFile or PackedFile.

    Raises:
        ValueError: unknown format, an option that it does not have, bits not frozen yet, unknown input ranges, or weights or
            (with cache) a model that the format does not take.
        ImportError: a package is missing. LookupError: `apply` was never called. All before any work is done.
    """
    if format not in FORMATS:
        raise ValueError(f"Unknown export format {format!r}.{did_you_mean(format, FORMATS)}")
    ldp, path = controller(model), Path(path)
    if example_inputs is None and format != "packed":
        raise ValueError(f"format={format!r} needs example_inputs, a batch of real data; received None.")
    for name, asked in (("nbits", nbits), ("cache", cache)):
        if asked and format != "onnx":
            raise ValueError(f"{name} belongs to format='onnx'; received format={format!r}. Leave {name} out.")
    _check_example(example_inputs)
    if format == "onnx":
        return export_onnx(model, path, example_inputs, round_outputs=round_outputs, nbits=nbits, cache=cache)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"Export writes into an existing folder; {path.absolute().parent} is none. Make it first.")
    if format == "torch":
        return write_torch(model, path, example_inputs)
    record = write_packed(model, path)
    return record if example_inputs is None else record._replace(max_error=_error_of_packed(ldp.model, path, example_inputs))


def _check_example(example_inputs) -> None:
    """ValueError where a comparison on these inputs would show nothing."""
    for x in torch.utils._pytree.tree_leaves(example_inputs):
        if not isinstance(x, torch.Tensor):
            continue
        if not x.numel():
            raise ValueError(f"example_inputs must be a batch of real data; received one of shape {tuple(x.shape)}.")
        if x.is_floating_point() and not x.isfinite().all():
            raise ValueError("example_inputs must be a batch of real data; received values that are infinite or not a number.")


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of a model, without anything of LDP, in evaluation mode."""
    return remove(copy.deepcopy(model)).eval()


@torch.no_grad()
def _error_of_packed(model: nn.Module, path: Path, example_inputs) -> float:
    """Largest difference of the file, loaded into a plain copy, from the model, relative to the largest output."""
    args, kwargs = as_call(example_inputs)
    with evaluating(model):
        return difference(packed.load(path, plain_copy(model))(*args, **kwargs), model(*args, **kwargs))
