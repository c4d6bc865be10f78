"""A study, made or found again: what it is about, and that it holds exactly as many trials as were asked for.

Trials are put into the storage before anybody works on them, waiting: the defaults first, then as many empty ones as the
total leaves, whose values are drawn when a worker takes them. Taking one is Optuna's own atomic step, so no number of workers
can make one trial too many, and what is left to do is there to be seen.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import TrialState

from ...config.overlay import ConfigError
from ...config.study import PLAN, StudyOptions, is_url
from ..io.checkpoint_files import differences
from .lease import Timing
from .outer_space import OuterSpace, Setting
from .samplers import grid, make_pruner, make_sampler
from .storage import kernel_lock

FILLING = "ldp_search:filling"
TOLERANCE = 0.005
"""Share by which a cost may exceed its bound: budgets are met to one optimizer step, not to the last digit."""


@dataclass
class Plan:
    """What a study is about.

    identity: plain data that must be the same when it is continued. facts: what was found out at its beginning (the metric's
    name, how often a trial reports, the bit operations that costs are relative to, how to start it again).
    """

    name: str
    options: StudyOptions
    space: OuterSpace
    setting: Setting
    folder: Path
    seed: int = 0
    direction: str = "maximize"
    identity: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)

    @property
    def max_cost(self) -> float | None:
        return self.options.max_cost if self.options.max_cost is not None else self.space.max_cost

    @property
    def shared(self) -> bool:
        """Whether workers on other machines may be at it."""
        return is_url(str(self.options.storage)) and not str(self.options.storage).startswith("sqlite")

    @property
    def whole_identity(self) -> dict[str, Any]:
        searched = {f"outer.params.{name}": row for name, row in self.space.describe().items()}
        o = self.options
        about = {"pareto": o.pareto, "cost": o.cost, "max_cost": self.max_cost, "seeds": o.seeds}
        return self.identity | searched | about


def open_study(plan: Plan, storage: Any, begin: bool = True) -> optuna.Study:
    """The study of this plan, new or continued, with `trials` trials in it.

    Args:
        begin: make it where there is none, compare it, and fill it up. Workers do not: their parent has.

    Raises:
        ConfigError: the storage holds a study of this name with another configuration; the difference is shown.
    """
    trials, pareto = plan.options.trials or 1, plan.options.pareto
    found = _found(plan, storage)
    if found is not None:
        plan.facts = found["facts"] | {k: v for k, v in plan.facts.items() if k not in found["facts"]}
        if begin:
            refuse_other(found["identity"], plan)
    how = {"sampler": plan.options.sampler, "pruner": plan.options.pruner, "trials": trials}
    before = (found or {}).get("how", how)
    how = {key: before[key] if value == "auto" or key == "trials" else value for key, value in how.items()}
    sampler = make_sampler(how["sampler"], how["trials"], pareto, plan.seed)
    pruner = make_pruner(how["pruner"], how["trials"], pareto, plan.facts.get("reports", 1))
    directions = [plan.direction, "minimize"] if pareto else [plan.direction]
    make = {"study_name": plan.name, "storage": storage, "sampler": sampler, "pruner": pruner}
    if begin and found is None:
        with contextlib.suppress(DuplicatedStudyError):  # another process was faster, or was killed after this step
            optuna.create_study(directions=directions, **make)
    study = optuna.load_study(**make)
    if begin:
        if found is None and (found := _found(plan, storage)) is None:
            _describe(study, plan, how)
        elif found is not None:
            refuse_other(found["identity"], plan)
        fill(study, plan, trials)
    return study


def _found(plan: Plan, storage: Any) -> dict[str, Any] | None:
    """What the study of this name says of itself, None where there is none."""
    try:
        study_id = storage.get_study_id_from_name(plan.name)
    except KeyError:
        return None
    said = storage.get_study_system_attrs(study_id).get(PLAN)
    if said is None and storage.get_all_trials(study_id, deepcopy=False):
        raise ConfigError(f"The storage holds a study {plan.name!r} that ldp_search did not make. Give another study=NAME.")
    return said


def _describe(study: optuna.Study, plan: Plan, how: dict[str, Any]) -> None:
    metric = plan.facts.get("metric", "metric")
    with contextlib.suppress(Exception):  # for show only
        study.set_metric_names([metric, plan.options.cost] if plan.options.pareto else [metric])
    shown = {"metric": metric, "cost": plan.options.cost, "max_cost": plan.max_cost, "folder": str(plan.folder.absolute())}
    for key, value in shown.items():
        study.set_user_attr(key, value)
    said = {"identity": plan.whole_identity, "facts": plan.facts, "how": how}
    study._storage.set_study_system_attr(study._study_id, PLAN, said)


def refuse_other(before: dict[str, Any], plan: Plan) -> None:
    """Raises ConfigError with what differs."""
    changed = differences(before, plan.whole_identity)
    if changed:
        raise ConfigError(
            f"The storage holds a study {plan.name!r} with another configuration (there -> here):\n  " + "\n  ".join(changed)
            + "\nGo on with the same settings, or begin another study: study=NAME, or another storage=FILE."
        )  # fmt: skip


def fill(study: optuna.Study, plan: Plan, total: int) -> None:
    """Put waiting trials into the study until it holds `total`."""
    cells = None
    if _name(plan.options.sampler) == "grid":
        cells = grid(plan.space, plan.setting, total, plan.seed)
        total = min(total, len(cells))
    if _count(study) >= total:
        return
    firsts = cells if cells is not None else plan.space.first_trials(plan.setting)
    with _alone(study, plan):
        for number in range(_count(study), total):
            study.enqueue_trial(firsts[number] if number < len(firsts) else {})


def _name(spec: Any) -> str:
    return str(spec.get("name", "auto") if isinstance(spec, dict) else spec)


def _count(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False))


@contextlib.contextmanager
def _alone(study: optuna.Study, plan: Plan) -> Iterator[None]:
    """One process at a time, here by the kernel's lock, over machines by a claim that the last one to make keeps."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with kernel_lock(plan.folder / ".filling"):
        if plan.shared:
            token, storage = uuid.uuid4().hex, study._storage
            storage.set_study_system_attr(study._study_id, FILLING, token)
            time.sleep(plan.timing.settle)
            deadline = time.monotonic() + 60
            while storage.get_study_system_attrs(study._study_id).get(FILLING) not in (token, None):
                if time.monotonic() > deadline:  # who claimed it later was killed
                    storage.set_study_system_attr(study._study_id, FILLING, token)
                    deadline += plan.timing.settle
                time.sleep(plan.timing.settle)
            try:
                yield
            finally:
                storage.set_study_system_attr(study._study_id, FILLING, None)
        else:
            yield


def is_feasible(trial: Any) -> bool:
    """Whether a trial keeps to the bound on its cost."""
    return all(value <= 0 for value in trial.constraints.values())


def best_trial(study: optuna.Study, max_cost: float | None = None, trials: list[Any] | None = None) -> Any | None:
    """The feasible trial with the best metric, None as long as there is none.

    Args:
        max_cost: another bound on the cost. trials: the study's, where they were read already.
    """
    cost = study.user_attrs.get("cost", "training_cost")
    read = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if trials is None else trials
    complete = [t for t in read if t.state == TrialState.COMPLETE]
    fits = [t for t in complete if is_feasible(t)]
    if max_cost is not None:
        fits = [t for t in complete if t.user_attrs.get(cost, float("inf")) <= max_cost * (1 + TOLERANCE)]
    sign = 1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else -1
    return max(fits, key=lambda t: (sign * t.values[0], -t.user_attrs.get(cost, 0.0), -t.number), default=None)
