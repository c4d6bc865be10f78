"""Which code a trial ran."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path


@functools.cache
def git_commit() -> str:
    """The commit of this package's checkout, with + where files differ from it; empty where it is installed."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if not here.is_relative_to(git("rev-parse", "--show-toplevel")) or git("check-ignore", str(here)):
            return ""
    except (OSError, subprocess.SubprocessError):
        pass  # check-ignore fails where nothing is ignored, which is the rule
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parents[1]))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""
