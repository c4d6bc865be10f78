"""The output folder of a run: where it is, whether it can be written, and what of an earlier run lies in it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ...config.overlay import ConfigError, as_component
from ...config.settings import Settings
from ...config.task_file import display_name
from .. import models
from ..io import checkpoint_files
from .run_session import CHECKPOINTS


class Finished(Exception):
    """The output folder holds this very run, finished already. `folder`: where."""

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder


def output_folder(settings: Settings) -> Path:
    """The run's folder: as given, or a new one that no other run has."""
    if settings.config.output is not None:
        return Path(settings.config.output).expanduser()
    config, policy = settings.config, as_component(settings.values["policy"])["name"]
    parts = [display_name(config.task), models.display_name(config.model), policy]
    name = "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts)
    stem = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return next(p for n in range(1000) if not (p := stem.with_name(stem.name + (f"-{n}" if n else ""))).exists())


def checkpoint_of(settings: Settings, output: Path) -> str | None:
    """The checkpoint to go on from, None for a fresh start. Raises ConfigError, Finished."""
    resume = settings.config.resume
    _check_writable(output)
    if resume == "never":
        if (output / "config.yaml").exists() or (output / CHECKPOINTS).exists():
            raise ConfigError(f"{output} holds a run already. resume=auto goes on with it; output=FOLDER takes another folder.")
        return None
    if (output / "result.json").is_file():
        saved = OmegaConf.to_container(OmegaConf.load(output / "config.yaml"))
        now = {key: value for key, value in settings.identity.items() if key in settings.values}
        refuse_other({key: saved.get(key) for key in now}, now, str(output))
        raise Finished(output)
    place = output / CHECKPOINTS
    if resume != "auto":
        given = Path(resume).expanduser()
        place = given if (given / checkpoint_files.STATE).is_file() else given / CHECKPOINTS
    path = checkpoint_files.newest_intact(place, lambda text: print(f"ldp_search: {text}"))
    if path is None and resume != "auto":
        raise ConfigError(f"resume={resume} must hold an intact checkpoint; none is in {place}. Start anew: output=FOLDER.")
    return None if path is None else str(path)


def refuse_other(before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Raises ConfigError with the settings that differ."""
    changed = checkpoint_files.differences(before, now)
    if changed:
        raise ConfigError(
            f"{what} belongs to a run with other settings (there -> here):\n  " + "\n  ".join(changed)
            + "\nGo on with the same settings (resume=FOLDER alone takes them over), or start anew with another output=FOLDER."
        )  # fmt: skip


def _check_writable(output: Path) -> None:
    """Raises ConfigError when the folder cannot be made or written, before any work."""
    place = output.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"output must be a folder, but {place} is a file; received {str(output)!r}. Give another.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"output must be a folder that can be written, but {place} cannot. Give another output=FOLDER.")
