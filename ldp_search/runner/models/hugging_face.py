"""Models of transformers, pretrained or from scratch, with fields of their configuration changed.

From scratch, an alias or a model type (`hf:bert`) needs no network: the configuration is the type's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ...config.overlay import ConfigError
from ...core.messages import did_you_mean
from .aliases import ALIASES


def create(
    name: str, scratch: dict[str, Any], auto: str | Callable[[Any], str], pretrained: bool, fields: dict[str, Any],
    options: dict[str, Any],
) -> nn.Module:  # fmt: skip
    """A model of transformers in fp32.

    Args:
        name: id, folder, or model type. scratch: configuration of an alias. auto: name of the Auto class, or what tells it
            from a configuration. fields: what the task needs the configuration to say. options: what the user wants it to say.

    Raises:
        ConfigError: the configuration has no such field, or there are no weights to begin with.
    """
    import torch
    import transformers

    config = configuration(name, scratch, pretrained, fields, options)
    cls = getattr(transformers, auto(config) if callable(auto) else auto)
    _check_head(config, cls)
    transformers.logging.set_verbosity_error()  # of a new head, which is fresh by intention
    if not pretrained:
        return cls.from_config(config).float()
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    dtype = {"dtype" if version >= (4, 56) else "torch_dtype": torch.float32}
    options_of_loading = {"ignore_mismatched_sizes": True, "output_loading_info": True} | dtype
    model, found = cls.from_pretrained(place_of(name), config=config, **options_of_loading)
    _check_loaded(model, found, name)
    return model


def _check_loaded(model: nn.Module, found: dict[str, Any], name: str) -> None:
    """Raises ConfigError where the published weights do not fill the network below the head, which alone may be fresh."""
    inner = f"{model.base_model_prefix}."
    wrong = [entry[0] if isinstance(entry, tuple) else entry for entry in found.get("mismatched_keys", ())]
    wrong += [key for key in found.get("missing_keys", ()) if "pooler" not in key]  # many are published without theirs
    below = sorted(key for key in wrong if key.startswith(inner) and hasattr(model, inner[:-1]))
    if below:
        raise ConfigError(
            f"With pretrained=true the weights of {name} must fill the network below its head, but {len(below)} tensors have "
            f"none that fit: {', '.join(below[:3])}{', ...' if len(below) > 3 else ''}. Leave out the model.FIELD=... that "
            "changes sizes, or train from scratch with pretrained=false."
        )


def _check_head(config: Any, cls: Any) -> None:
    """Raises ConfigError where a type of model has no head for the task: transformers would list hundreds that have one."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = cls._model_mapping
    if type(config) in known or hasattr(config, "auto_map"):  # code of its own comes with the model
        return
    types = {name: alias.config.get("model_type") for name, alias in ALIASES.items()}
    fit = [name for name, kind in types.items() if kind and CONFIG_MAPPING[kind] in known]
    head = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__.removeprefix("AutoModelFor"))
    raise ConfigError(
        f"The model type {config.model_type!r} has no head for this task ({head}). "
        f"Some that have one: {', '.join(fit[:6])}; all types: the documentation of transformers.{cls.__name__}."
    )


def configuration(name: str, scratch: dict[str, Any], pretrained: bool, fields: dict[str, Any], options: dict[str, Any]) -> Any:
    """The configuration of a model. Raises ConfigError for a field that it does not have."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if pretrained and not name:
        raise ConfigError("This model is not published with weights: train it from scratch with pretrained=false.")
    if not pretrained and not is_folder(name) and (scratch or name in CONFIG_MAPPING):
        kind = dict(scratch) or {"model_type": name}
        given = _nested(kind, options)
        model_type = given.pop("model_type")
        flat = {k: v for k, v in options.items() if not isinstance(v, dict)}
        _check_fields(AutoConfig.for_model(model_type, **given), flat)
        return AutoConfig.for_model(model_type, **(given | flat | fields))  # at once: some fields follow from others
    config = AutoConfig.from_pretrained(place_of(name))
    _check_fields(config, options)
    for field, value in (fields | options).items():
        inner = getattr(config, field, None)
        if isinstance(value, dict) and hasattr(inner, "to_dict"):
            for key, one in value.items():
                setattr(inner, key, one)
        else:
            setattr(config, field, value)
    return type(config).from_dict(config.to_dict())  # its own checks, on what it has become


def _check_fields(config: Any, options: dict[str, Any]) -> None:
    for field in options:
        if not hasattr(config, field):
            near = did_you_mean(field, [k for k in config.to_dict() if not k.startswith("_")])
            raise ConfigError(f"A {config.model_type} configuration has no field {field!r}.{near}")


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder here. (The empty name of a model that is not published would be this very folder.)"""
    return bool(name) and Path(name).expanduser().is_dir()


def place_of(name: str) -> str:
    """The name as transformers takes it."""
    return str(Path(name).expanduser()) if is_folder(name) else name


def _nested(kind: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Configurations inside the configuration (a backbone's), which are made with it. `kind` still has its model_type.

    One that is only said in part is of the type that the outer one has by default, and gives the same features to it.
    """
    from transformers import AutoConfig

    inner = {key: value for key, value in options.items() if isinstance(value, dict)}
    default = AutoConfig.for_model(kind["model_type"]) if inner else None
    for key, value in inner.items():
        usual = getattr(default, key, None)
        usual = {k: getattr(usual, k) for k in ("model_type", "out_features") if getattr(usual, k, None)}
        inner[key] = usual | (kind.get(key) or {}) | value
    return kind | inner


def image_size(config: Any) -> int | None:
    """Pixels of a side that a vision model is built for; None where it takes any."""
    size = getattr(config, "image_size", None)
    return max(size) if isinstance(size, list | tuple) else size


def processor_values(name: str) -> dict[str, Any]:
    """Mean and deviation that a pretrained vision model was trained with, from its image processor; {} without one."""
    from transformers import AutoImageProcessor

    try:
        found = AutoImageProcessor.from_pretrained(place_of(name))
    except Exception:  # no file of it, or one for which a package is missing: the task's own values then hold
        return {}
    return {"mean": found.image_mean, "std": found.image_std} if getattr(found, "image_mean", None) else {}
