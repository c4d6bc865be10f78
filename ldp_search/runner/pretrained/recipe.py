"""How a saved model is made again: a recipe of plain data, tried out when it is written.

{"source": "timm", "architecture": "resnet18", "kwargs": {"num_classes": 10}}
{"source": "transformers", "class": "BertForSequenceClassification", "attention": "sdpa"}     the rest is in config.json
{"source": "segmenter", "kwargs": {"name": "resnet18", "classes": 11, "width": 64}}           models/segmenter.py
{"source": "none", "reason": "..."}                                                           load_pretrained(folder, model)

Beside these words a saved recipe has the types of the tensors (`dtypes.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .structure import difference, plain_class
from .transformers_models import build_transformers, is_transformers, transformers_recipe

REMEDY = "give the model yourself: load_pretrained(folder, model=...)"


def recipe(model: nn.Module, create: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recipe of `model`. create: what timm.create_model was given beyond the name, where it cannot be seen in the model."""
    if is_transformers(model):
        return transformers_recipe(model)
    if _is_segmenter(model):
        return _segmenter_recipe(model)
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        return {"source": "none", "reason": f"{plain_class(model).__name__} is neither timm's nor of transformers"}
    return _timm_recipe(model, architecture, create)


def build(recipe: dict[str, Any], folder: Path, like: nn.Module | None = None) -> nn.Module:
    """The model of a recipe: timm's with fresh weights, transformers' with those of `folder`. Random state stays as it was.

    Args:
        like: a model of transformers (or of a subclass) whose class is taken instead of the recipe's.

    Raises:
        ValueError: there is no recipe, or it does not work with the installed packages.
    """
    source = "transformers" if like is not None else recipe.get("source")
    if source not in ("timm", "transformers", "segmenter"):
        why = recipe.get("reason", "unknown source")
        raise ValueError(f"{folder} does not say how to make its model by itself. Therefore {REMEDY}. What is missing: {why}.")
    try:
        with torch.random.fork_rng():
            if source == "segmenter":
                return _build_segmenter(recipe)
            return _build_timm(recipe) if source == "timm" else build_transformers(recipe, folder, like)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{folder} has a model that {source} cannot make here: {error}\nOr {REMEDY}.") from error


# -- timm -----------------------------------------------------------------------------------------------------------


def _timm_recipe(model: nn.Module, architecture: str, create: dict[str, Any] | None) -> dict[str, Any]:
    """timm keeps no record of the arguments of a model, so they are read off it, and the result is compared."""
    guesses, reasons = [create] if create is not None else _guesses(model), []
    for kwargs in guesses:
        found = {"source": "timm", "architecture": architecture, "kwargs": kwargs}
        try:
            reasons.append(difference(_twin(found), model))
        except Exception as error:  # whatever a model's constructor makes of arguments that it does not take
            reasons.append(str(error))
        if reasons[-1] is None:
            return found
    return {
        "source": "none",
        "reason": f"timm's {architecture} with {guesses[0]} is another model: {reasons[0]}. Say what it was made with: "
        "save_pretrained(model, folder, create={...})",
    }


def _twin(recipe: dict) -> nn.Module:
    """The model of a recipe without storage, where timm can do that (older versions compute some options in tensors)."""
    try:
        return _build_timm(recipe, "meta")
    except (NotImplementedError, RuntimeError):
        with torch.random.fork_rng():
            return _build_timm(recipe)


def _guesses(model: nn.Module) -> list[dict[str, Any]]:
    """Arguments that timm.create_model may have been given, the likeliest first."""
    config = model.pretrained_cfg
    basic = {"num_classes": model.num_classes} if hasattr(model, "num_classes") else {}
    usual, seen = (config.get("input_size") or (3,))[0], _input_channels(model, config.get("first_conv"))
    channels = [{}] if seen in (usual, None) else [{"in_chans": seen}, {}]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    pool = getattr(model, "global_pool", None)
    more: list[dict] = [{}]
    more += [{"img_size": list(size)}] if isinstance(size, list | tuple) else []
    more += [other | {"global_pool": pool} for other in more] if isinstance(pool, str) else []
    return [basic | some | other for some in [*channels, {"in_chans": 1}] for other in more]


def _input_channels(model: nn.Module, first: Any) -> int | None:
    """Input channels of the first convolution; other kinds of first layer do not tell."""
    name = first[0] if isinstance(first, list | tuple) and first else first
    layer = dict(model.named_modules()).get(name) if isinstance(name, str) else None
    return layer.weight.shape[1] * layer.groups if isinstance(layer, nn.Conv2d) else None


def _build_timm(recipe: dict, device: str = "cpu") -> nn.Module:
    import timm

    from ..models import cifar  # noqa: F401 (the import registers our names)

    with torch.device(device):
        return timm.create_model(recipe["architecture"], pretrained=False, **recipe["kwargs"])


# -- our own decoder ------------------------------------------------------------------------------------------------


def _is_segmenter(model: nn.Module) -> bool:
    """By name: a model of someone else's must not load the module."""
    cls = plain_class(model)
    return cls.__module__ == "ldp_search.runner.models.segmenter" and cls.__name__ == "Segmenter"


def _segmenter_recipe(model: nn.Module) -> dict[str, Any]:
    found = {"source": "segmenter", "kwargs": model.made_with}
    try:
        other = difference(_build_segmenter(found), model)
    except Exception as error:  # whatever timm makes of arguments that have changed their meaning
        other = str(error)
    return found if other is None else {"source": "none", "reason": f"a Segmenter with {model.made_with} is another: {other}"}


def _build_segmenter(recipe: dict) -> nn.Module:
    """Nothing but this one class, with arguments that are plain data."""
    from ..models.segmenter import build as build_segmenter

    with torch.random.fork_rng():
        return build_segmenter(recipe["kwargs"])
