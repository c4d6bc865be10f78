"""How a saved model is made again: a recipe of plain data, tried out when it is written.

    {"source": "timm", "architecture": "resnet18", "kwargs": {"num_classes": 10}}
    {"source": "transformers", "class": "BertForSequenceClassification", "attention": "sdpa"}     the rest is in config.json
    {"source": "none", "reason": "..."}                                                           load_pretrained(folder, model)
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.layers import Swapped, original_class

REMEDY = "give the model yourself: load_pretrained(folder, model=...)"
_TRAINING_ONLY = ("Drop", "Identity", "Stochastic")  # in a module's class: without effect in evaluation


def recipe(model: nn.Module, create: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recipe of `model`. create: what timm.create_model was given beyond the name, where it cannot be seen in the model."""
    if is_transformers(model):
        return _transformers_recipe(model)
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        return {"source": "none", "reason": f"{plain_class(model).__name__} is neither timm's nor of transformers"}
    return _timm_recipe(model, architecture, create)


def build(recipe: dict[str, Any], folder: Path) -> nn.Module:
    """The model of a recipe: timm's with fresh weights, transformers' with those of `folder`. Random state stays as it was.

    Raises:
        ValueError: there is no recipe, or it does not work with the installed packages.
    """
    source = recipe.get("source")
    makers = {"timm": _build_timm, "transformers": _build_transformers}
    if source not in makers:
        raise ValueError(f"{folder} does not say how to make its model ({recipe.get('reason', 'unknown source')}): {REMEDY}.")
    try:
        with torch.random.fork_rng():
            return makers[source](recipe, folder)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{folder} has a model that {source} cannot make here: {error}\nOr {REMEDY}.") from error


def is_transformers(model: nn.Module) -> bool:
    """Whether `model` is one of transformers, own subclasses included; transformers itself is not imported for it."""
    return any(cls.__module__ == "transformers.modeling_utils" for cls in type(model).__mro__)


def plain_class(module: nn.Module) -> type:
    """The class of a module before `apply`."""
    return original_class(type(module)) if isinstance(module, Swapped) else type(module)


# -- transformers ---------------------------------------------------------------------------------------------------


def _transformers_recipe(model: nn.Module) -> dict[str, Any]:
    import transformers

    cls = plain_class(model)
    if getattr(transformers, cls.__name__, None) is not cls:
        return {"source": "none", "reason": f"transformers has no class {cls.__name__} of its own"}
    attention = getattr(model.config, "_attn_implementation", None)
    return {"source": "transformers", "class": cls.__name__, "attention": attention}


def _build_transformers(recipe: dict, folder: Path) -> nn.Module:
    import transformers

    cls = getattr(transformers, recipe["class"])
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    dtype = {"dtype" if version >= (4, 56) else "torch_dtype": "auto"}
    return cls.from_pretrained(folder, attn_implementation=recipe["attention"], local_files_only=True, **dtype)


# -- timm -----------------------------------------------------------------------------------------------------------


def _timm_recipe(model: nn.Module, architecture: str, create: dict[str, Any] | None) -> dict[str, Any]:
    """timm keeps no record of the arguments of a model, so they are read off it, and the result is compared."""
    reason = None
    for kwargs in [create] if create is not None else _guesses(model):
        found = {"source": "timm", "architecture": architecture, "kwargs": kwargs}
        try:
            with torch.random.fork_rng():
                reason = difference(_build_timm(found, device="meta"), model)
        except Exception as error:  # whatever a model's constructor makes of arguments that it does not take
            reason = str(error)
        if reason is None:
            return found
    return {
        "source": "none",
        "reason": f"timm's {architecture} with {kwargs} is another model: {reason}. Say what it was made with: "
        "save_pretrained(model, folder, create={...})",
    }


def _guesses(model: nn.Module) -> list[dict[str, Any]]:
    """Arguments that timm.create_model may have been given, the simplest first."""
    config = model.pretrained_cfg
    basic = {"num_classes": model.num_classes} if hasattr(model, "num_classes") else {}
    channels = _input_channels(model, config.get("first_conv"))
    if channels is not None and channels != (config.get("input_size") or (3,))[0]:
        basic["in_chans"] = channels
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    pool = getattr(model, "global_pool", None)
    more: list[dict] = [{}]
    more += [{"img_size": list(size)}] if size is not None else []
    more += [other | {"global_pool": pool} for other in more] if isinstance(pool, str) else []
    return [basic | extra for extra in more]


def _input_channels(model: nn.Module, first: Any) -> int | None:
    name = first[0] if isinstance(first, list | tuple) and first else first
    layer = dict(model.named_modules()).get(name)
    return layer.weight.shape[1] * layer.groups if isinstance(layer, nn.Conv2d) else None


def _build_timm(recipe: dict, folder: Path | None = None, device: str = "cpu") -> nn.Module:
    import timm

    from . import cifar_models  # noqa: F401 (the import registers our names)

    with torch.device(device):
        return timm.create_model(recipe["architecture"], pretrained=False, **recipe["kwargs"])


# -- comparison -----------------------------------------------------------------------------------------------------


def shape_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str | None:
    """In words, how the names or shapes of two state dicts differ; None where they are equal."""
    missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or more:
        return "; ".join([f"it lacks {missing[:5]}"] * bool(missing) + [f"it has {more[:5]} besides"] * bool(more))
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            return f"{name} is {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
    return None


def difference(found: nn.Module, expected: nn.Module) -> str | None:
    """The first difference of two models: tensors, or modules that count in evaluation; None without one."""
    shapes = shape_difference(found.state_dict(), expected.state_dict())
    if shapes is not None:
        return shapes
    first, second = _structure(found), _structure(expected)
    for name in sorted(set(first) | set(second)):
        if first.get(name) != second.get(name):
            return f"{name or 'the model itself'} is {first.get(name)} instead of {second.get(name)}"
    return None


def _structure(model: nn.Module) -> dict[str, str]:
    """{module: class and options} of what computes in evaluation."""
    out = {}
    for name, module in model.named_modules():
        cls = plain_class(module).__name__
        if not any(word in cls for word in _TRAINING_ONLY):
            leaf = next(module.children(), None) is None and inspect.ismethod(getattr(module, "extra_repr", None))
            out[name] = f"{cls}({module.extra_repr() if leaf else ''})"
    return out
