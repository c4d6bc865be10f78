"""Components by name: a registered dataclass whose fields are its options.

A component (policy, quantizer, relaxation, backend) is asked for as ``"cyclic"``, as ``{"name": "cyclic", "cycles": 8}``, or,
for one's own, as ``"module:attribute"``. Unknown names and options are errors that give the nearest known ones, and so is a
component that lacks a method of its kind's base class.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from abc import ABC
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from .messages import did_you_mean, warn_renamed

C = TypeVar("C", bound="Component")


class Component(ABC):
    """Base of the kinds of components; ``class Policy(Component, kind="policy")`` makes one of them.

    name: what it is registered as; of one's own, which nothing registers, the name of its class.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = cls.__name__
        if kind is not None:
            _BASES[kind] = cls


_BASES: dict[str, type[Component]] = {}
_KINDS: dict[str, dict[str, type[Component]]] = {}
_RENAMED = {("policy", "paper"): "ldp_sgd"}
"""Names of earlier versions."""


def register(kind: str, name: str) -> Callable[[type[C]], type[C]]:
    """Class decorator: make a dataclass known as component `name` of `kind`."""

    def add(cls: type[C]) -> type[C]:
        cls.name = name
        _KINDS.setdefault(kind, {})[name] = cls
        return cls

    return add


def names(kind: str) -> list[str]:
    """The registered names of one kind of component."""
    return sorted(_KINDS.get(kind, {}))


def current_name(kind: str, name: str) -> str:
    """The name of a component that may be given by one of an earlier version, with a warning."""
    if (kind, name) not in _RENAMED:
        return name
    warn_renamed(f"{kind}={name}", f"{kind}={_RENAMED[kind, name]}")
    return _RENAMED[kind, name]


def component_class(kind: str, name: str) -> type[Any]:
    """The class behind a registered name or a ``module:attribute``.

    Raises:
        ValueError: unknown name, a ``module:attribute`` that cannot be imported, or a class that lacks a method.
    """
    name = current_name(kind, name)
    if name in _KINDS.get(kind, {}):
        return _KINDS[kind][name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"Unknown {kind} {name!r}.{did_you_mean(name, names(kind))} One's own: 'module:attribute'.")
    try:
        cls = getattr(importlib.import_module(module), attribute)
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise AttributeError(f"{attribute} of {module} is none")
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The {kind} {name!r} must name an importable dataclass as 'module:attribute', but: {error}."
        ) from error
    return check_complete(kind, name, cls)


def check_complete(kind: str, name: str, cls: type) -> type[Any]:
    """The class of a component; a ValueError where it is not derived from its kind's base, or lacks one of its methods."""
    base = _BASES[kind]
    if not issubclass(cls, base):
        raise ValueError(f"The {kind} {name!r} must be derived from {base.__module__}.{base.__name__}; it has {_bases(cls)}.")
    if missing := sorted(cls.__abstractmethods__):
        raise ValueError(f"The {kind} {name!r} must define {' and '.join(missing)}, as {base.__module__}.{base.__name__} says.")
    return cls


def _bases(cls: type) -> str:
    return ", ".join(base.__name__ for base in cls.__mro__[1:-1]) or "no base class"


def build(kind: str, spec: Any) -> Any:
    """Make the component that `spec` asks for: a name, a mapping with ``name`` and options, or an instance (copied).

    Raises:
        ValueError: unknown name, unknown option, a spec of another form, or a class that lacks a method.
    """
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        check_complete(kind, type(spec).__name__, type(spec))
        return copy.copy(spec)  # its memory belongs to one model
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(f"A {kind} is given by name, or as {{'name': ..., option: value}}; received {spec!r}.")
    options = {key: value for key, value in spec.items() if key != "name"}
    cls = component_class(kind, spec["name"])
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in options:
        if key not in fields:
            listed = did_you_mean(key, fields) if fields else " It has no options."
            raise ValueError(f"The {kind} {spec['name']!r} has no option {key!r}.{listed}")
    return cls(**options)


def describe(component: Any) -> dict[str, Any]:
    """The inverse of `build`: a plain mapping fit for YAML and JSON."""
    cls = type(component)
    known = any(classes.get(cls.name) is cls for classes in _KINDS.values())
    name = cls.name if known else f"{cls.__module__}:{cls.__qualname__}"
    fields = [f for f in dataclasses.fields(component) if f.init]
    return {"name": name} | {f.name: getattr(component, f.name) for f in fields}
