"""The folder of results.

results.jsonl            one line a cell that is done or has failed; a later line of a cell replaces an earlier one
cells/NAME/lease         who is at it
cells/NAME/checkpoint.pt while it is not done
cells/NAME/schedule.parquet, allocation.json      bits of every layer over the training, and at its end
cells/NAME/trained.pt    the network at its end
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import ldp_search

from .cells import Cell

TRAINED = "trained.pt"
ATTEMPTS = 3
"""Deaths without a word (killed, out of memory) at the same step, after which a cell counts as failed."""


class Store:
    """Results under `folder`."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.results = self.folder / "results.jsonl"

    def cell_folder(self, cell: Cell) -> Path:
        path = self.folder / "cells" / cell.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def lines(self) -> list[dict[str, Any]]:
        """All lines, in the order in which they were written. A line cut short by a full disk is passed over."""
        if not self.results.is_file():
            return []
        out = []
        for text in self.results.read_text().splitlines():
            try:
                out.append(json.loads(text))
            except ValueError:
                continue
        return out

    def found(self) -> dict[str, dict[str, Any]]:
        """{fingerprint: the last line of that cell}."""
        return {line["fingerprint"]: line for line in self.lines()}

    def record(self, cell: Cell, status: str, values: dict[str, Any], commit: str | None = None) -> dict[str, Any]:
        """Append the line of a cell; on the disk when this returns. status: done or failed."""
        line = {"cell": cell.name, "status": status, "network": cell.network, "row": cell.row, "size": cell.size}
        line |= {"seed": cell.seed} | values | {"settings": cell.settings, "fingerprint": cell.fingerprint}
        line |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")} | origin(commit)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.results, "a") as file:  # one write of a file opened for appending stays in one piece
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return line

    def count_attempt(self, cell: Cell, step: int) -> int:
        """How many times the cell was begun at this very step, with this one."""
        path = self.cell_folder(cell) / "attempts.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        count = known.get("count", 0) + 1 if known.get("at") == [cell.fingerprint, step] else 1
        path.write_text(json.dumps({"at": [cell.fingerprint, step], "count": count}))
        return count


@functools.cache
def origin(commit: str | None = None) -> dict[str, Any]:
    """Where and with what a line was made. commit: of the code, where there is no repository to ask."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.system()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "ldp_search": ldp_search.__version__},
        "commit": commit or _commit(),
    }


def _commit() -> str:
    """Of the checkout that this file lies in, with + where files that git knows have changed since."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=30)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "") or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
