"""Real text that needs no network: the source of the Python standard library that runs this program.

It differs from one version of Python to the next, so numbers are comparable within a version; the data's fingerprint tells.
"""

from __future__ import annotations

import sys
import sysconfig
import tokenize
from pathlib import Path
from typing import Any

from .errors import DataError

PACKAGES = ("asyncio", "ctypes", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "urllib", "xml")
"""Packages that every version from 3.10 on has, each with files enough."""
SNIPPET_LINES = 8
HELD_OUT = 5
"""Every fifth snippet of a file, or every fifth file of the corpus, is for evaluation."""
NOTE = f"the text is the source of Python {sys.version.split()[0]}'s standard library; another version has another text"


def packages() -> dict[str, Any]:
    """Snippets of eight lines and the package that each comes from: {"train", "validation"} of (text, label)."""
    import datasets

    rows: dict[str, list[tuple[str, int]]] = {"train": [], "validation": []}
    for label, package in enumerate(PACKAGES):
        for file in _sources(_library() / package, "**/*.py"):
            lines = [line for line in _read(file).splitlines() if line.strip()]
            whole = range(0, len(lines) - SNIPPET_LINES + 1, SNIPPET_LINES)
            for number, first in enumerate(whole):
                use = "validation" if number % HELD_OUT == HELD_OUT - 1 else "train"
                rows[use].append(("\n".join(lines[first : first + SNIPPET_LINES]), label))
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(PACKAGES))})
    return {
        use: datasets.Dataset.from_dict({"text": [t for t, _ in found], "label": [n for _, n in found]}, features=features)
        for use, found in rows.items()
    }


def corpus() -> dict[str, Any]:
    """The modules at the top of the library, a row each: {"train", "validation"} of (text)."""
    import datasets

    texts = [_read(file) for file in _sources(_library(), "*.py")]
    held = [i % HELD_OUT == HELD_OUT - 1 for i in range(len(texts))]
    chosen = {
        use: [t for t, h in zip(texts, held, strict=True) if h is out] for use, out in (("train", False), ("validation", True))
    }
    return {use: datasets.Dataset.from_dict({"text": found}) for use, found in chosen.items()}


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _sources(folder: Path, pattern: str) -> list[Path]:
    """Files in a fixed order, without tests and what an installation generates. Raises DataError where there are none."""
    found = sorted(folder.glob(pattern), key=lambda file: file.relative_to(folder).as_posix())
    kept = [
        f for f in found if not {"test", "tests"} & set(f.parts[len(folder.parts) :]) and not f.name.startswith("_sysconfig")
    ]
    if not kept:
        raise DataError(
            f"The source of the standard library must lie in {folder}; this Python has none there. Give data=FOLDER."
        )
    return kept


def _read(file: Path) -> str:
    with tokenize.open(file) as opened:  # in the encoding that the file declares
        return opened.read()
