"""From a frozen model to a plain module on int8 kernels (`ldp_search/int8.py`), and to its torch.export program as a file."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ... import __version__, int8
from ...api import controller, remove
from ...core.apply import as_call
from ...core.bits.space import FULL_PRECISION
from ...core.products.bilinear import padded
from ..onnx.exported_forward import ready
from ..onnx.integer_codes import CONTAINER_BITS, float_weight, input_codes, weight_codes
from .fuse import fold_norms, fuse
from .outputs import difference
from .ready import check_frozen, check_ranges, read_outside, why_float


class TorchFile(NamedTuple):
    """What was written.

    module: the plain module that the file holds. max_error: largest difference of the loaded file from the quantized model, on
        the example inputs, relative to the largest magnitude of each output.
    integer_layers, float_layers: those on int8 kernels, and {layer: why it computes in floating point}.
    rounded_again: integer layers whose weights are not exactly those of training (see `integer_codes`).
    bytes: of the file. free: {input: its dimensions of any size}.
    """

    path: Path
    module: nn.Module
    max_error: float
    integer_layers: list[str]
    float_layers: dict[str, str]
    rounded_again: list[str]
    bytes: int
    free: dict[str, list[int]]


class Converted(NamedTuple):
    """A plain module, and what became of its layers (fields as of TorchFile)."""

    module: nn.Module
    integer_layers: list[str]
    float_layers: dict[str, str]
    rounded_again: list[str]


@torch.no_grad()
def int8_module(model: nn.Module) -> Converted:
    """A plain copy of a frozen model, its layers of up to 8 bits on int8 kernels; in evaluation mode, without a controller.

    Raises:
        ValueError: bits not frozen yet, unknown input ranges, or weights that are not fp32. LookupError: no `apply`.
    """
    ldp = controller(model)
    check_frozen(ldp)
    check_ranges(ldp, CONTAINER_BITS)
    dtypes = {p.dtype for p in ldp.model.parameters() if p.is_floating_point()}
    if dtypes - {torch.float32}:
        raise ValueError(f"format=torch needs fp32 weights; received {sorted(map(str, dtypes))}. Call model.float() first.")
    plain = remove(copy.deepcopy(ldp.model)).eval().cpu()
    made, float_layers, again, outside = {}, {}, [], read_outside(ldp)
    for site, (name, spec) in zip(ldp.sites, ldp.specs.items(), strict=True):
        reason = _why_float(ldp.bits()[name], spec) or outside.get(name)
        if reason is None:
            made[name], exact = _layer(site, spec.module)
            again += [] if exact else [name]
            continue
        float_layers[name] = reason
        if spec.module is not None and ldp.bits()[name].weight < FULL_PRECISION:
            layer = plain.get_submodule(name)
            layer.weight = nn.Parameter(float_weight(site, spec.module).cpu(), requires_grad=False)  # its own: ties are cut
    return Converted(_with(plain, made), list(made), float_layers, again)


def _with(plain: nn.Module, made: dict[str, nn.Module]) -> nn.Module:
    """`plain` with layers replaced, under every name that they have."""
    if "" in made:
        return made[""].eval()
    new = {id(plain.get_submodule(name)): layer for name, layer in made.items()}
    for path, module in list(plain.named_modules(remove_duplicate=False)):
        if id(module) in new:
            parent, _, attribute = path.rpartition(".")
            setattr(plain.get_submodule(parent), attribute, new[id(module)])
    return plain.eval()


def _why_float(bits, spec) -> str | None:
    """Why a layer has no int8 form here; None: it has one."""
    if reason := why_float(bits, spec, "do not fit in 8 bits; its weight is at its bits"):
        return reason
    if not spec.calls:
        return "its forward did not run; its weight is at its bits"
    if spec.kind.startswith("ConvTranspose"):
        return "torch has no int8 kernel for it; its weight is at its bits"
    return None


def _layer(site, layer: nn.Module) -> tuple[int8.Int8Layer, bool]:
    """(the int8 layer, whether its weights are the very values of training)."""
    w = weight_codes(site, layer.weight)
    inputs = [input_codes(site, call) for call in range(len(site.ranges))]
    codes, scale = torch.tensor(w.codes), torch.tensor(w.scale, dtype=torch.float32)
    codes = codes.t().contiguous() if w.axis else codes
    sums, bias = torch.tensor(w.channel_sums()), 0.0 if layer.bias is None else layer.bias.detach().double().cpu()
    biases = [(bias + x.shift * sums).float() for x in inputs]
    grids = [tuple(x) for x in inputs]
    if codes.dim() == 2:
        return int8.Int8Linear(codes, scale, biases, grids), w.exact
    geometry, edges = _geometry(layer), [None] * len(inputs)
    if any(geometry["padding"]):
        of_taps = codes.sum(1, keepdim=True) * torch.tensor(w.scale).view(-1, *[1] * (codes.dim() - 1))
        edges = [(x.shift * of_taps).float() if x.shift else None for x in inputs]
        plain = (torch.zeros_like(sums) + bias).float()
        biases = [b if edge is None else plain.clone() for b, edge in zip(biases, edges, strict=True)]
    return int8.Int8Conv(codes, scale, biases, grids, **geometry, edges=edges), w.exact


def _geometry(layer: nn.Module) -> dict:
    """Of a convolution; what its product cannot pad is padded before."""
    found = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    none = (0,) * len(layer.stride)
    if layer.padding_mode != "zeros":
        return found | {"padding": none, "pad": layer._reversed_padding_repeated_twice, "mode": layer.padding_mode}
    probe = torch.empty(1, 1, *[1] * len(layer.stride))
    wider, padding = padded(probe, layer.padding, layer.kernel_size, layer.dilation)
    if wider.shape == probe.shape:
        return found | {"padding": padding}
    totals = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    return found | {"padding": none, "pad": [s for t in reversed(totals) for s in (t // 2, t - t // 2)]}


# -- the file -------------------------------------------------------------------------------------------------------


def write_torch(model: nn.Module, path: str | os.PathLike, example_inputs) -> TorchFile:
    """Write `model` as a torch.export program to `path`, run on the example inputs before it counts as made.

    Raises:
        ValueError: as `int8_module`, or the model cannot be traced by torch.export.
    """
    path, made = Path(path), int8_module(model)
    args, kwargs = pytree.tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, as_call(example_inputs))
    ldp = controller(model)
    with ready(ldp.model):
        expected = ldp.model(*example_args(ldp.model, args), **example_args(ldp.model, kwargs))
    partial = path.with_name(f".{path.name}.partial.pt2")
    try:
        fold_norms(made.module, trace(made.module, args, kwargs))
        program = trace(made.module, args, kwargs)
        fuse(program)
        int8.save(program, partial, {"made_with": {"ldp_search": __version__, "torch": torch.__version__}})
        with torch.no_grad():
            error = difference(int8.load(partial)(*args, **kwargs), expected)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return TorchFile(path, made.module, error, *made[1:], path.stat().st_size, free_dimensions(program))


def example_args(model: nn.Module, inputs):
    """Inputs where the model is."""
    device = next(model.parameters()).device
    return pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, inputs)


class _Plain(nn.Module):
    """A model whose outputs are plain: no class of transformers is needed to load it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        out = self.model(*args, **kwargs)
        if not hasattr(out, "keys"):
            return out
        return {key: value for key, value in out.items() if isinstance(value, Tensor)}


def trace(module: nn.Module, args: tuple, kwargs: dict) -> torch.export.ExportedProgram:
    """The program of a plain module; sizes of the inputs that it does not depend on are free. ValueError where it cannot be."""
    args, kwargs = pytree.tree_map(_doubled, (args, kwargs))
    args, kwargs = ([value for value in args], {k: v for k, v in kwargs.items() if isinstance(v, Tensor)})
    free = {"args": tuple(map(_free, args)), "kwargs": {key: _free(value) for key, value in kwargs.items()}}
    free = {key: value for key, value in free.items() if value}
    try:
        with ready(module), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(_Plain(module), tuple(args), kwargs, dynamic_shapes=free, strict=False)
    except Exception as error:  # it raises many kinds
        why = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ValueError(f"torch.export cannot trace a {type(module).__name__}: {why}") from error
    for node in program.graph.nodes:  # where in whose files an operation was called: most of a small program
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(key, None)
    return program


def _doubled(x):
    """A batch of one would be taken for a constant."""
    return torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() and x.shape[0] == 1 else x


def _free(x):
    """The batch, and the length of token sequences, where the program allows it."""
    if not isinstance(x, Tensor) or not x.dim():
        return None
    dims = [0] if x.is_floating_point() or x.dim() < 2 else [0, 1]
    return dict.fromkeys(dims, torch.export.Dim.AUTO)


def free_dimensions(program: torch.export.ExportedProgram) -> dict[str, list[int]]:
    """{input: dimensions of any size}."""
    user = set(program.graph_signature.user_inputs)
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.name in user and "val" in node.meta}
    return {name: [d for d, n in enumerate(shape) if isinstance(n, torch.SymInt)] for name, shape in shapes.items()}
