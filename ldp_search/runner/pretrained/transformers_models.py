"""Models of transformers: the recipe of one, tried out when it is written, and the model of a folder.

transformers itself is imported only where such a model is at hand.
"""

from __future__ import annotations

import copy
import functools
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .dtypes import recorded_dtypes, take_dtypes
from .structure import plain_class, shape_difference

FILES = ("config.json", "generation_config.json", "model.safetensors")


def is_transformers(model: nn.Module) -> bool:
    """Whether `model` is one of transformers, own subclasses included."""
    return any(cls.__module__ == "transformers.modeling_utils" for cls in type(model).__mro__)


def transformers_recipe(model: nn.Module) -> dict[str, Any]:
    """{"source": "transformers", "class": name, "attention": implementation}, or source "none" with the reason."""
    import transformers

    cls = plain_class(model)
    attention = {"attention": getattr(model.config, "_attn_implementation", None)}
    if getattr(transformers, cls.__name__, None) is not cls:
        return {"source": "none", "reason": f"transformers has no class {cls.__name__} of its own"} | attention
    other = _difference_from_twin(cls, model)
    if other is not None:
        reason = f"{cls.__name__} of its configuration is another model ({other}; adapters are merged before saving)"
        return {"source": "none", "reason": reason} | attention
    return {"source": "transformers", "class": cls.__name__} | attention


def _difference_from_twin(cls: type, model: nn.Module) -> str | None:
    """How the tensors of a fresh model of the same configuration differ, in words; it takes no memory."""
    try:
        with torch.random.fork_rng(), torch.device("meta"):
            twin = cls(copy.deepcopy(model.config))
    except Exception:  # some constructors compute with their tensors; then loading will tell
        return None
    return shape_difference(twin.state_dict(), dict(model.state_dict()))


def build_transformers(recipe: dict[str, Any], folder: Path, like: nn.Module | None) -> nn.Module:
    """The model with the weights of `folder`, each in its recorded type.

    Raises:
        ValueError: the folder's tensors are not those of the class.
    """
    import transformers

    cls = getattr(transformers, recipe["class"]) if like is None else plain_class(like)
    with _alone(folder) as stage:
        load = functools.partial(_from_pretrained, cls, stage, recipe.get("attention"))
        model = load("auto")
        wider = recorded_dtypes(model, recipe).keys() & model.state_dict().keys()
        take_dtypes(model, recipe, load(_widest(recipe)) if wider else None)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def _from_pretrained(cls: type, folder: Path, attention: str | None, dtype) -> nn.Module:
    import transformers

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    options = {"dtype" if version >= (4, 56) else "torch_dtype": dtype, "output_loading_info": True}
    model, info = cls.from_pretrained(folder, attn_implementation=attention, local_files_only=True, **options)
    for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "has, besides what is in the class,")):
        if info[key]:
            raise ValueError(f"its file {what} {sorted(info[key])[:5]}")
    return model


def _widest(recipe: dict[str, Any]) -> torch.dtype:
    names = {recipe["dtype"], *recipe["other_dtypes"].values()}
    return functools.reduce(torch.promote_types, [getattr(torch, name) for name in names])


@contextmanager
def _alone(folder: Path):
    """A folder with nothing but the model's own files: others beside them (an adapter's) would be loaded too."""
    with tempfile.TemporaryDirectory() as stage:
        for name in FILES:
            if (folder / name).is_file():
                try:
                    os.symlink((folder / name).resolve(), Path(stage) / name)
                except OSError:  # Windows, without the right to
                    shutil.copyfile(folder / name, Path(stage) / name)
        yield Path(stage)
