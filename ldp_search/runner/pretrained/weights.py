"""model.safetensors: weights of any model, written, checked and taken over."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .ldp_json import RECORD
from .recipe import is_transformers, plain_class, shape_difference

WEIGHTS = "model.safetensors"


def write_weights(model: nn.Module, stage: Path, state: dict[str, Tensor] | None) -> None:
    """Weights of any model; for one of transformers by its own way, which leaves out ties and adds its configuration."""
    from safetensors.torch import save_file

    own = model.state_dict()
    state = dict(own if state is None else state)
    _check_whole(model, state, own)
    if is_transformers(model):
        model.save_pretrained(stage, max_shard_size="10000GB", state_dict=state)
        if type(model) is not plain_class(model):  # then the configuration names a class that no one else knows
            model.config.architectures = [plain_class(model).__name__]
            model.config.save_pretrained(stage)
        return
    seen: set[int] = set()
    for name, value in state.items():  # tied tensors are written under each of their names: plain loaders look for all
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        state[name] = value.detach().cpu().contiguous().clone() if shared else value.detach().cpu().contiguous()
    save_file(state, stage / WEIGHTS, metadata={"format": "pt"})


def _check_whole(model: nn.Module, state: dict[str, Any], own: dict[str, Any]) -> None:
    """ValueError unless `state` is made of the model's tensors, whole ones."""
    if set(state) != set(own):
        raise ValueError(
            f"state_dict must have the names of the model's own; these differ: {sorted(set(state) ^ set(own))[:5]}."
        )
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"A state dict of tensors is needed; {name!r} is a {type(value).__name__}.")
        if hasattr(value, "full_tensor"):
            raise ValueError(
                f"Whole tensors are needed, but {name!r} of {type(model).__name__} is sharded: call "
                "state = accelerator.get_state_dict(model) in every process, then save_pretrained(model, folder, "
                "state_dict=state) in one."
            )


def read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}. Save the model again.") from error


def take_weights(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy tensors into a model of the same names and shapes, in their own types."""
    reason = shape_difference(dict(model.state_dict()), tensors)
    if reason is not None:
        raise ValueError(f"The model must have the tensors of {folder}, but {reason}. Make it with the same arguments.")
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name in tensors and value.dtype != tensors[name].dtype:
            value.data = value.data.to(tensors[name].dtype)
    model.load_state_dict(tensors)


def check_weights(folder: Path, expected: dict[str, Any]) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}: copy the whole folder that save_pretrained wrote.")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(
            f"{path} must have {expected['bytes']} bytes; it has {size}. It was cut off or replaced: copy it again."
        )
    if fingerprint(path) != expected:
        raise ValueError(f"{path} is not the file that was saved with {RECORD}: it was changed or replaced. Copy it again.")
    return path


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file: the weights and the record of two different savings must not be mixed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
