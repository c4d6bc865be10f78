"""From the settings of a run to those of a search: which settings are searched, in what ranges, around what."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from ...config import presets
from ...config.overlay import ConfigError, as_component, overlay
from ...config.settings import COMPONENTS, NOT_A_RESULT, RUN_FIELDS, SPACE_FIELDS, Config, Settings
from ...config.task_file import display_name
from ...config.typed import check_components, typed
from ...core.bits.space import COMPONENT_KINDS, SearchSpace
from ...core.messages import did_you_mean
from ...core.registry import component_class
from ..models import display_name as model_name
from .outer_space import OuterSpace, Param, parse

_LABELLED = re.compile(r"(\w+)\[(.+)\]\.(\w+)")  # policy[cyclic].cycles: an option of a component that the search chose
NOT_SEARCHED = ("task", "config", "output", "resume", "data", "seed", "recipe", "space", "trackers", "checkpoint_every")


def outer_space(settings: Settings) -> OuterSpace:
    """The `outer:` section of the settings' space, less what the command line fixes, every range checked.

    Raises:
        ConfigError: no such section, a setting that there is none, or a value that a setting does not take.
    """
    where = f"in search space {settings.config.space!r}"
    space = parse(presets.load("search_spaces", settings.config.space).get("outer"), where)
    for param in space.params:
        _check(param, settings, where)
    space = space.without(_flat(settings.asked))
    if not space.params:
        raise ConfigError(f"Nothing is left to search: the command line fixes every setting of `outer.params` {where}.")
    return space


def _flat(asked: dict[str, Any]) -> set[str]:
    """The keys that were given, with the options of components."""
    keys = set(asked)
    for key, value in asked.items():
        if key in COMPONENTS and isinstance(value, dict):
            keys |= {f"{key}.{option}" for option in value if option != "name"}
            keys -= set() if "name" in value else {key}
    return keys


def _check(param: Param, settings: Settings, where: str) -> None:
    """The ends of a range, or every choice, as values of the setting, with the components that the condition asks for."""
    where = f"in `outer.params.{param.name}` {where}"
    head = param.key.partition(".")[0]
    known = [*RUN_FIELDS, *SPACE_FIELDS]
    if head not in known or head in NOT_SEARCHED:
        near = did_you_mean(head, known).partition(" Known:")[0]
        raise ConfigError(f"{head!r} is no setting that can be searched {where}.{near}")
    for value in param.ends():
        for names in param.condition.get(head, [None]):
            base = settings.values if names is None else overlay(settings.values, {head: names}, COMPONENTS)
            try:
                _check_value(param.key, value, base)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{error} (value {value!r} {where})") from error


def _check_value(key: str, value: Any, base: dict[str, Any]) -> None:
    head, dot, option = key.partition(".")
    if head in COMPONENTS:
        if head not in SPACE_FIELDS:
            return  # a model's or an optimizer's own options: who makes them knows
        values = overlay(base, {head: {option: value} if dot else value}, COMPONENTS)
        check_components(values, [head])
        SearchSpace(**{head: values[head]})
    elif head in SPACE_FIELDS:
        SearchSpace(**{head: typed(SearchSpace, head, value, "in a range")})
    else:
        length = {} if head in ("epochs", "steps") else {"epochs": 1}
        Config(**{head: typed(Config, head, value, "in a range")}, **length).check()


def setting_of(settings: Settings) -> Callable[[str], Any]:
    """From a key to the value that a setting has outside of the search."""
    return lambda key: option_of(key, settings.values)


def option_of(key: str, values: dict[str, Any]) -> Any:
    """A setting by its key: `lr`, `policy` (its name), `policy.lr`, `policy[cyclic].cycles` (if the policy were cyclic)."""
    labelled = _LABELLED.fullmatch(key)
    head, _, option = key.partition(".") if not labelled else (labelled[1], "", labelled[3])
    if head not in COMPONENTS:
        return values.get(head)
    spec = as_component(values.get(head))
    if labelled and labelled[2] != spec.get("name"):
        spec = {"name": labelled[2]}
    return _option(head, spec, option) if option else spec.get("name")


def _option(head: str, spec: dict[str, Any], option: str) -> Any:
    """An option of a component: as given, else its default."""
    if option in spec or head not in COMPONENT_KINDS:
        return spec.get(option)
    cls = component_class(COMPONENT_KINDS[head], str(spec["name"]))
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    value = defaults.get(option)
    return None if value is dataclasses.MISSING else value


def identity_of(settings: Settings, space: OuterSpace) -> dict[str, Any]:
    """The settings that all trials share: what they differ in is described by the space."""
    searched = {param.key.partition(".")[0] for param in space.params}
    whole = {key: value for key, value in settings.identity.items() if key not in NOT_A_RESULT}
    return {key: value for key, value in whole.items() if key not in searched or key in COMPONENTS}


def study_name(settings: Settings) -> str:
    parts = [display_name(settings.config.task), model_name(settings.config.model), display_name(settings.config.space)]
    return "-".join(parts)
