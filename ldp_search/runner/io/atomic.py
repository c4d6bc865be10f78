"""Files that are there as a whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, text: str) -> None:
    """A file that is there as a whole or not at all. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_made(folder: Path):
    """Make a folder, and those that it lies in; where the block raises, those that were made are gone again."""
    new = [path for path in [folder, *folder.parents] if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def replace_together(stage: Path, folder: Path, last: str) -> None:
    """Move all files of `stage`, which lies on the same disk, into `folder`: all of them, or where it raises none.

    last: the file that is moved last; after a kill in the middle the old one tells that the others are not its own.
    """
    names = sorted((path.name for path in stage.iterdir()), key=lambda name: name == last)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".replaced-") as aside:
        had = [name for name in names if (folder / name).exists()]
        for name in had:
            _keep(folder / name, Path(aside) / name)
        try:
            for name in names:
                os.replace(stage / name, folder / name)
        except BaseException:
            for name in names:
                if name in had:
                    os.replace(Path(aside) / name, folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            raise


def _keep(path: Path, aside: Path) -> None:
    """A second name for a file, which stays where it is; a copy on disks without such names."""
    try:
        os.link(path, aside)
    except OSError:
        shutil.copy2(path, aside)
