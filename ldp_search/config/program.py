"""What the programs beside `run` share: options of their own among a run's settings, and how they end."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import field
from typing import Any

from ..core.messages import did_you_mean
from .overlay import ConfigError, parse_words
from .typed import typed

HELP = ("-h", "--help", "help")


def option(default: Any, about: str) -> Any:
    """A field of a program's options that is given as KEY=VALUE; other fields of the dataclass are not."""
    factory = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(metadata={"help": about}, **factory)


def own_keys(options: type) -> dict[str, dataclasses.Field]:
    """{key: field} of what a word may set."""
    return {f.name: f for f in dataclasses.fields(options) if f.metadata}


def divided(options: type, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """({key: typed value} of a program's own words, the words that are left).

    Raises:
        ConfigError: an option with a dash, or a value of another type.
    """
    known = own_keys(options)
    own: list[str] = []
    rest: list[str] = []
    for word in words:
        key, equals, _ = word.partition("=")
        if word.startswith("-"):
            example = f"{next(iter(known))}={_shown(next(iter(known.values())))}"
            raise ConfigError(f"Unknown option {word!r}.{did_you_mean(word, ['--help'])} Settings are words such as {example}.")
        (own if key in known and equals else rest).append(word)
    values = parse_words(own, (), [name for name, f in known.items() if str(f.type).startswith("list")])
    return {key: typed(options, key, value, "on the command line") for key, value in values.items()}, rest


def key_lines(options: type, then: str) -> str:
    """The keys with their defaults and what they are, a line each. then: of whose keys are taken besides."""
    known = own_keys(options)
    shown = [f"{name}={_shown(f)}" for name, f in known.items()]
    width = max(map(len, shown)) + 2
    lines = [f"  {key:<{width}}{f.metadata['help']}" for key, f in zip(shown, known.values(), strict=True)]
    return "\n".join(["Keys and their defaults:", *lines, f"  and {then}"])


def _shown(f: dataclasses.Field) -> str:
    """A default as a word has it."""
    default = f.default_factory() if callable(f.default_factory) else f.default
    return "" if default in (None, []) else str(default).lower().replace("'", "").replace(" ", "")


def exit_status(program: str, stopped: str, do: Callable[[], int], writes: bool = True) -> int:
    """What `do` returns. What a user can mend comes as one message without a traceback: 2; a failed write: 1; Ctrl-C: 130.

    stopped: what is said at Ctrl-C. writes: the program writes files; what else an OSError says is no business of the user's.
    """
    try:
        return do()
    except ConfigError as error:
        return _tell(program, str(error), 2)
    except (FileNotFoundError, ImportError, LookupError) as error:
        if not writes or isinstance(error, KeyError | IndexError):  # mistakes of a program, which want their traceback
            raise
        return _tell(program, str(error), 2)
    except OSError as error:
        if not writes:
            raise
        return _tell(program, f"writing failed: {error}", 1)
    except KeyboardInterrupt:
        return _tell(program, stopped, 130)


def _tell(program: str, message: str, status: int) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return status
