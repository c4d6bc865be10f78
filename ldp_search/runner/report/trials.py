"""The trials of a study as the report sees them, whatever the storage; and what follows from them: front, hypervolume."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .load import number


@dataclass
class TrialRow:
    """A trial. metric and cost are None where it has none; spread: standard deviation over its seeds."""

    number: int
    state: str
    metric: float | None
    cost: float | None
    feasible: bool
    params: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    spread: float | None = None

    @property
    def counts(self) -> bool:
        """Whether it has a place on the front: complete, within the bound, with a cost."""
        return self.state == "complete" and self.feasible and None not in (self.metric, self.cost)


@dataclass
class StudyView:
    """A study. sign: 1 where a higher metric is better, else -1."""

    name: str
    metric: str
    cost: str
    max_cost: float | None
    pareto: bool
    sign: int
    rows: list[TrialRow]

    @property
    def complete(self) -> list[TrialRow]:
        return [row for row in self.rows if row.state == "complete" and row.metric is not None]

    def ranked(self) -> list[TrialRow]:
        """Complete trials, the best first, those above the bound last."""
        return sorted(self.complete, key=lambda r: (not r.feasible, -self.sign * r.metric, r.cost or 0.0, r.number))

    def front(self) -> list[TrialRow]:
        """Feasible trials that no other one beats in both metric and cost, by rising cost."""
        out: list[TrialRow] = []
        for row in sorted((r for r in self.rows if r.counts), key=lambda r: (r.cost, -self.sign * r.metric)):
            if not out or self.sign * row.metric > self.sign * out[-1].metric:
                out.append(row)
        return out

    def hypervolume(self, upto: int | None = None, worst: float = 0.0, dearest: float = 1.0) -> float:
        """Area between the front and the corner (worst metric, dearest cost), of the trials below a number."""
        rows = [r for r in self.rows if r.counts and (upto is None or r.number < upto)]
        seen = StudyView(self.name, self.metric, self.cost, self.max_cost, self.pareto, self.sign, rows)
        area, bound = 0.0, dearest
        for row in reversed(seen.front()):
            gain = self.sign * (row.metric - worst)
            if row.cost < bound and gain > 0:
                area += (bound - row.cost) * gain
                bound = row.cost
            # a cheaper trial of the front has a lower metric: what lies left of it counts with that one
        return area


def view_of(study: Any) -> StudyView:
    """Read an Optuna study."""
    attrs = study.user_attrs
    cost, pareto = attrs.get("cost", "training_cost"), len(study.directions) > 1
    sign = 1 if study.directions[0].name == "MAXIMIZE" else -1
    rows = [_row(trial, cost) for trial in study.get_trials(deepcopy=False)]
    return StudyView(study.study_name, attrs.get("metric", "metric"), cost, attrs.get("max_cost"), pareto, sign, rows)


def _row(trial: Any, cost: str) -> TrialRow:
    figures = dict(trial.user_attrs)
    figures["given"] = bool(trial.system_attrs.get("fixed_params"))
    spread = figures.get("metrics") or []
    return TrialRow(
        trial.number, trial.state.name.lower(), number(trial.values[0]) if trial.values else None,
        number(figures.get(cost)), all(v <= 0 for v in trial.constraints.values()), dict(trial.params), figures,
        statistics.stdev(spread) if len(spread) > 1 else None,
    )  # fmt: skip


def folder_of(row: TrialRow) -> Path | None:
    """Where the trial's run lies, None where that is not on this machine."""
    folder = row.figures.get("folder")
    return Path(folder) if folder and Path(folder).is_dir() else None
