"""Words that error messages share."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable

_BETWEEN = (__name__.partition(".")[0], "torch", "contextlib")
"""Packages whose lines nobody can mend who is warned."""
MARGIN = 0.2  # by which a name may be less alike than the nearest one and still be named


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error message on an unknown name: the nearest known names, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    alike = [difflib.SequenceMatcher(None, str(word), name).ratio() for name in near]
    near = [name for name, ratio in zip(near, alike, strict=True) if ratio > alike[0] - MARGIN]
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


def check_choice(option: str, given: str, known: Iterable[str], of: str) -> None:
    """ValueError where an option has none of its known values. of: whose option it is, e.g. "the policy 'learned'"."""
    if given not in (known := [*known]):
        raise ValueError(f"Unknown {option} {given!r} of {of}.{did_you_mean(given, known)}")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning at the line that called the package, whatever decorators, hooks and calls of its own lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_renamed(old: str, new: str) -> None:
    """The one line on a word that is called otherwise now."""
    warn(f"{old} is called {new} now; the old word is still taken.", FutureWarning)
