"""Checkpoints that survive a kill at any moment: written aside, forced to the disk, then renamed into place.

    checkpoints/step_00000440/state.pt         everything, as torch.save writes it
    checkpoints/step_00000440/manifest.json    its size and SHA-256, written after it

A folder called step_N is complete by construction; the hash tells of what happened to it afterwards. The newest two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

KEEP = 2
STATE, MANIFEST = "state.pt", "manifest.json"


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint of a step; older ones than the newest KEEP are removed afterwards.

    Raises:
        OSError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, partial = folder / f"step_{step:08d}", folder / f".partial_{step:08d}"
    for left_by_a_kill in folder.glob(".partial_*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    partial.mkdir()
    try:
        with open(partial / STATE, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's ZIP writer says "unexpected pos" where the disk is full
                raise OSError(f"writing {partial / STATE} failed; the disk may be full: {error}") from error
            _to_disk(file)
        manifest = {"step": step, "bytes": (partial / STATE).stat().st_size, "sha256": _sha256(partial / STATE)}
        with open(partial / MANIFEST, "w") as file:
            file.write(json.dumps(manifest))
            _to_disk(file)
        _folder_to_disk(partial)
        if final.exists():  # a damaged one of the same step, which the resume stepped over
            shutil.rmtree(final)
        os.replace(partial, final)
        _folder_to_disk(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in candidates(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def candidates(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first, intact or not."""
    found = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")), reverse=True)


def newest_intact(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose hash is right; `warn` hears of those passed over. `folder` may be a checkpoint itself."""
    for path in [folder] if (folder / STATE).is_file() else candidates(folder):
        if (reason := damage(path)) is None:
            return path
        warn(f"The checkpoint {path} is damaged ({reason}) and is passed over.")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        size = (path / STATE).stat().st_size
        if size != manifest["bytes"]:
            return f"{size} bytes of {manifest['bytes']}"
        return None if _sha256(path / STATE) == manifest["sha256"] else "its contents do not fit its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return " ".join(str(error).split()) or type(error).__name__


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint folder, on the CPU; plain data and tensors only, so that no file can run code."""
    return torch.load(path / STATE, map_location="cpu", weights_only=True)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines "key: before -> now", one for each setting that differs."""
    plain_before, plain_now = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    missing = "(not set)"
    pairs = {key: (plain_before.get(key, missing), plain_now.get(key, missing)) for key in {**plain_before, **plain_now}}
    return [f"{key}: {old!r} -> {new!r}" for key, (old, new) in pairs.items() if old != new]


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    """Make names in a folder permanent; where the system cannot open folders (Windows) there is nothing to do."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow_sha256(file)


def _slow_sha256(file: Any) -> str:
    """Python 3.10 has no hashlib.file_digest."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
