"""Models by name: `timm:NAME`, `hf:ID`, `hf:FOLDER`, an alias of these, or one's own `module:function`.

A task says what it needs of each library (how many classes, how many channels); the words of the command line
(`model.OPTION=VALUE`) lie over that.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ...config.overlay import ConfigError, as_component
from ...config.typed import imported
from ..io.hub_access import settle_hub
from .aliases import ALIASES, Alias

OFFLINE = (
    "Three ways out:\n"
    "  {copy}\n"
    "  the cache           with a network: python -c \"import huggingface_hub as h; h.snapshot_download('{repo}')\";\n"
    "                      then copy that machine's ~/.cache/huggingface here\n"
    "  pretrained=false    the same network from scratch, which needs no download{scratch}"
)


COPIES = {
    "hf": "hf:FOLDER           a local copy of the model's files: model=hf:/path/to/folder",
    "timm": "a file              its weights: pretrained=false model.checkpoint_path=/path/to/model.safetensors",
}


def create_model(
    spec: Any, pretrained: bool, timm: dict[str, Any] | None = None, hf: tuple[Any, dict[str, Any]] | None = None,
    own: dict[str, Any] | None = None, wrap_timm: Any = None,
) -> nn.Module:  # fmt: skip
    """The model of a setting `model`: a name, or a mapping of `name` and options.

    Args:
        timm: arguments of timm.create_model. hf: name of the Auto class (or what tells it from a configuration), and
            fields of the configuration. own: arguments that
            a function of one's own may take. A library that is None has no models for the task.
        wrap_timm: called with (name, pretrained, **arguments) instead of timm.create_model.

    Raises:
        ConfigError: unknown name with the nearest ones, an option that the model does not take, or weights out of reach.
    """
    options = as_component(spec)
    name = str(options.pop("name", ""))
    alias = ALIASES.get(name, Alias(name))
    source, _, rest = known_source(spec)
    if (source == "timm" and timm is None) or (source == "hf" and hf is None):
        raise ConfigError(
            f"This kind of task takes no models of {source}; received {name!r}. {'hf:ID' if hf else 'timm:NAME'}."
        )
    with _reaching(name, pretrained, options):
        if source == "timm":
            return _timm(rest, pretrained, timm | options, wrap_timm)
        if source == "hf":
            from .hugging_face import create

            return create(rest, alias.config, hf[0], pretrained, hf[1], options)
        return _own(source, rest, (own or {}) | {"pretrained": pretrained}, options)


def configuration_of(spec: Any, pretrained: bool) -> Any | None:
    """The configuration of a model of transformers before it is made, without the options; None for one of one's own.

    Raises:
        ConfigError: as `create_model`; models of timm have none.
    """
    name, (source, _, rest) = str(as_component(spec).get("name", "")), known_source(spec)
    if source == "timm":
        raise ConfigError(f"This kind of task takes no models of timm; received {name!r}. hf:ID.")
    if source != "hf":
        return None
    from .hugging_face import configuration

    with _reaching(name, pretrained, {}):
        return configuration(rest, ALIASES.get(name, Alias(name)).config, pretrained, {}, {})


@contextmanager
def _reaching(name: str, pretrained: bool, options: dict[str, Any]) -> Iterator[None]:
    """Says in one message what is wrong when a model cannot be had or made."""
    alias, (source, _, rest) = ALIASES.get(name, Alias(name)), source_of(name)
    trouble = _trouble(source, rest, alias, pretrained)
    try:
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError, OSError, KeyError) as error:
        if trouble is not None:
            scratch = "" if source == "timm" or _known(rest, alias) else ", where the configuration is at hand"
            repo = rest if source == "hf" else _timm_repository(rest)
            way_out = OFFLINE.format(repo=repo, scratch=scratch, copy=COPIES[source])
            raise ConfigError(f"The model {name!r} cannot be had: {trouble}, and it is not in the cache.\n{way_out}") from error
        raise ConfigError(
            f"The model {name!r} with {options or 'no options'} cannot be made: {type(error).__name__}: {error}"
        ) from error


def source_of(spec: Any) -> tuple[str, str, str]:
    """(timm | hf | a module, ":", the rest) of a setting `model`; an alias without a pretrained model counts as hf."""
    name = str(as_component(spec).get("name", ""))
    alias = ALIASES.get(name)
    if alias is not None and not alias.stands_for:
        return "hf", ":", ""
    return (alias.stands_for if alias else name).partition(":")


def known_source(spec: Any) -> tuple[str, str, str]:
    """As `source_of`. Raises ConfigError for a name that stands for nothing."""
    source, colon, rest = source_of(spec)
    if not colon:
        name = str(as_component(spec).get("name", ""))
        raise ConfigError(f"A model is timm:NAME, hf:ID, module:function or an alias; received {name!r}.{_near(name)}")
    return source, colon, rest


def _trouble(source: str, rest: str, alias: Alias, pretrained: bool) -> str | None:
    """What the hub says, where it is needed; None where it is not, or all is well."""
    if source == "hf" and rest and not Path(rest).expanduser().is_dir() and (pretrained or not _known(rest, alias)):
        return settle_hub("models", rest)
    if source == "timm" and (pretrained or rest.startswith("hf-hub:")):
        repository = _timm_repository(rest)
        return settle_hub("models", repository) if repository else None
    return None


def _timm_repository(name: str) -> str:
    """Where timm finds the weights of a model on the hub; empty where it has none there."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    import timm

    from . import cifar  # noqa: F401

    found = timm.models.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    return getattr(found, "hf_hub_id", None) or ""


def _known(rest: str, alias: Alias) -> bool:
    """Whether the configuration is at hand: an alias's, or a model type's own."""
    if alias.config:
        return True
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return rest in CONFIG_MAPPING_NAMES


def timm_options(spec: Any) -> dict[str, Any] | None:
    """The options of a timm model, None for another one."""
    options = as_component(spec)
    options.pop("name", None)
    return options if source_of(spec)[0] == "timm" else None


def display_name(spec: Any) -> str:
    """A model's name, short enough for a folder's name."""
    return str(as_component(spec).get("name", "")).rpartition(":")[2].rstrip("/").rpartition("/")[2]


def _timm(name: str, pretrained: bool, options: dict[str, Any], wrap: Any) -> nn.Module:
    import timm

    from . import cifar  # noqa: F401 (the import registers our names)

    if not (timm.is_model(name.partition(".")[0]) or name.startswith("hf-hub")):
        raise ConfigError(f"timm knows no model {name!r}.{_near(name)}")
    return (wrap or timm.create_model)(name, pretrained=pretrained, **options)


def _own(module: str, attribute: str, offered: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Calls `module:function` with the options, and with what the task offers where it takes that."""
    function = imported(f"{module}:{attribute}", "model")
    takes = inspect.signature(function).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    return function(**{k: v for k, v in offered.items() if anything or k in takes}, **options)


def _near(name: str) -> str:
    import timm

    from . import cifar  # noqa: F401

    known = [*ALIASES, *(f"timm:{found}" for found in timm.list_models())]
    near = [f"timm:{name}"] if f"timm:{name}" in known else difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or difflib.get_close_matches(f"timm:{name}", known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else f" Aliases: {', '.join(ALIASES)}."
    return f"{hint} All names: python -m ldp_search.run --list models"
