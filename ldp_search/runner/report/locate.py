"""Where runs are: what to say about a folder that holds none, and which folder was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

FILES = {
    "config.yaml": "the configuration",
    "metrics.jsonl": "loss, metrics and cost over the training",
    "schedule.parquet": "the bits over the training",
    "allocation.json": "the final bits, MACs and coverage",
    "result.json": "the result, written at the end",
}


class ReportError(ValueError):
    """A folder cannot be reported on; the message says what was expected, what was found and what to do."""


def require_run(folder: Path) -> None:
    """Make sure that a folder holds a run, or at least the beginning of one.

    Raises:
        ReportError: not a folder, or none of a run's files is in it.
    """
    if not folder.is_dir():
        raise ReportError(f"No run folder {str(folder)!r}: {_what_it_is(folder)}{_similar(folder)}")
    if not _is_run(folder):
        raise ReportError(
            f"{str(folder)!r} holds no run: none of {', '.join(FILES)} is in it.{_runs_near(folder)} "
            "A run folder is what `python -m ldp_search.run output=FOLDER` writes."
        )


def _what_it_is(path: Path) -> str:
    return "it is a file; give the folder it lies in." if path.exists() else "there is no such folder."


def _similar(path: Path) -> str:
    """Existing neighbours with a similar name, or, for a file of a run, the folder it lies in."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    if not parent.is_dir():
        return ""
    if path.is_file():
        return f" Did you mean {str(parent)!r}?" if path.name in FILES else ""
    folders = [entry.name for entry in _entries(parent) if entry.is_dir()]
    near = difflib.get_close_matches(path.name, folders, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(str(parent / name)) for name in near)}?" if near else _runs_near(parent)


def _runs_near(folder: Path) -> str:
    """The runs below or around a folder that is none itself."""
    found = [entry for entry in _entries(folder) if entry.is_dir() and _is_run(entry)]
    if not found:
        return ""
    shown = ", ".join(repr(str(entry)) for entry in found[:5]) + (", ..." if len(found) > 5 else "")
    return f" Runs in {str(folder)!r}: {shown}."


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _entries(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
