"""A search around a training of milliseconds, whose worker processes can be killed: forked, so that they start at once."""

import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tiny import fork

import ldp_search
from ldp_search.runner.search import dashboard, lease, study, tune, worker

SPACE = {"outer": {"max_cost": 0.8, "params": {
    "x": {"low": -1.0, "high": 1.0}, "kind": ["a", "b"], "y": {"low": 1, "high": 9, "if": {"kind": "a"}},
}}}  # fmt: skip
QUICK = lease.Timing(beat=0.4, grace=2.0, unowned=0.5, settle=0.1)


def toy(steps: int = 4, nap: float = 0.01):
    """A training with checkpoints: its metric follows from the trial's values, its steps are written down as they happen."""

    def train(trial):
        file = trial.folder / "checkpoint.json"
        done = json.loads(file.read_text()) if file.exists() else []
        for step in range(len(done), steps):
            time.sleep(nap)
            done.append((done[-1] if done else 0.0) + trial["x"] / (step + 1))
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(done))
            # Before the checkpoint counts: a kill in between repeats the step.
            with open(trial.folder / "steps.txt", "a") as log:
                log.write(f"{step} {os.getpid()}\n")
            partial.replace(file)
        return done[-1] + trial.values.get("y", 0), None, {"training_cost": 0.5 + trial["x"] / 2}

    return train


def hurried(monkeypatch):
    """Short times of grace, no notes: for searches whose trials take milliseconds."""
    monkeypatch.setattr(study, "Timing", lambda: QUICK)
    monkeypatch.setattr(study.Plan.__dataclass_fields__["timing"], "default_factory", lambda: QUICK)
    plain = study.Plan.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **({"timing": QUICK} | kwargs))

    monkeypatch.setattr(study.Plan, "__init__", init)
    for module in (dashboard, worker):
        monkeypatch.setattr(module, "write_note", lambda plan, study, trials=None: None)
    for module in (dashboard, worker, tune):
        monkeypatch.setattr(module, "announce", lambda text: None)


def search(storage, folder, trials, train=None, **options):
    options = {"sampler": "random", "retries": 100, "seed": 5} | options
    return ldp_search.tune(train or toy(), SPACE, storage, trials, output=folder, **options)


def search_under_fire(storage, folder, trials: int, workers: int, kills: int, seed: int, **options) -> int:
    """Workers, of which a random one is killed again and again, at work on a trial, and replaced. Returns the kills made."""
    rng, alive, made, over = random.Random(seed), [], 0, False
    deadline = time.monotonic() + 100
    while alive or not over:
        while len(alive) < workers and not over:
            alive.append(fork(search, storage, folder, trials, **options))
        time.sleep(rng.uniform(0.01, 0.1))
        at_work = [pid for pid in alive if pid in workers_seen(folder)]
        if made < kills and at_work:
            os.kill(victim := rng.choice(at_work), signal.SIGKILL)
            alive.remove(victim)
            made += os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL
        for pid in list(alive):
            if os.waitpid(pid, os.WNOHANG)[0]:
                alive.remove(pid)
                over = True  # it found nothing more to do
        if time.monotonic() > deadline:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            raise TimeoutError("the search did not end")
    return made


def workers_seen(folder) -> set[int]:
    """Process ids of all workers that have made a step so far."""
    lines = [line for file in Path(folder).glob("trials/*/steps.txt") for line in file.read_text().splitlines()]
    return {int(line.split()[1]) for line in lines if line.count(" ")}


class Postgres:
    """A PostgreSQL server of its own on the loopback interface, for as long as the context lasts."""

    def __init__(self):
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda p: int(p.parts[-3]))
        self.bin = found[-1].parent if found else None

    @property
    def lacking(self) -> str | None:
        """Why it cannot run here, None if it can."""
        if self.bin is None:
            return "no PostgreSQL server is installed: apt-get install postgresql"
        if not any(importlib.util.find_spec(name) for name in ("psycopg", "psycopg2")):
            return "its driver is not installed: pip install 'psycopg[binary]'"
        return None

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="pg-")
        self.data = Path(self.folder.name) / "data"
        self.user = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            import pwd

            self.user = {"user": "postgres", "extra_groups": [], "group": pwd.getpwnam("postgres").pw_gid}
            os.chown(self.folder.name, pwd.getpwnam("postgres").pw_uid, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "-A", "trust", "-U", "ldp", "--no-sync", "-D", str(self.data))
        self.start()
        self.url = f"postgresql://ldp@127.0.0.1:{self.port}/postgres"
        return self

    def start(self):
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder.name} -c fsync=off -c max_connections=300"
        self._run("pg_ctl", "-D", str(self.data), "-o", options, "-l", str(Path(self.folder.name) / "log"), "-w", "start")

    def stop(self):
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def _run(self, program, *words):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": self.folder.name}
        log = open(Path(self.folder.name) / "err", "wb")  # noqa: SIM115 (a pipe would stay open in the server)
        with log:
            done = subprocess.run([str(self.bin / program), *words], **(quiet | {"stderr": log}), **self.user)
        if done.returncode:
            raise RuntimeError(Path(self.folder.name, "err").read_text())

    def __exit__(self, *raised):
        self.stop()
        self.folder.cleanup()
