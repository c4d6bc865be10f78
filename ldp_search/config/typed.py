"""Values checked against dataclasses: OmegaConf does the typing, here are the messages."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import typing
from collections.abc import Collection
from typing import Any, cast

from ..core.bits.space import COMPONENT_KINDS
from ..core.messages import did_you_mean
from ..core.registry import component_class
from .overlay import ConfigError, as_component, short_component

_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list[float]": "a list of numbers, e.g. [0.5, 0.75]",
    "list[int]": "a list of whole numbers, e.g. [1, 32]",
    "list[str]": "a list of words, e.g. [a, b]",
    "dict[str, Any]": "a mapping, e.g. {a: 1}",
}


def typed(schema: type, key: str, value: Any, where: str, known: Collection[str] | None = None, name: str = "") -> Any:
    """`value` as the type of field `key` of a dataclass.

    Args:
        where: the value's origin, for the message. known: the keys to suggest from. name: what the message calls the key.

    Raises:
        ConfigError: no such field, or a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    fields = {f.name: f for f in dataclasses.fields(schema)}
    if key not in fields:
        hint, _, listed = did_you_mean(key, known or fields).partition(" Known:")
        raise ConfigError(f"Unknown key {str(key)!r} {where}.{hint or ' Known:' + listed}")
    declared = str(fields[key].type)
    if declared == "Any":
        return value
    if declared.startswith("list[") and isinstance(value, str | int | float):
        value = [value]
    if _as_declared(value, declared):
        return value
    try:
        merged = OmegaConf.merge(_one_field(schema, key), {key: value})
        return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))[key]
    except OmegaConfBaseException as error:
        kind = declared.removesuffix(" | None")
        rule = _TYPES.get(kind, kind) + (", or null" if declared != kind else "")
        raise ConfigError(f"{name or key} must be {rule}; received {value!r} ({where}).") from error


def _as_declared(value: Any, declared: str) -> bool:
    """Whether a plain value is of its type as it stands, as most are; OmegaConf takes a millisecond to say so of each."""
    if isinstance(value, str) and ("${" in value or value == "???"):  # which mean something to OmegaConf
        return False
    name = "None" if value is None else type(value).__name__
    return name in ("None", "bool", "int", "float", "str") and name in declared.split(" | ")


@functools.cache
def _one_field(schema: type, key: str) -> Any:
    """The field alone as a schema: OmegaConf takes 10 ms to copy one of fifty fields, and a run has a hundred values."""
    from omegaconf import MISSING, OmegaConf

    hint = typing.get_type_hints(schema)[key]
    return OmegaConf.structured(dataclasses.make_dataclass("Field", [(key, hint, dataclasses.field(default=MISSING))]))


def imported(name: str, what: str) -> Any:
    """What "module:attribute" names. Raises ConfigError when there is no such module or attribute."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"A {what} of one's own is an importable 'module:attribute'; received {name!r}: {error}.") from error


def check_components(values: dict[str, Any], names: Collection[str]) -> None:
    """Types the options of the components in `values`, in place. Raises ValueError: unknown name or option, wrong type."""
    for field in names:
        spec = as_component(values[field])
        if "name" not in spec:
            raise ConfigError(f"{field} is given by name: {field}=NAME {field}.OPTION=VALUE; received {values[field]!r}.")
        cls = component_class(COMPONENT_KINDS[field], str(spec["name"]))
        for option, value in spec.items():
            if option == "name":
                continue
            if option not in (options := [f.name for f in dataclasses.fields(cls) if f.init]):
                listed = did_you_mean(option, options) if options else " It has no options."
                raise ConfigError(f"The {field} {spec['name']!r} has no option {option!r}.{listed}")
            spec[option] = typed(cls, option, value, f"in the options of {spec['name']!r}", name=f"{field}.{option}")
        values[field] = short_component(spec)
