"""Models whose weights lie on disk in their true bits: the reader of `format=packed`.

    model = packed.load("model.packed.safetensors")          # a plain torch module, in evaluation mode
    model = packed.load("model.packed.safetensors", model)   # ... weights and roundings put into one of your own
    state = packed.read("model.packed.safetensors").state_dict()

This one file needs torch and safetensors, and nothing else of ldp_search: it may be copied beside a model.

A k-bit tensor is a stream of bits: code i lies at bits i*k to i*k + k - 1, lowest first, in the order of the tensor's elements
(of more than 8 bits: the low bytes of all codes, then their high parts). A weight is

    scale * (code - zero) + offset        computed in the type of `scale`, then cast

with `scale`, `offset`, `zero` one value a channel, shaped to broadcast. Inputs of layers are rounded to grids that are kept in
the description, JSON in the file's metadata. Tied tensors are stored once. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

KEY = "ldp_packed"  # of the metadata
VERSION = 1
_CHUNK = 2**17  # groups of eight codes at a time: they are int64 for a while


# -- bits -----------------------------------------------------------------------------------------------------------


def packed_bytes(numel: int, bits: int) -> int:
    """Bytes of `numel` codes of 1 to 16 bits."""
    return -(-numel * bits // 8) if bits <= 8 else numel + packed_bytes(numel, bits - 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(packed_bytes,) uint8 of integer codes in [0, 2^bits)."""
    codes = codes.flatten().long()
    if bits > 8:
        return torch.cat([pack(codes & 255, 8), pack(codes >> 8, bits - 8)])
    padded = torch.nn.functional.pad(codes, (0, -len(codes) % 8)).view(-1, 8)
    places, bytes_ = torch.arange(8) * bits, torch.arange(bits) * 8
    words = ((part << places).sum(1, keepdim=True) for part in padded.split(_CHUNK))
    packed = torch.cat([((word >> bytes_) & 255).to(torch.uint8) for word in words]).flatten()
    return packed[: packed_bytes(len(codes), bits)].clone()


def unpack(packed: Tensor, bits: int, numel: int) -> Tensor:
    """(numel,) int32 codes: the inverse of `pack`."""
    if bits > 8:
        return unpack(packed[:numel], 8, numel) + (unpack(packed[numel:], bits - 8, numel) << 8)
    padded = torch.nn.functional.pad(packed, (0, -len(packed) % bits)).view(-1, bits)
    places, bytes_, mask = torch.arange(8) * bits, torch.arange(bits) * 8, 2**bits - 1
    words = ((part.long() << bytes_).sum(1, keepdim=True) for part in padded.split(_CHUNK))
    return torch.cat([((word >> places) & mask).int() for word in words]).flatten()[:numel]


def rounded(x: Tensor, scale: Tensor, offset: Tensor | None, low: Tensor | None, high: Tensor | None) -> Tensor:
    """The grid's nearest values, in the type of `x`: scale * round((clamp(x, low, high) - offset) / scale) + offset."""
    q = x.to(torch.promote_types(x.dtype, torch.float32))
    q = q if low is None else torch.maximum(torch.minimum(q, high), low)
    q = torch.round((q if offset is None else q - offset) / scale) * scale
    return (q if offset is None else q + offset).to(x.dtype)


# -- files ----------------------------------------------------------------------------------------------------------


@dataclass
class Packed:
    """What a file holds. description: see `write_description` of the writer; stored: its tensors by their names there."""

    description: dict[str, Any]
    stored: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of the model under its own name: weights at their bits, the rest as it was. Ties share their tensor."""
        entries = self.description["tensors"]
        out: dict[str, Tensor] = {}
        for name in sorted(entries, key=lambda name: 2 * ("tied" in entries[name]) + ("rounded_from" in entries[name])):
            out[name] = self._tensor(name, entries[name], out)
        return {name: out[name] for name in entries}

    def _tensor(self, name: str, entry: dict[str, Any], done: dict[str, Tensor]) -> Tensor:
        if "tied" in entry:
            return done[entry["tied"]]
        if "bits" not in entry:
            return self.stored[name]
        scale, offset, zero, low, high = (
            self.stored.get(f"{name}:{part}") for part in ("scale", "offset", "zero", "low", "high")
        )
        if "rounded_from" in entry:
            return rounded(done[entry["rounded_from"]], scale, offset, low, high)
        shape, dtype = entry["shape"], getattr(torch, entry["dtype"])
        codes = unpack(self.stored[f"{name}:codes"], entry["bits"], torch.Size(shape).numel()).view(shape)
        zero = entry.get("zero", 0) if zero is None else zero.int()
        values = (codes - zero).to(scale.dtype) * scale
        return (values if offset is None else values + offset).to(dtype)

    def into(self, model: nn.Module) -> nn.Module:
        """Put weights and the rounding of inputs into a plain `model` of the same names and shapes; returns it.

        Raises:
            ValueError: its tensors or layers are others.
        """
        state, own = self.state_dict(), model.state_dict()
        differing = sorted(set(state) ^ set(own)) or [name for name in own if own[name].shape != state[name].shape]
        if differing:
            raise ValueError(f"The model must have the tensors of the packed one; these differ: {differing[:5]}.")
        modules = dict(model.named_modules(remove_duplicate=False))
        self._untie(model, modules)
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name in state and value.dtype != state[name].dtype:
                value.data = value.data.to(state[name].dtype)
        model.load_state_dict(state)
        for name, grids in self.description["inputs"].items():
            if name not in modules:
                raise ValueError(f"The model must have the layers of the packed one; it has no {name!r}.")
            modules[name].register_forward_pre_hook(RoundInput(grids), with_kwargs=True)
        return model.eval()

    def _untie(self, model: nn.Module, modules: dict[str, nn.Module]) -> None:
        """Give a parameter of its own to every name whose values are not those that it is tied to in `model`."""
        entries, first = self.description["tensors"], {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            source = entries[name].get("tied", name)
            if first.setdefault(id(parameter), source) != source:
                path, _, attribute = name.rpartition(".")
                setattr(modules[path], attribute, nn.Parameter(parameter.detach().clone()))


class RoundInput:
    """Forward pre-hook of a layer: rounds its input to the grid of the call whose turn it is."""

    def __init__(self, grids: list[dict[str, float]]):
        self.grids, self.turn = grids, 0

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict):
        turn, self.turn = self.turn, (self.turn + 1) % len(self.grids)
        if args:
            return (self._rounded(args[0], turn), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, kwargs | {name: self._rounded(kwargs[name], turn)}

    def _rounded(self, x: Tensor, turn: int) -> Tensor:
        # Made at every call: a trace's tensors (torch.export) are of use to it alone.
        values = (self.grids[turn].get(part) for part in ("scale", "offset", "low", "high"))
        grid = [None if v is None else torch.full((), v, dtype=torch.float32, device=x.device) for v in values]
        return rounded(x, *grid) if x.numel() else x


def digest(description: dict[str, Any], stored: dict[str, Tensor]) -> str:
    """SHA-256 of everything in a file: its description (but for the digest itself) and its tensors."""
    plain = {key: value for key, value in description.items() if key != "sha256"}
    out = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(stored):
        value = stored[name].detach().cpu().contiguous()
        out.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        out.update(value.flatten().view(torch.uint8).numpy().data if value.numel() else b"")
    return out.hexdigest()


def read(path: str | Path) -> Packed:
    """Read and check a file.

    Raises:
        FileNotFoundError: there is none. ValueError: it was cut short or changed, is of another version, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No packed model at {path}: give a file that format=packed wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file: {error}. It was cut short or changed: copy it again."
        ) from error
    if KEY not in metadata:
        raise ValueError(f"{path} is a safetensors file, but no packed model: its metadata must have {KEY!r}.")
    try:
        description = json.loads(metadata[KEY])
        found = description["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has a description that cannot be read ({error}): copy it again.") from error
    if found != VERSION:
        raise ValueError(
            f"{path} must be of format version {VERSION}; it is of {found!r}, made with {description.get('made_with')}. "
            "Read it with the packed.py of that version, or export the model again."
        )
    if description.get("sha256") != digest(description, stored):
        raise ValueError(f"{path} is not the file that was written: its digest differs. It was changed: copy it again.")
    return Packed(description, stored)


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """A plain module, in evaluation mode, that computes what the quantized model computed: `Packed.into` of a new `model`.

    Args:
        model: of the same architecture; needed where the file does not say how it is made (timm and transformers).

    Raises:
        FileNotFoundError, ValueError: as `read` and `Packed.into`; or no model is given and none can be made.
    """
    found = read(path)
    return found.into(build(found.description["model"]) if model is None else model)


def build(recipe: dict[str, Any]) -> nn.Module:
    """A fresh model from a recipe of plain data: {"source": "timm", ...} or {"source": "transformers", ...}. Or ValueError."""
    source = recipe.get("source")
    if source == "timm":
        import timm

        if not timm.is_model(recipe["architecture"]):
            import_cifar_networks()
        return timm.create_model(recipe["architecture"], pretrained=False, **recipe["kwargs"])
    if source == "transformers":
        import transformers

        config = transformers.AutoConfig.for_model(**recipe["config"])
        return getattr(transformers, recipe["class"])._from_config(config, attn_implementation=recipe.get("attention"))
    raise ValueError(
        f"The file does not say how its model is made ({recipe.get('reason', f'source {source!r}')}): load(path, model)."
    )


def import_cifar_networks() -> None:
    """Register the CIFAR networks of ldp_search with timm: the one thing that needs it, and only for them."""
    import ldp_search.runner.models.cifar  # noqa: F401
