"""Workers as processes of their own: several at a time, or one a trial. One that dies is replaced.

A worker process is the same command with a mark in its environment. Its output goes to `workers/worker-N.log`; what it says
about trials, the parent says too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .dashboard import announce, line_of
from .study import Plan

CHILD, ONE_TRIAL = "LDP_SEARCH_PARENT", "LDP_SEARCH_ONE_TRIAL"
NOTHING_LEFT = 64
"""Exit status of a worker for one trial that found none."""
MOST_EARLY_DEATHS = 3
EARLY = 20.0


def is_child() -> bool:
    return CHILD in os.environ


def trials_of_a_child() -> int | None:
    return 1 if os.environ.get(ONE_TRIAL) else None


def end_with_parent() -> None:
    """Stop this worker as Ctrl-C would, once the process that started it is gone."""
    parent = int(os.environ[CHILD])  # not getppid(): it may be gone already

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class Lane:
    """A place for one worker process at a time."""

    def __init__(self, number: int, plan: Plan, words: list[str], study: Any):
        self.number, self.plan, self.words, self.study = number, plan, words, study
        self.one_trial = plan.options.isolation == "process"
        self.log = plan.folder / "workers" / f"worker-{number}.log"
        self.process: subprocess.Popen | None = None
        self.started, self.early_deaths, self.status = 0.0, 0, None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ldp_search.run", *self._words()]
        with open(self.log, "a") as log:
            options = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "env": self._environment()}
            self.process = subprocess.Popen(command, start_new_session=True, **options)  # Ctrl-C reaches it through us, once
        self.started = time.monotonic()

    def _words(self) -> list[str]:
        own = ("storage", "output", "workers")
        kept = [w for w in self.words if w.partition("=")[0] not in own]
        return [*kept, f"storage={self.plan.options.storage}", f"output={self.plan.folder}"]

    def _environment(self) -> dict[str, str]:
        more = {CHILD: str(os.getpid())} | ({ONE_TRIAL: "1"} if self.one_trial else {})
        workers = self.plan.options.workers
        if "OMP_NUM_THREADS" not in os.environ:
            more["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
        gpus = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", _gpus()).split(",") if g]
        if gpus and workers > 1:
            more["CUDA_VISIBLE_DEVICES"] = gpus[(self.number - 1) % len(gpus)]
        return os.environ | more

    def look(self) -> None:
        """Notice that the process has ended, and start the next one if there is more to do. Sets `status` at the end."""
        if self.process is None or (code := self.process.poll()) is None:
            return
        self.process = None
        if code == 0 and self.one_trial and any(not t.state.is_finished() for t in self.study.get_trials(deepcopy=False)):
            self.early_deaths = 0
            return self.start()
        if code in (0, NOTHING_LEFT):
            self.status = 0
        elif code in (1, 2, 130, 143):
            self.status = code
        else:
            self._replace(code)

    def _replace(self, code: int) -> None:
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        quick = time.monotonic() - self.started < EARLY
        self.early_deaths = self.early_deaths + 1 if quick else 0
        announce(f"worker {self.number} ended {how}; its trial is taken up again")
        if self.early_deaths > MOST_EARLY_DEATHS + self.plan.options.retries:
            self.status = 1
        else:
            self.start()

    def stop(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)


def _gpus() -> str:
    import torch

    return ",".join(map(str, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ""


def run_workers(plan: Plan, words: list[str], study: Any) -> int:
    """Run the workers to the end of the study; returns the exit status."""
    lanes = [Lane(i + 1, plan, words, study) for i in range(plan.options.workers)]
    asked: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: asked.append(number)) for n in _signals()}
    told = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
    try:
        for lane in lanes:
            lane.start()
        passed_on = 0
        while any(lane.status is None for lane in lanes):
            if len(asked) > passed_on:
                passed_on = len(asked)
                announce("stopping the workers after their step (again: at once) ...")
                for lane in lanes:
                    lane.stop(signal.SIGINT if passed_on == 1 else signal.SIGKILL)
            for lane in lanes:
                _look(lane, stopping=bool(asked))
            _tell_new(plan, study, told)
            time.sleep(0.3)
        _tell_new(plan, study, told)
    finally:
        for lane in lanes:
            lane.stop(signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        return 128 + asked[0]
    return _status(lanes)


def _signals() -> tuple[int, ...]:
    return (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()


def _look(lane: Lane, stopping: bool) -> None:
    if not stopping:
        lane.look()
    elif lane.process is None or lane.process.poll() is not None:
        lane.process, lane.status = None, 130


def _status(lanes: list[Lane]) -> int:
    worst = max(lane.status or 0 for lane in lanes)
    if worst:
        lane = next(one for one in lanes if one.status == worst)
        print(f"ldp_search.run: worker {lane.number} ended with status {worst}: {lane.log}\n{_tail(lane.log)}", file=sys.stderr)
    return worst


def _tail(log: Path) -> str:
    try:
        return "\n".join("  " + line for line in log.read_text(errors="replace").splitlines()[-8:])
    except OSError:
        return ""


def _tell_new(plan: Plan, study: Any, told: set[int]) -> None:
    """A line for every trial that has ended since the last look."""
    trials = study.get_trials(deepcopy=False)
    over = [t for t in trials if t.state.is_finished()]
    for trial in sorted((t for t in over if t.number not in told), key=lambda t: (t.datetime_complete, t.number)):
        told.add(trial.number)
        announce(f"{line_of(plan, trial)}  [{len(told)} of {len(trials)}]")
