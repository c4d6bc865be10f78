"""Models by name: `timm:NAME`, `hf:ID`, an alias of these, or one's own `module:function`."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

from torch import nn

from .hub import settle_hub
from .overlay import ConfigError, as_component
from .typed import imported

ALIASES = {
    **{f"resnet{depth}": f"timm:cifar_resnet{depth}" for depth in (20, 32, 38, 44, 56, 74, 110)},
    "mobilenetv2": "timm:cifar_mobilenetv2",
    "resnet18": "timm:resnet18",
    "resnet34": "timm:resnet34",
    "resnet50": "timm:resnet50",
    "vit_tiny": "timm:vit_tiny_patch16_224",
}


def create_model(spec: Any, num_classes: int, in_chans: int, pretrained: bool) -> nn.Module:
    """The model of a setting `model`: a name, or a mapping of `name` and options.

    Raises:
        ConfigError: unknown name with the nearest ones, an option that the model does not take, or weights out of reach.
    """
    options = as_component(spec)
    name = str(options.pop("name", ""))
    source, colon, rest = ALIASES.get(name, name).partition(":")
    if not colon:
        raise ConfigError(f"A model is timm:NAME, hf:ID, module:function or an alias; received {name!r}.{_near(name)}")
    builders = {"timm": _timm, "hf": _hugging_face}
    build = builders.get(source) or (lambda rest, **kwargs: _own(source, rest, **kwargs))
    asked = {"num_classes": num_classes, "in_chans": in_chans, "pretrained": pretrained} | options
    remote = (source == "hf" and not Path(rest).is_dir()) or (source == "timm" and (pretrained or rest.startswith("hf-hub")))
    lacks_hub = remote and not settle_hub()
    try:
        return build(rest, **asked)
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        if lacks_hub:
            raise ConfigError(
                f"The model {name!r} cannot be had: the hub cannot be reached, and it is not in the cache. Ways out: a copied "
                "cache (~/.cache/huggingface), hf:FOLDER, or timm:NAME with pretrained=false."
            ) from error
        raise ConfigError(f"The model {name!r} with {options or 'no options'} cannot be made: {error}") from error


def timm_options(spec: Any) -> dict[str, Any] | None:
    """The options of a timm model, None for another one."""
    options = as_component(spec)
    name = str(options.pop("name", ""))
    return options if ALIASES.get(name, name).startswith("timm:") else None


def display_name(spec: Any) -> str:
    """A model's name, short enough for a folder's name."""
    return str(as_component(spec).get("name", "")).rpartition(":")[2].rpartition("/")[2]


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    from . import cifar_models  # noqa: F401 (the import registers our names)

    if not (timm.is_model(name.partition(".")[0]) or name.startswith("hf-hub")):
        raise ConfigError(f"timm knows no model {name!r}.{_near(name)}")
    return timm.create_model(name, **options)


def _hugging_face(name: str, num_classes: int, in_chans: int, pretrained: bool, **options: Any) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.from_pretrained(name, num_labels=num_classes, num_channels=in_chans, **options)
    if pretrained:
        return AutoModelForImageClassification.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
    return AutoModelForImageClassification.from_config(config)


def _own(module: str, attribute: str, **options: Any) -> nn.Module:
    """Calls `module:function` with the options, and with num_classes, in_chans and pretrained where it takes them."""
    function = imported(f"{module}:{attribute}", "model")
    takes = inspect.signature(function).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    given = {k: v for k, v in options.items() if anything or k in takes or k not in ("num_classes", "in_chans", "pretrained")}
    return function(**given)


def _near(name: str) -> str:
    import timm

    from . import cifar_models  # noqa: F401

    known = [*ALIASES, *(f"timm:{found}" for found in timm.list_models())]
    near = [f"timm:{name}"] if f"timm:{name}" in known else difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or difflib.get_close_matches(f"timm:{name}", known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else f" Aliases: {', '.join(ALIASES)}."
    return f"{hint} All names: python -m ldp_search.run --list models"
