"""What a trial is to the search: a function of a job, which tells how it goes and ends with an outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass
class Outcome:
    """What came out of a trial, or of the part of it that was trained. files: what optuna-dashboard shall show."""

    metric: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


@dataclass
class Job:
    """A trial to carry out. `outcome` is filled while it goes, so that a pruned trial has one too."""

    number: int
    chosen: dict[str, Any]
    folder: Path
    tell: Callable[[int, float], None]
    outcome: Outcome = field(default_factory=Outcome)

    def report(self, step: int, value: float) -> None:
        """An intermediate value of the metric; steps count from 1. The same on every process.

        Raises:
            optuna.TrialPruned: the trial is not worth going on with. LeaseLost: another worker has it.
        """
        self.tell(step, value)


class Objective(Protocol):
    """Called on every process of a worker. What it raises marks the trial as failed, and the study goes on."""

    def __call__(self, job: Job) -> Outcome: ...

    def progress(self, folder: Path) -> float:
        """How far a trial that was interrupted had got; any number that grows."""
        ...
