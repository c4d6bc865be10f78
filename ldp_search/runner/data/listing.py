"""What a folder holds: all its files, links followed, and the split that a name speaks of."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .errors import DataError

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in the names of folders and files, as `datasets` knows them, and the split that each stands for."""
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}(-\w+)?")
_WORD = {
    split: re.compile(rf"(?:^|[-._ ])(?:{'|'.join(words)})(?:$|[-._ 0-9])", re.IGNORECASE)
    for split, words in SPLIT_WORDS.items()
}
_PAPERS = ("readme", "license", "licence", "dataset_infos", "classes.txt", "thumbs.db", "desktop.ini", "checksum", "sha256")


def files_in(place: Path) -> list[Path]:
    """All files below a folder in a fixed order, through links; hidden ones (.name) and __MACOSX are passed over.

    Raises:
        DataError: a folder that may not be opened, a link that leads nowhere, or back to a folder above it.
    """
    found: list[Path] = []
    above = {place: (os.path.realpath(place),)}
    for folder, folders, files in os.walk(place, followlinks=True, onerror=_cannot_open):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in folders:
            real = os.path.realpath(here / name)
            if real in above[here]:
                raise DataError(f"The link {str(here / name)!r} leads back to {real!r}, which lies above it: remove the link.")
            above[here / name] = (*above[here], real)
        for name in sorted(files):
            if hidden(name):
                continue
            if os.path.islink(here / name) and not os.path.exists(here / name):
                raise DataError(f"The link {str(here / name)!r} leads nowhere: correct or remove it.")
            found.append(here / name)
    return found


def split_of(name: str, wanted: Sequence[str] = ()) -> str | None:
    """The split that the name of a folder, or of a file without its extension, speaks of; None for one that does not.

    wanted: names of splits that the task asks for, which go before the usual words.
    """
    if name in wanted:
        return name
    if (shard := _SHARD.fullmatch(name)) is not None:
        return shard[1]
    return next((split for split, pattern in _WORD.items() if pattern.search(name)), None)


def not_read(place: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """A note on files that the folder holds and nothing reads, other than papers that accompany data; () without any."""
    files = [file for file in files if not file.name.lower().startswith(_PAPERS)]
    if not files:
        return ()
    kinds = Counter(file.suffix.lower() or "no extension" for file in files)
    listed = ", ".join(f"{n:,} x {kind}" for kind, n in kinds.most_common(4))
    return (f"NOT READ: {len(files):,} files in {str(place)!r} ({listed}), such as {_relative(files[0], place)}",)


def _relative(file: Path, place: Path) -> str:
    return file.relative_to(place).as_posix() if file.is_relative_to(place) else str(file)


def hidden(name: str) -> bool:
    """Whether a name is passed over everywhere: those of systems and editors."""
    return name.startswith(".") or name == "__MACOSX"


def _cannot_open(error: OSError) -> None:
    raise DataError(f"The folder {error.filename!r} cannot be opened: {error.strerror}. Its files would be missing.") from error
