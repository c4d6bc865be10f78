"""A storage that waits: while a database restarts, a network is down or a disk is full, trials go on and nothing is lost."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage

LONGEST_NAP = 30.0
OPERATIONS = [
    name for name, member in inspect.getmembers(BaseStorage, inspect.isfunction) if not name.startswith("_")
    and name not in ("check_trial_is_updatable",)
]  # fmt: skip


class PatientStorage(BaseStorage):
    """Delegates everything to another storage, again and again while that cannot be reached.

    An operation whose answer was lost is done twice. All of Optuna's but two may be: creating a trial, which `study` checks by
    its number, and finishing one, whose second attempt finds it finished and is content if it is so with the same values.
    """

    def __init__(self, inner: BaseStorage, announce: Callable[[str], Any] = print):
        self.inner, self.announce = inner, announce

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "announce": print}

    def set_trial_state_values(self, trial_id: int, state: Any, values: Any = None) -> bool:
        tries = 0

        def once() -> bool:
            nonlocal tries
            tries += 1
            try:
                return self.inner.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                found = self.inner.get_trial(trial_id)
                if tries > 1 and found.state == state and list(found.values or []) == list(values or []):
                    return True
                raise

        return self._wait_for(once)

    def _wait_for(self, operation: Callable[[], Any]) -> Any:
        nap, since, told = 0.1, time.monotonic(), False
        while True:
            try:
                result = operation()
                if told:
                    self.announce(f"The storage is back after {time.monotonic() - since:.0f} s.")
                return result
            except Exception as error:
                if not is_outage(error):
                    raise
                if not told and time.monotonic() - since > 2:
                    told = True
                    reason = " ".join(str(error.__cause__ or error).split())[:200]
                    self.announce(f"The storage cannot be reached, waiting for it: {reason}")
                time.sleep(nap)
                nap = min(LONGEST_NAP, 1.5 * nap)


def is_outage(error: BaseException) -> bool:
    """Whether an operation may succeed later on: connections, locks and full disks, not wrong arguments."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(cause).__mro__}
    if "grpc.RpcError" in names:
        return getattr(error.code(), "name", "") in _OUTAGES  # type: ignore[attr-defined]
    if "sqlalchemy.SQLAlchemyError" in names:
        return not names & _MISTAKES
    return False


_OUTAGES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN")  # of gRPC
_MISTAKES = {f"sqlalchemy.{name}" for name in ("DataError", "IntegrityError", "ProgrammingError", "NotSupportedError",
             "ArgumentError", "CompileError", "NoResultFound", "MultipleResultsFound")}  # fmt: skip


def _delegate(name: str) -> Callable:
    @functools.wraps(getattr(BaseStorage, name))
    def method(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self._wait_for(lambda: getattr(self.inner, name)(*args, **kwargs))

    return method


for _name in OPERATIONS:
    if _name not in vars(PatientStorage):
        setattr(PatientStorage, _name, _delegate(_name))
PatientStorage.__abstractmethods__ = frozenset()  # they have just been defined
