"""KEY=VALUE words, and laying one set of settings over another.

Settings are plain nested mappings. Two things make this more than a merge of dictionaries: a component (`policy`, `model`,
...) is a name with options, and its options go when its name changes; and some settings exclude each other, so that giving
one takes the other away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, cast

EXCLUSIVE = (("epochs", "steps"), ("target_cost", "cost_weight"))


class ConfigError(ValueError):
    """A setting is wrong; the message names it, what was received, and what to do. No traceback is needed."""


def parse_words(words: Iterable[str], components: Collection[str], lists: Collection[str]) -> dict[str, Any]:
    """{"policy": {"name": "cyclic", "cycles": 8}, "lr": 0.1} from ["policy=cyclic", "policy.cycles=8", "lr=0.1"].

    Values are YAML; the last of several words on the same key counts. A key of `lists` may be given without brackets.

    Raises:
        ConfigError: a word without "=", without a key, or with a value that is not YAML.
    """
    out: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(
                f"Settings are words of the form key=value, such as seed=1 or policy.cycles=8; received {word!r}."
                + (" Options are --help, --list and --print-config." if word.startswith("-") else "")
            )
        value = _value(text, key in lists)
        head, *path = key.split(".")
        if not path:
            old = out.get(head)
            out[head] = _named(value, old) if head in components and isinstance(old, dict) else value
            continue
        inner = out.setdefault(head, {})
        if not isinstance(inner, dict):
            inner = out[head] = as_component(inner)
        _put(inner, path, value, word)
    return out


def _named(value: Any, options: dict) -> Any:
    """`policy=cyclic` after `policy.cycles=8`: the order of words does not matter."""
    return options | as_component(value)


def _put(inner: dict, path: list[str], value: Any, word: str) -> None:
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{word!r} goes below {part!r}, which an earlier word set to {inner!r}. Give one of the two.")
    inner[path[-1]] = value


def _value(text: str, is_list: bool) -> Any:
    """A word's value as YAML."""
    from omegaconf import OmegaConf

    if is_list and "," in text and not text.lstrip().startswith(("[", "{")):
        text = f"[{text.strip('() ')}]"  # brackets mean something to some shells, so they may be left out
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))["value"]
    except Exception as error:  # YAML and OmegaConf raise a dozen classes
        if text.startswith(("*", "?", "!", "@", "%", "`", "&")):
            return text  # a pattern such as *.fc, which YAML would take for an alias
        why = " ".join(str(error).split())
        raise ConfigError(f"The value {text!r} is not YAML: {why}. Quote it, or correct it.") from error


def as_component(value: Any) -> dict[str, Any]:
    """A component's setting, a name or a mapping, as a mapping."""
    if isinstance(value, dict):
        return dict(value)
    return {} if value is None else {"name": value}


def short_component(value: dict[str, Any]) -> Any:
    """The inverse: a mapping that holds a name alone is that name."""
    return value["name"] if set(value) == {"name"} else value


def overlay(base: dict[str, Any], top: dict[str, Any], components: Collection[str]) -> dict[str, Any]:
    """`base` with the settings of `top` over it."""
    out = dict(base)
    for pair in EXCLUSIVE:
        for one, other in (pair, pair[::-1]):
            if top.get(one) is not None and top.get(other) is None:
                out[other] = None
    for key, value in top.items():
        if key not in components:
            out[key] = value
            continue
        old, new = as_component(base.get(key)), as_component(value)
        renamed = "name" in new and new["name"] != old.get("name")
        out[key] = short_component(new if renamed else old | new)
    return out
