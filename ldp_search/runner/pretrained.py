"""A model with its bits as a folder: `save_pretrained` and `load_pretrained`.

    model.safetensors    the weights, under their plain names: timm and transformers load them as they load any others
    config.json          models of transformers: their own configuration, so that AutoModel....from_pretrained(folder) works
    ldp.json             everything of LDP (space, bits, ranges, clips, costs), and how the model is made again

It is for using and exporting a model. What an interrupted training needs is `controller(model).state_dict()`: the policy's
memory and the trajectory are not in the folder. To train a loaded model on, `remove` and `apply` again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..api import controller
from .rebuild import build, is_transformers, plain_class, recipe, shape_difference
from .record import RECORD, make_record, read_record, restore, to_text

WEIGHTS = "model.safetensors"


def save_pretrained(model: nn.Module, folder: str | os.PathLike, create: dict[str, Any] | None = None) -> Path:
    """Write `model`, to which `apply` was called, into `folder` (made if need be); returns the folder.

    Every file is replaced whole, ldp.json last. In a distributed training, call it in one process.

    Args:
        create: for a timm model made with arguments that cannot be seen in it (`{"shortcut": "A"}`): all that
            timm.create_model was given beyond name and pretrained. Without a recipe that works, the folder is written all
            the same, with a warning, and `load_pretrained` then needs the model.

    Raises:
        LookupError: `apply` was never called. ValueError: `folder` is a file, or the model's state is not made of tensors.
    """
    ldp, folder = controller(model), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save_pretrained writes a folder, but {folder} is a file: give another name.")
    how = recipe(ldp.model, create)
    if how["source"] == "none" and (create is not None or hasattr(ldp.model, "pretrained_cfg")):
        warnings.warn(f"load_pretrained({str(folder)!r}) will need the model, since {how['reason']}.", stacklevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as stage:
        _write_weights(ldp.model, Path(stage))
        record = make_record(ldp, how, _fingerprint(Path(stage) / WEIGHTS))
        (Path(stage) / RECORD).write_text(to_text(record), encoding="utf-8")
        for file in sorted(os.listdir(stage), key=lambda name: name == RECORD):
            os.replace(os.path.join(stage, file), folder / file)
    return folder


def load_pretrained(folder: str | os.PathLike, model: nn.Module | None = None) -> nn.Module:
    """The model that `save_pretrained` wrote, in evaluation mode: same weights, same bits, bitwise the same outputs.

    Args:
        model: takes the weights and bits, in place; needed where the folder does not say how to make it. A plain one.

    Raises:
        FileNotFoundError: no such folder or file. ValueError: a file is truncated, changed, or of another format version; the
            model has other tensors or layers; or the folder does not say how to make its model and none is given.
    """
    folder, given = Path(folder), model is not None
    record = read_record(folder)
    weights = _check_weights(folder, record["weights"])
    if model is None:
        model = build(record["model"], folder)
    if not is_transformers(model):
        _take_weights(model, _read_weights(weights), folder)
    elif given:  # a second model, which knows ties and how the names on disk become those in the model
        _take_weights(model, build(record["model"], folder, like=model).state_dict(), folder)
    restore(model, record)
    return model.eval()


# -- weights --------------------------------------------------------------------------------------------------------


def _write_weights(model: nn.Module, stage: Path) -> None:
    """Weights of any model; for one of transformers by its own way, which leaves out ties and adds its configuration."""
    from safetensors.torch import save_file

    if is_transformers(model):
        model.save_pretrained(stage, max_shard_size="10000GB")
        if type(model) is not plain_class(model):  # then the configuration names a class that no one else knows
            model.config.architectures = [plain_class(model).__name__]
            model.config.save_pretrained(stage)
        return
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"A state dict of tensors is needed; {name!r} of {type(model).__name__} is a {type(value).__name__}."
            )
    seen: set[int] = set()
    for name, value in state.items():  # tied tensors are written under each of their names: plain loaders look for all
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        state[name] = value.detach().cpu().contiguous().clone() if shared else value.detach().cpu().contiguous()
    save_file(dict(state), stage / WEIGHTS, metadata={"format": "pt"})


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}. Save the model again.") from error


def _take_weights(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy tensors into a model of the same names and shapes, in their own types."""
    reason = shape_difference(dict(model.state_dict()), tensors)
    if reason is not None:
        raise ValueError(f"The model must have the tensors of {folder}, but {reason}. Make it with the same arguments.")
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name in tensors and value.dtype != tensors[name].dtype:
            value.data = value.data.to(tensors[name].dtype)
    model.load_state_dict(tensors)


def _check_weights(folder: Path, expected: dict[str, Any]) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}: copy the whole folder that save_pretrained wrote.")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(
            f"{path} must have {expected['bytes']} bytes; it has {size}. It was cut off or replaced: copy it again."
        )
    if _fingerprint(path) != expected:
        raise ValueError(f"{path} is not the file that was saved with {RECORD}: it was changed or replaced. Copy it again.")
    return path


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file: the weights and the record of two different savings must not be mixed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
