"""A worker: takes one trial after the other, abandoned ones first, until all are finished.

It stays while others still work: their trials may become its own.
"""

from __future__ import annotations

import errno
import time
import traceback
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from .dashboard import announce, line_of, show_files, write_note
from .lease import OWNER, Lease, LeaseLost, Watch
from .objective import Job, Objective, Outcome
from .ranks import Ranks
from .study import TOLERANCE, Plan

DEATHS = "deaths"
BETWEEN_NOTES = 10.0
"""Seconds between a worker's notes on the study: with many workers, reading all trials for each would be most of the work."""
HOPELESS = 3
"""Failed trials, and not one that is not, after which the study stops: the mistake is not one of the searched values."""


class Hopeless(Exception):
    """Every trial fails; the message holds the last reason."""


class Worker:
    """Works on the trials of a study. KeyboardInterrupt passes through, with the trial handed back."""

    def __init__(self, plan: Plan, study: Any, objective: Objective, ranks: Ranks | None = None, most: int | None = None):
        self.plan, self.study, self.objective, self.most = plan, study, objective, most
        self.ranks, self.watch = ranks or Ranks(), Watch(plan.timing)
        self.lease: Any = None
        self.trial: Any = None
        self.noted = -BETWEEN_NOTES
        self.failures: list[str] = []  # of this worker, since its last trial that did not fail

    def work(self) -> int:
        """The number of trials that this worker carried out.

        Raises:
            Hopeless: nothing but failures. KeyboardInterrupt: asked to stop; the trial waits for another worker.
        """
        done = 0
        while self.most is None or done < self.most:
            job = self.ranks.agree(self._next)
            if job is None:
                break
            self._carry_out(job)
            done += 1
        return done

    # ---- which trial is next: the main process alone ----

    def _next(self) -> Job | None:
        self._stop_if_hopeless()
        while True:
            going = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
            running = [t for t in going if t.state == TrialState.RUNNING]
            for frozen in self.watch.abandoned(running):
                if self._take(frozen, before=frozen.system_attrs.get(OWNER)) and not self._died_too_often(frozen):
                    return self._job(frozen)
            for frozen in (t for t in going if t.state == TrialState.WAITING):
                if self._pop(frozen) and self._take(frozen, before=None):
                    return self._job(frozen)
            if not going:
                return None
            time.sleep(min(2.0, self.plan.timing.beat / 4))

    def _pop(self, frozen: Any) -> bool:
        """From waiting to running: of several workers, one succeeds. (study.ask would make a new trial where all fail.)"""
        try:
            return self.study._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _take(self, frozen: Any, before: dict[str, Any] | None) -> bool:
        path = self._folder(frozen.number) / ".owner"
        storage, id_ = self.study._storage, frozen._trial_id
        self.lease = Lease.take(storage, id_, path, self.plan.timing, before, self.plan.shared)
        return self.lease is not None

    def _folder(self, number: int) -> Path:
        return self.plan.folder / "trials" / f"{number:04d}"

    def _died_too_often(self, frozen: Any) -> bool:
        """Counts the death of a trial's worker; after `retries` without progress between them the trial has failed."""
        owner = frozen.system_attrs.get(OWNER) or {}
        if owner.get("released"):
            return False
        progress = len(frozen.intermediate_values) + self.objective.progress(self._folder(frozen.number))
        count, before = frozen.user_attrs.get(DEATHS, [0, -1.0])
        count = count + 1 if progress <= before else 1
        self.study._storage.set_trial_user_attr(frozen._trial_id, DEATHS, [count, progress])
        if count <= self.plan.options.retries:
            return False
        reason = f"its worker died {count} times at the same place, without a word: killed, or out of memory"
        self._end(self._trial(frozen), TrialState.FAIL, Outcome(attributes={"reason": reason}))
        return True

    def _trial(self, frozen: Any) -> optuna.Trial:
        self.study._thread_local.cached_all_trials = None  # as study.ask does: the sampler shall see what there is now
        return optuna.Trial(self.study, frozen._trial_id)

    def _job(self, frozen: Any) -> Job:
        trial = self._trial(frozen)
        chosen = self.plan.space.suggest(trial, self.plan.setting)
        self.trial = trial
        return Job(trial.number, chosen, self._folder(trial.number), tell=None)  # type: ignore[arg-type]

    # ---- carrying it out: every process ----

    def _carry_out(self, job: Job) -> None:
        job.tell = self._report
        if self.ranks.is_main:
            self.lease.__enter__()
        try:
            state = self._try(job)
            if state is not None and self.ranks.is_main:
                self._end(self.trial, state, job.outcome, job.folder)
        except LeaseLost:
            announce(f"trial {job.number}: another worker has taken it over")
        except KeyboardInterrupt:
            if self.ranks.is_main:
                self.lease.release()
            raise
        finally:
            if self.ranks.is_main:
                self.lease.__exit__()

    def _try(self, job: Job) -> TrialState:
        try:
            job.outcome = self.objective(job)
            return TrialState.COMPLETE
        except optuna.TrialPruned:
            return TrialState.PRUNED
        except LeaseLost:
            raise
        except Exception as error:
            if self.ranks.count > 1 and not getattr(error, "on_all_ranks", isinstance(error, ArithmeticError)):
                raise  # the other processes wait for this one: all end, and the trial is taken up again from its checkpoint
            job.outcome.attributes["reason"] = reason_of(error)
            self._keep_traceback(job, error)
            return TrialState.FAIL

    def _keep_traceback(self, job: Job, error: BaseException) -> None:
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            path = job.folder / "error.txt"
            path.write_text("".join(traceback.format_exception(error)))
            job.outcome.files.append(path)
        except OSError:  # a full disk may be the very reason
            pass

    def _report(self, step: int, value: float) -> None:
        """What Optuna makes of an intermediate value, on every process."""
        decision = self.ranks.agree(lambda: self._decide(step, value))
        if decision == "prune":
            raise optuna.TrialPruned
        if decision == "lost":
            raise LeaseLost

    def _decide(self, step: int, value: float) -> str:
        if self.lease.lost:
            return "lost"
        if self.plan.options.pareto:
            return "go on"
        if step not in self.study._storage.get_trial(self.trial._trial_id).intermediate_values:  # told before a kill
            self.trial.report(value, step)
        last = step >= self.plan.facts.get("reports", 0)
        return "prune" if not last and self.trial.should_prune() else "go on"

    # ---- its end: the main process alone ----

    def _end(self, trial: optuna.Trial, state: TrialState, outcome: Outcome, folder: Path | None = None) -> None:
        """Everything that belongs to the trial goes into the storage before its end, which is what others wait for."""
        self.lease.check()
        for key, value in {**outcome.figures, **outcome.attributes}.items():
            trial.set_user_attr(key, value)
        cost, bound = outcome.figures.get(self.plan.options.cost), self.plan.max_cost
        if bound is not None and cost is not None and not trial.constraints:
            trial.set_constraint(self.plan.options.cost, cost - bound * (1 + TOLERANCE))
        show_files(self.plan, trial, outcome.files)
        values = None
        if state == TrialState.COMPLETE:
            values = [outcome.metric, cost] if self.plan.options.pareto else [outcome.metric]
            if any(v is None or v != v for v in values):
                trial.set_user_attr("reason", f"the objective gave {values}, where numbers are needed")
                state, values = TrialState.FAIL, None
        try:
            self.study.tell(trial, values, state=state)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError) as error:
            raise LeaseLost(str(error)) from error
        self.failures = [*self.failures, outcome.attributes.get("reason", "")] if state == TrialState.FAIL else []
        trials = self.study.get_trials(deepcopy=False)
        if time.monotonic() - self.noted > BETWEEN_NOTES or all(t.state.is_finished() for t in trials):
            write_note(self.plan, self.study, trials)
            self.noted = time.monotonic()
        over = sum(t.state.is_finished() for t in trials)
        announce(f"{line_of(self.plan, trials[trial.number])}  [{over} of {len(trials)}]")

    def _stop_if_hopeless(self) -> None:
        if len(self.failures) >= HOPELESS:
            states = {t.state for t in self.study.get_trials(deepcopy=False)}
            if not states & {TrialState.COMPLETE, TrialState.PRUNED}:
                raise Hopeless(f"All trials fail, the last one: {self.failures[-1]}")


def reason_of(error: BaseException) -> str:
    """An exception as one line for a person."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError",) or "can't allocate memory" in text:
        return f"out of memory: {text}" if text else "out of memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full: {text}"
    if isinstance(error, ArithmeticError) or type(error).__name__ == "ConfigError":
        return text
    return f"{type(error).__name__}: {text}"
