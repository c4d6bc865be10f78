"""Components by name: a registered dataclass whose fields are its options.

A component (policy, quantizer, relaxation, backend) is asked for as ``"cyclic"``, as ``{"name": "cyclic", "cycles": 8}``, or,
for one's own, as ``"module:attribute"``. Unknown names and options are errors that give the nearest known ones.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib

from .messages import did_you_mean, warn_renamed

_KINDS: dict[str, dict[str, type]] = {}
_RENAMED = {("policy", "paper"): "ldp_sgd"}
"""Names of earlier versions."""


def register(kind: str, name: str):
    """Class decorator: make a dataclass known as component `name` of `kind`."""

    def add(cls: type) -> type:
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


def component_class(kind: str, name: str) -> type:
    """The class behind a registered name or a ``module:attribute``.

    Raises:
        ValueError: unknown name, or a ``module:attribute`` that cannot be imported.
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
        return cls
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The {kind} {name!r} must name an importable dataclass as 'module:attribute', but: {error}."
        ) from error


def build(kind: str, spec):
    """Make the component that `spec` asks for: a name, a mapping with ``name`` and options, or an instance (copied).

    Raises:
        ValueError: unknown name, unknown option, or a spec of another form.
    """
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
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


def describe(component) -> dict:
    """The inverse of `build`: a plain mapping fit for YAML and JSON."""
    cls = type(component)
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or name not in {n for kind in _KINDS.values() for n in kind}:
        name = f"{cls.__module__}:{cls.__qualname__}"
    fields = [f for f in dataclasses.fields(component) if f.init]
    return {"name": name} | {f.name: getattr(component, f.name) for f in fields}
