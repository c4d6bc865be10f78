"""Weights in their true bits, as a safetensors file that `ldp_search/packed.py` reads without the training part."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import __version__, packed
from ...api import controller
from ...core.bits.space import FULL_PRECISION
from ...core.quantize.fake_quantize import rounded
from ...core.quantize.grid import Grid
from ..pretrained.recipe import recipe
from .ready import check_frozen, check_ranges, read_outside

PARTS = ("scale", "offset", "low", "high")


class PackedFile(NamedTuple):
    """What was written, sizes in bytes.

    bytes: of the file, = header + codes + grids + floats. codes: of the packed weights, what the allocation says. grids: their
        scales, offsets and zeros. floats: everything else of the model.
    layers: {layer: bits of its weight} of what is packed; float_layers: {layer: why its weight is not}.
    unrounded: {packed layer: why the loaded model does not round its input}.
    max_error: largest difference of the loaded model from this one, relative to the largest output; None where not compared.
    """

    path: Path
    bytes: int
    header: int
    codes: int
    grids: int
    floats: int
    layers: dict[str, int]
    float_layers: dict[str, str]
    unrounded: dict[str, str]
    max_error: float | None = None


class _User(NamedTuple):
    """How one name of a tensor is read: at some bits on a grid."""

    bits: int
    grid: Grid
    values: Tensor


def write_packed(model: nn.Module, path: str | os.PathLike) -> PackedFile:
    """Write `model` with its integer bits to `path`, whole or not at all.

    Raises:
        ValueError: bits not frozen yet, unknown input ranges, a state that is not all tensors, or a quantizer of one's own
            whose codes do not fit its bits. LookupError: `apply` was never called.
    """
    from safetensors.torch import save

    ldp, path = controller(model), Path(path)
    check_frozen(ldp)
    check_ranges(ldp, highest=FULL_PRECISION - 1)
    with torch.no_grad():
        entries, stored, layers, float_layers = _tensors(ldp)
    description = write_description(ldp, entries)
    description["sha256"] = packed.digest(description, stored)
    data = save(stored, metadata={packed.KEY: json.dumps(description)})
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sizes = {"codes": 0, "grids": 0, "floats": 0}
    for name, value in stored.items():
        part = name.rpartition(":")[2]
        sizes["codes" if part == "codes" else "grids" if part in (*PARTS, "zero") else "floats"] += value.nbytes
    unrounded = {name: why for name, why in read_outside(ldp).items() if name in layers}
    return PackedFile(
        path, len(data), len(data) - sum(sizes.values()), **sizes, layers=layers, float_layers=float_layers, unrounded=unrounded
    )


def write_description(ldp, entries: dict[str, Any]) -> dict[str, Any]:
    """The description of a file.

    version, made_with; model: a recipe; tensors: {name of the state dict: {} as it is, {"tied": other name}, {"bits", "shape",
    "dtype", and "zero" where all channels have the same one}, or {"bits", "rounded_from": other name}}; inputs: {layer: [grid
    of each call of a forward]}; layers: {layer: its bits}.
    """
    return {
        "version": packed.VERSION,
        "made_with": {"ldp_search": __version__, "torch": torch.__version__},
        "model": _recipe(ldp.model),
        "tensors": entries,
        "inputs": _inputs(ldp),
        "layers": {name: bits._asdict() for name, bits in ldp.bits().items()},
    }


def _recipe(model: nn.Module) -> dict[str, Any]:
    """How the model is made again, in one piece: a transformers model with its whole configuration."""
    how = recipe(model)
    return how | {"config": json.loads(model.config.to_json_string(use_diff=False))} if how["source"] == "transformers" else how


def _inputs(ldp) -> dict[str, list[dict[str, float]]]:
    """{layer: the input's grid in each call of a forward}, of the layers that round their inputs."""
    out, outside = {}, read_outside(ldp)
    for site, (name, spec) in zip(ldp.sites, ldp.specs.items(), strict=True):
        multiplies = spec.module is not None and spec.kind != "Embedding" and spec.calls and name not in outside
        if not multiplies or ldp.bits()[name].input >= FULL_PRECISION:
            continue
        grids = [site.input_grid(call) for call in range(len(site.ranges))]
        out[name] = [{part: float(v) for part, v in zip(PARTS, _parts(g), strict=True) if v is not None} for g in grids]
    return out


def _parts(grid: Grid) -> tuple:
    return grid.scale, grid.offset, grid.low, grid.high


def _tensors(ldp) -> tuple[dict, dict, dict, dict]:
    """(entries of the description, stored tensors, {layer: bits} of what is packed, {layer: why not})."""
    entries: dict[str, Any] = {}
    stored: dict[str, Tensor] = {}
    users, layers, float_layers = _users(ldp)
    first: dict[tuple, list[str]] = {}  # names of one tensor, in order
    for name, value in ldp.model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise ValueError(f"A packed file holds tensors; {name!r} of the state dict is a {type(value).__name__}.")
        place = value.data_ptr(), tuple(value.shape), value.stride()
        first.setdefault(place if value.numel() else (name,), []).append(name)
    state = ldp.model.state_dict()
    for names in first.values():
        plain = [name for name in names if name not in users]
        for name in sorted(names, key=lambda name: name in users):
            if name in plain:
                entries[name] = {} if name == plain[0] else {"tied": plain[0]}
                if name == plain[0]:
                    stored[name] = state[name].detach().cpu().contiguous().clone()
                continue
            same = next((other for other in names if other in entries and _same(users.get(other), users[name])), None)
            if same is not None:
                entries[name] = {"tied": same}
            elif plain:  # the table of an embedding in full precision, which the head reads at fewer bits
                entries[name] = _store_grid(name, users[name], stored, PARTS) | {"rounded_from": plain[0]}
            else:
                entries[name] = _store_codes(name, users[name], state[name], stored)
    return {name: entries[name] for name in state}, stored, layers, float_layers


def _users(ldp) -> tuple[dict[str, _User], dict[str, int], dict[str, str]]:
    """({name in the state dict: how it is read}, {layer: bits}, {layer: why it stays in floating point})."""
    users, layers, float_layers, bits = {}, {}, {}, ldp.bits()
    names = {name: parameter for name, parameter in ldp.model.named_parameters(remove_duplicate=False)}
    places: dict[int, list[str]] = {}
    for path, module in ldp.model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(path)
    for site, (name, spec) in zip(ldp.sites, ldp.specs.items(), strict=True):
        if bits[name].weight >= FULL_PRECISION:
            float_layers[name] = "kept in full precision (skip)"
            continue
        own = [f"{path}.weight".lstrip(".") for path in places.get(id(spec.module), [])]
        if spec.module is None or any(n not in names for n in own):
            float_layers[name] = "its weight is no parameter of a layer: it is stored unrounded, and so are its inputs"
            continue
        weight = spec.module.weight.detach()
        grid = site._weight_grid(weight, (0,), learned=False)(site.bits[0].detach()) if spec.kind == "Embedding" else None
        grid = site.weight_grid(weight) if grid is None else grid
        user = _User(bits[name].weight, grid, rounded(weight, grid, weight.dtype))
        users |= dict.fromkeys(own, user)
        layers[name] = user.bits
    return users, layers, float_layers


def _same(one: _User | None, other: _User) -> bool:
    return one is other or (one is not None and one.bits == other.bits and torch.equal(one.values, other.values))


def _store_grid(name: str, user: _User, stored: dict[str, Tensor], parts) -> dict[str, Any]:
    for part, value in zip(PARTS, _parts(user.grid), strict=True):
        if part in parts and value is not None:
            stored[f"{name}:{part}"] = value.detach().cpu().contiguous().clone()
    return {"bits": user.bits}


def _store_codes(name: str, user: _User, weight: Tensor, stored: dict[str, Tensor]) -> dict[str, Any]:
    """Put the codes of a weight and their grid into `stored`; returns the entry. ValueError where they do not fit."""
    scale, offset = user.grid.scale, user.grid.offset
    exact = rounded(weight, user.grid)  # in the type that the grid computes in
    codes = torch.round((exact.double() - (0 if offset is None else offset.double())) / scale.double()).long()
    channels = [d for d in range(codes.dim()) if scale.dim() <= d or scale.shape[d] == 1]
    lowest = codes.amin(channels, keepdim=True) if channels else codes
    zero = torch.where(lowest < 0, 2 ** (user.bits - 1) - 1, 0)  # a symmetric grid is -(2^(k-1) - 1) to 2^(k-1) - 1, or 0 up
    moved = codes + zero
    if moved.min() < 0 or moved.max() >= 2**user.bits:
        raise ValueError(
            f"The codes of {name!r} must fit in its {user.bits} bits; they run from {codes.min()} to {codes.max()}. Its "
            "quantizer makes more values than 2^bits."
        )
    entry = _store_grid(name, user, stored, ("scale", "offset"))
    stored[f"{name}:codes"] = packed.pack(moved.cpu(), user.bits)
    entry |= {"shape": list(weight.shape), "dtype": str(weight.dtype).removeprefix("torch.")}
    if len(zero.unique()) > 1:
        stored[f"{name}:zero"] = zero.cpu().to(torch.uint8 if user.bits <= 8 else torch.int16)
    elif int(zero.flatten()[0]):
        entry["zero"] = int(zero.flatten()[0])
    back = (moved - zero).to(scale.dtype) * scale
    back = (back if offset is None else back + offset).to(weight.dtype)
    if not torch.equal(back, user.values):
        raise ValueError(f"The values of {name!r} do not lie on the grid of its quantizer, so they cannot be packed.")
    return entry
