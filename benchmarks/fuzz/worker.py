"""The process that runs cases: a name KIND:SEED on a line of stdin, its outcome as JSON on a line of stdout."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

OURS = str(Path(__file__).resolve().parents[2] / "ldp_search")
SAYS = (ValueError, TypeError, LookupError, RuntimeError, NotImplementedError, OSError)
"""Classes of errors that messages of ours have."""


class Find(Exception):
    """Something is wrong that raised nothing by itself."""


class Invalid(Exception):
    """The case makes no sense: what it tries does not work without ldp_search either."""


def run(name: str) -> dict[str, Any]:
    """The outcome of a case; `what` says what was refused or found."""
    from . import data, models, words

    kind, _, seed = name.partition(":")
    warnings.simplefilter("ignore")
    try:
        what = {"models": models, "data": data, "words": words}[kind].case(int(seed))
        return {"case": name, "outcome": "passed", "what": what or ""}
    except Invalid as error:
        return {"case": name, "outcome": "invalid", "what": str(error)[:300]}
    except Find as error:
        return {"case": name, "outcome": "find", "what": str(error)[:1500]}
    except Exception as error:
        refused = _is_message(error)
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return {"case": name, "outcome": "refused" if refused else "find", "what": said + ("" if refused else _frames(error))}


def _is_message(error: Exception) -> bool:
    """Whether an error was raised on purpose: by a `raise` of ours, and of a class that says something."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    on_purpose = last.filename.startswith(OURS) and (last.line or "").lstrip().startswith(("raise", ")"))
    return on_purpose and isinstance(error, SAYS) and not isinstance(error, (KeyError, IndexError))


def _frames(error: Exception) -> str:
    found = traceback.extract_tb(error.__traceback__)[-4:]
    return " | " + " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {(frame.line or '')[:80]}" for frame in found)


def main() -> None:
    lines = os.fdopen(os.dup(1), "w")  # what a case prints must not be taken for its outcome
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for name in sys.stdin:
        lines.write(json.dumps(run(name.strip())) + "\n")
        lines.flush()


if __name__ == "__main__":
    main()
