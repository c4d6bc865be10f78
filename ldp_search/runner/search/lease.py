"""Who works on a trial, and how others see that nobody does any more.

On one machine the kernel tells: a worker holds a lock on a file of the trial, which ends with its process, whatever ended
that. Across machines a worker counts beats in the storage; an owner whose count stands still while somebody watches for the
time of grace is dead. Clocks are never compared, and time in which the storage could not be read does not count.

Taking over writes a new owner's token. Every beat reads it back: who finds another one has lost the trial (it was suspended,
or cut off from the storage) and leaves it, so that in the end one owner remains. A trial is finished by Optuna only once.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .storage import lock_file

OWNER = "ldp_search:owner"


@dataclass(frozen=True)
class Timing:
    """Seconds. unowned: for trials whose worker died before it wrote its name. settle: for two to see who took over last."""

    beat: float = 15.0
    grace: float = 90.0
    unowned: float = 10.0
    settle: float = 1.0


class LeaseLost(Exception):
    """Another worker has taken the trial over."""


def this_machine() -> str:
    """A name that two running machines do not share."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{socket.gethostname()}/{boot.read_text().strip()}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


class Lease:
    """Ownership of a trial while a worker is at it. Use `take`, then as a context."""

    def __init__(self, storage: Any, trial_id: int, lock: Any, timing: Timing, owner: dict[str, Any]):
        self.storage, self.trial_id, self.lock, self.timing, self.owner = storage, trial_id, lock, timing, owner
        self.lost = False
        self.over = threading.Event()
        self.beats = threading.Thread(target=self._beat, name=f"lease of trial {trial_id}", daemon=True)

    @classmethod
    def take(cls, storage: Any, trial_id: int, path: Path, timing: Timing, before: dict[str, Any] | None, shared: bool) -> Any:
        """The lease, or None where another worker has it. before: the owner that is dead. shared: others may be elsewhere."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a")  # noqa: SIM115 (open as long as the lease lasts)
        if not lock_file(lock, wait=False):
            lock.close()
            return None
        taken_over = {} if before is None else {"from": before.get("token")}
        owner = {"token": uuid.uuid4().hex, "machine": this_machine(), "lock": str(path.absolute()), "beat": 0} | taken_over
        now = read_owner(storage, trial_id)
        if (now or {}).get("token") != (before or {}).get("token") or storage.get_trial(trial_id).state.is_finished():
            lock.close()
            return None
        storage.set_trial_system_attr(trial_id, OWNER, owner)
        if before is not None and shared:
            time.sleep(timing.settle)
        if (read_owner(storage, trial_id) or {}).get("token") != owner["token"]:
            lock.close()
            return None
        return cls(storage, trial_id, lock, timing, owner)

    def __enter__(self) -> Lease:
        self.beats.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.over.set()
        self.beats.join(timeout=self.timing.beat)
        self.lock.close()

    def _beat(self) -> None:
        while not self.over.wait(self.timing.beat):
            if not self._still_mine():
                return
            self.owner = self.owner | {"beat": self.owner["beat"] + 1}
            if not self.over.is_set():
                try:
                    self.storage.set_trial_system_attr(self.trial_id, OWNER, self.owner)
                except Exception:  # finished a moment ago
                    return

    def _still_mine(self) -> bool:
        try:
            found = read_owner(self.storage, self.trial_id)
        except KeyError:
            found = None
        self.lost = (found or {}).get("token") != self.owner["token"]
        return not self.lost

    def check(self) -> None:
        """Raises LeaseLost."""
        if self.lost or not self._still_mine():
            raise LeaseLost(f"Another worker has taken over trial {self.trial_id}.")

    def release(self) -> None:
        """Say that the trial waits for another worker, at once."""
        self.over.set()
        if self._still_mine():
            self.storage.set_trial_system_attr(self.trial_id, OWNER, self.owner | {"released": True})


def read_owner(storage: Any, trial_id: int) -> dict[str, Any] | None:
    return storage.get_trial(trial_id).system_attrs.get(OWNER)


class Watch:
    """Sees which running trials nobody works on. It must look again and again: `LOOK` seconds apart or less count fully."""

    LOOK = 5.0

    def __init__(self, timing: Timing):
        self.timing = timing
        self.seen: dict[int, tuple[Any, float, float]] = {}  # trial -> (owner, watched seconds, last look)

    def abandoned(self, trials: list[Any]) -> list[Any]:
        """Those of the running trials that may be taken over."""
        return [trial for trial in trials if self._abandoned(trial)]

    def _abandoned(self, trial: Any) -> bool:
        owner = trial.system_attrs.get(OWNER)
        if owner is not None and owner.get("released"):
            return True
        if owner is not None and owner["machine"] == this_machine():
            return is_free(Path(owner["lock"]))
        now = time.monotonic()
        key = None if owner is None else (owner["token"], owner["beat"])
        before, watched, last = self.seen.get(trial._trial_id, (key, 0.0, now))
        watched = watched + min(now - last, self.LOOK) if before == key else 0.0
        self.seen[trial._trial_id] = (key, watched, now)
        return watched >= (self.timing.unowned if owner is None else self.timing.grace)


def is_free(path: Path) -> bool:
    """Whether no living process of this machine holds the lock. A file that is gone is held by nobody."""
    try:
        with open(path) as file:
            return lock_file(file, wait=False)
    except FileNotFoundError:
        return True
    except OSError:
        return False
