"""A model with its bits as a folder, here or on the Hugging Face hub: `save_pretrained`, `push_to_hub`, `load_pretrained`.

    model.safetensors    the weights, under their plain names: timm and transformers load them as they load any others
    config.json          models of transformers: their own configuration, so that AutoModel....from_pretrained(folder) works
    ldp.json             everything of LDP (space, bits, ranges, clips, costs), and how the model is made again
    README.md            a model card: costs, table of bits, and schedule.png, where there was a training

It is for using and exporting a model. What an interrupted training needs is `controller(model).state_dict()`: the policy's
memory and the trajectory are not in the folder. To train a loaded model on, `remove` and `apply` again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...api import controller
from ...core.apply import check_fresh, remove
from ...core.controller.strays import warn_of_strays
from ...core.messages import warn
from ..io.atomic import folder_made, replace_together
from .card import write_card
from .dtypes import dtypes_of, take_dtypes
from .hub import download, is_repo_id, upload
from .ldp_json import RECORD, make_record, read_record, restore, to_text
from .recipe import build, recipe
from .transformers_models import is_transformers
from .weights import (
    WEIGHTS,
    check_fit,
    check_weights,
    fingerprint,
    read_weights,
    take_weights,
    tensors_kept,
    with_ties,
    write_weights,
)


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike,
    create: dict[str, Any] | None = None,
    state_dict: dict[str, Tensor] | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **hub: Any,
) -> Path:
    """Write `model`, to which `apply` was called, into `folder` (made if need be); returns the folder.

    All files are replaced, or none where it raises; README.md as `card.py` says. In a distributed training, call it in one
    process.

    Args:
        create: for a timm model made with arguments that cannot be seen in it (`{"shortcut": "A"}`): all that
            timm.create_model was given beyond name and pretrained. Without a recipe that works, the folder is written all
            the same, with a warning, and `load_pretrained` then needs the model.
        state_dict: whole tensors of a model whose own are sharded (FSDP): `accelerator.get_state_dict(model)`.
        push_to_hub: also put it on the Hugging Face hub, as `repo_id` (by default the folder's name), with the options of
            `push_to_hub`.

    Raises:
        LookupError: `apply` was never called. ValueError: `folder` is a file, or the model's state is not made of whole
        tensors. OSError: it is saved, but pushing failed.
    """
    ldp, folder = controller(model), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save_pretrained writes a folder, but {folder} is a file: give another name.")
    if hub and not push_to_hub:
        raise TypeError(f"save_pretrained takes {sorted(hub)} only with push_to_hub=True.")
    warn_of_strays(ldp)
    how = recipe(ldp.model, create)
    _warn_of(how, ldp.model, folder, told=create is not None)
    repo_id = repo_id or folder.resolve().name
    how |= dtypes_of(ldp.model, state_dict)
    with folder_made(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as made:
        stage = Path(made)
        write_weights(ldp.model, stage, state_dict)
        record = make_record(ldp, how, fingerprint(stage / WEIGHTS))
        (stage / RECORD).write_text(to_text(record), encoding="utf-8")
        write_card(ldp, record, stage, folder, repo_id if push_to_hub else folder.name)
        replace_together(stage, folder, last=RECORD)
    if push_to_hub:
        upload(folder, repo_id, **hub)
    return folder


def push_to_hub(model: nn.Module | str | os.PathLike, repo_id: str, create: dict[str, Any] | None = None, **hub: Any) -> str:
    """Put a model, or a folder that `save_pretrained` wrote, on the Hugging Face hub; returns the address of the commit.

    `load_pretrained(repo_id)` gives it back anywhere.

    Args:
        repo_id: "user/name". create: as for `save_pretrained`.
        hub: token, private, commit_message, revision, create_pr, as huggingface_hub knows them.

    Raises:
        LookupError: `apply` was never called. OSError: not reached, not allowed or refused; says where the model is saved.
    """
    if isinstance(model, nn.Module):
        controller(model)  # before anything is written
        folder = Path(tempfile.mkdtemp(prefix="ldp_search-")) / repo_id.rpartition("/")[2]
        save_pretrained(model, folder, create)
        address = upload(folder, repo_id, **hub)  # where this fails, the folder is what is left of the work
        shutil.rmtree(folder.parent)
        return address
    read_record(Path(model))
    return upload(Path(model), repo_id, **hub)


def load_pretrained(folder: str | os.PathLike, model: nn.Module | None = None, revision: str | None = None) -> nn.Module:
    """The model that `save_pretrained` wrote, in evaluation mode: same weights, same bits, bitwise the same outputs.

    Args:
        folder: or the name of a repository of the Hugging Face hub, "user/name".
        model: takes the weights and bits, in place; needed where the folder does not say how to make it. A plain one. It stays
            as it was where loading raises.
        revision: branch, tag or commit of the repository.

    Raises:
        FileNotFoundError: no such folder, repository or file. ValueError: a file is truncated, changed, or of another format
            version; the model has other tensors or layers; or the folder does not say how to make its model and none is given.
    """
    folder = download(folder, revision=revision) if is_repo_id(folder) else Path(folder)
    record = read_record(folder)
    weights = check_weights(folder, record["weights"])
    if model is not None:
        return _load_into(model, folder, record, weights)
    model = build(record["model"], folder)
    if not is_transformers(model):
        _take(model, read_weights(weights), folder, record)
    restore(model, record)
    return model.eval()


def _load_into(model: nn.Module, folder: Path, record: dict[str, Any], weights: Path) -> nn.Module:
    """Weights and bits into a model that is given: all of them, or the model stays as it was."""
    check_fresh(model)
    tensors = read_weights(weights)
    if is_transformers(model):
        tensors = with_ties(model, tensors)
        if set(tensors) != set(model.state_dict()):  # a second model, which knows how the names on disk become those in it
            tensors = build(record["model"], folder, like=model).state_dict()
    modes = {module: module.training for module in model.modules()}
    with tensors_kept(model):
        try:
            _take(model, tensors, folder, record)
            restore(model, record)
            return model.eval()
        except BaseException:
            remove(model)
            for module, training in modes.items():
                module.training = training
            raise


def _take(model: nn.Module, tensors: dict[str, Tensor], folder: Path, record: dict[str, Any]) -> None:
    check_fit(model, tensors, folder)
    take_dtypes(model, record["model"])
    take_weights(model, tensors)


def _warn_of(how: dict[str, Any], model: nn.Module, folder: Path, told: bool) -> None:
    """What will surprise whoever loads the folder: no recipe where one was to be expected, files of other models in it."""
    if how["source"] == "none" and (told or hasattr(model, "pretrained_cfg") or "another model" in how["reason"]):
        warn(f"load_pretrained({str(folder)!r}) will need the model, since {how['reason']}.")
    for name, reads in _left_behind(model, folder):
        warn(
            f"{folder} holds the {name} of another model: load_pretrained reads past it, but {reads}. Move it away, or save "
            "into another folder.",
        )


def _left_behind(model: nn.Module, folder: Path) -> Iterator[tuple[str, str]]:
    """(file in `folder` that is not this model's and stays, what others make of it)."""
    if is_transformers(model):
        if (folder / "adapter_config.json").is_file():
            yield "adapter_config.json", "transformers' from_pretrained would put that adapter on top of these weights"
    elif (folder / "config.json").is_file() and "transformers_version" in (folder / "config.json").read_text(
        "utf-8", "replace"
    ):
        yield "config.json", "transformers' from_pretrained would make that model"
