"""Who works on a cell, where several processes and machines share one folder.

On one machine the kernel tells: the holder keeps a lock on the cell's lease file, which ends with its process, whatever ended
that. Across machines (where a file system does not hand locks on) the holder's beat tells: it renews the file's time, and a
lease is free once its time stands still for `GRACE` by the clock of the file system. A holder that finds another one's name
has lost the cell.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from pathlib import Path

BEAT, GRACE, SETTLE = 20.0, 180.0, 0.2  # seconds


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else f"{uuid.getnode():x}"


class Lease:
    """Ownership of a cell; `take` it, then `release` it. lost: another holder has it."""

    def __init__(self, path: Path, file):
        self.path, self.file, self.lost = path, file, False
        self.name = f"{_machine()} {os.getpid()} {uuid.uuid4().hex}"
        self.over = threading.Event()
        self.beats = threading.Thread(target=self._beat, daemon=True)

    @classmethod
    def take(cls, path: Path) -> Lease | None:
        """The lease, or None where somebody has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (open as long as the lease lasts)
        if not _locked(file) or _held_elsewhere(path):
            file.close()
            return None
        lease = cls(path, file)
        path.write_text(lease.name)
        time.sleep(SETTLE)  # two machines may have written: the last one has it
        if path.read_text() != lease.name:
            file.close()
            return None
        lease.beats.start()
        return lease

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            try:
                if self.path.read_text() != self.name:
                    self.lost = True
                    return
                os.utime(self.path)
            except OSError:  # a file system that is away for a moment
                continue

    def release(self) -> None:
        """Let others have it, at once."""
        self.over.set()
        self.beats.join(timeout=BEAT)
        if not self.lost:
            self.path.write_text("")
        self.file.close()


def _locked(file) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: the beats remain
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the beats remain
        return True


def _held_elsewhere(path: Path) -> bool:
    """Whether another machine's holder still beats. The lock has told about this one's."""
    holder = path.read_text().split()
    if not holder or holder[0] == _machine():
        return False
    probe = path.with_name(f".clock-{uuid.uuid4().hex}")
    probe.touch()
    age = probe.stat().st_mtime - path.stat().st_mtime
    probe.unlink()
    return age < GRACE
