"""The shipped YAML files: tasks and search spaces, by name; a user's own file is taken by its path in the same way.

They lie beside the package in a checkout (`tasks/`, `search_spaces/`) and inside it once installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ..core.messages import did_you_mean

KINDS = {"tasks": "task", "search_spaces": "search space"}
_PACKAGE = Path(__file__).resolve().parents[1]
_SUFFIXES = (".yaml", ".yml")
DEFAULT_SPACE = "ldp"
_OWN_SPACES = {
    **{name: name for name in ("static", "ramp", "cyclic", "progressive", "random", "bit_gradient")},
    "ldp_sgd": "ldp_paper",
    "paper": "ldp_paper",
}
"""Policy -> the space in which it is what its authors published."""


def space_of_policy(space: str, policy: Any) -> str:
    """The shipped space that is meant: a rival's policy asked for over the default space means the rival's own.

    policy: a name, or a mapping with one; None: none was asked for.
    """
    name = policy.get("name") if isinstance(policy, dict) else policy
    return _OWN_SPACES.get(name, space) if space == DEFAULT_SPACE and isinstance(name, str) else space


def folder(kind: str) -> Path:
    """Where the shipped files of a kind lie.

    Raises:
        FileNotFoundError: neither in the package nor beside it.
    """
    places = [_PACKAGE / kind, _PACKAGE.parent / kind]  # an installed package first: beside it lie other people's files
    for place in places:
        if any(place.glob("*.yaml")):
            return place
    raise FileNotFoundError(
        f"The shipped {KINDS[kind]} files must lie in {places[0]} or {places[1]}; found none. Reinstall ldp_search."
    )


def names(kind: str) -> list[str]:
    """Names of the shipped files of a kind, `tasks` or `search_spaces`."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def is_path(name: str) -> bool:
    """Whether the word means a file rather than a shipped name."""
    return name.endswith(_SUFFIXES) or "/" in name or "\\" in name


def path(kind: str, name: str) -> Path:
    """The file behind a shipped name, or behind a path.

    Raises:
        ValueError: no such name, or no such file, with the nearest names.
    """
    if is_path(name):
        own = Path(name).expanduser()
        if own.is_file():
            return own
        here = ", ".join(sorted(p.name for s in _SUFFIXES for p in own.parent.glob(f"*{s}"))[:10]) or "none"
        raise ValueError(
            f"A {KINDS[kind]} given by its path must be a YAML file; there is no file {str(own)!r} "
            f"(YAML files in that folder: {here}). Shipped by name: {', '.join(names(kind))}."
        )
    if name not in names(kind):
        known = did_you_mean(name, names(kind))
        raise ValueError(f"Unknown {KINDS[kind]} {name!r}.{known} One's own: a path such as ./mine.yaml.")
    return folder(kind) / f"{name}.yaml"


def load(kind: str, name: str) -> dict[str, Any]:
    """The contents of a shipped file or of one's own.

    Raises:
        ValueError: unknown name, no such file, or a file that is not a YAML mapping.
    """
    return read_yaml(path(kind, name))


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping as plain data.

    Raises:
        ValueError: unreadable, not YAML, or not a mapping.
    """
    from omegaconf import OmegaConf  # here, so that `import ldp_search` needs torch alone

    try:
        content = OmegaConf.load(file)  # unlike PyYAML it reads 1e-3 as a number
    except Exception as error:  # YAML errors come in a dozen classes
        raise ValueError(f"{file} must be a readable YAML file: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(content):
        raise ValueError(f"{file} must hold a YAML mapping (key: value); it holds {type(content).__name__}.")
    return cast(dict[str, Any], OmegaConf.to_container(content))
