"""Where a study lies: a journal file on one machine, a database across machines, a gRPC proxy before it for very many."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import IntegrityError, ProgrammingError

from ...config.overlay import ConfigError
from ...config.study import is_url
from .patient_storage import PatientStorage

ATTEMPTS = 6
PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "grpc": "grpcio", "MySQLdb": "mysqlclient"}
DEAD_OWNER = 5
"""Seconds after which a journal's lock counts as left behind by a killed process; who holds it does so for milliseconds."""


def open_storage(word: str, announce: Any = print) -> PatientStorage:
    """The storage that `storage=` names. It waits for a storage that goes away later on, but not for one that is not there.

    Raises:
        ConfigError: it cannot be opened; with what is missing.
    """
    try:
        return PatientStorage(_open(word), announce)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name), error.name)
        raise ConfigError(f"storage={hidden(word)} needs the package {package}: pip install {package}") from error
    except Exception as error:  # SQLAlchemy's, the driver's and the operating system's classes
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"storage={hidden(word)} cannot be opened: {reason}") from error


def _open(word: str) -> BaseStorage:
    if word.startswith("grpc://"):
        host, _, port = word.removeprefix("grpc://").rstrip("/").rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"A gRPC storage is grpc://HOST:PORT; received {word!r}.")
        proxy = GrpcStorageProxy(host=host, port=int(port))
        proxy.wait_server_ready(timeout=20)
        return proxy
    if is_url(word):
        pooled: dict[str, Any] = {} if word.startswith("sqlite") else {"pool_size": 2, "pool_pre_ping": True}
        return get_storage(_database(with_driver(word), pooled))
    path = Path(word).expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFile(path))


def _database(url: str, options: dict[str, Any]) -> RDBStorage:
    """Optuna's storage in a database. Of several that make its tables at the same moment, all but one fail, and find them."""
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (IntegrityError, ProgrammingError):
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.3 * (attempt + 1))
    raise RuntimeError("not reached")


def with_driver(word: str) -> str:
    """A PostgreSQL URL that names the driver which is installed: SQLAlchemy's own choice differs between its versions."""
    scheme, separator, rest = word.partition("://")
    if scheme in ("postgresql", "postgres"):
        found = next((name for name in ("psycopg", "psycopg2") if importlib.util.find_spec(name)), None)
        if found is None:
            raise ConfigError("A PostgreSQL storage needs its driver: pip install 'psycopg[binary]'.")
        return f"postgresql+{found}{separator}{rest}"
    return word


def hidden(word: str) -> str:
    """A storage's name without the password in it."""
    head, at, tail = word.rpartition("@")
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}:***@{tail}" if at and ":" in user else word


class JournalFile(JournalFileBackend):
    """Optuna's journal file, made safe against a kill at any moment and a full disk.

    A write that was cut off would join the next one on its line and make the journal unreadable for good: its rest is
    removed. A killed owner of the lock makes nobody wait longer than DEAD_OWNER, and the kernel's own lock around it keeps
    processes of ours from waiting in naps.
    """

    def __init__(self, path: Path):
        super().__init__(str(path), lock_obj=JournalFileSymlinkLock(str(path), grace_period=DEAD_OWNER))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with kernel_lock(self.path.with_name(f".{self.path.name}.queue")):
            self._remove_rest()
            size = self.path.stat().st_size
            try:
                super().append_logs(logs)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)
                raise

    def _remove_rest(self) -> None:
        """What a write left that never ended. Others see whole lines only, so nobody has read it."""
        with open(self.path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            if end == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) == b"\n":
                return
            file.seek(max(0, end - (1 << 20)))
            tail = file.read()
            file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)


@contextlib.contextmanager
def kernel_lock(path: Path) -> Iterator[None]:
    """Exclusive among the processes of this machine; the kernel releases it when its holder dies, however that happens."""
    with open(path, "a") as file:
        lock_file(file, wait=True)
        yield


def lock_file(file: Any, wait: bool) -> bool:
    """Lock an open file until it is closed. False where another process has it and `wait` is false."""
    try:
        import fcntl
    except ImportError:  # Windows: no such locks; heartbeats remain
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False
