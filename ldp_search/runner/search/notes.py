"""What a person reads while a study goes on: lines in the terminal, and the study's note in optuna-dashboard."""

from __future__ import annotations

import contextlib
from typing import Any

from optuna.trial import TrialState

from .artifacts import artifact_folder
from .storage import hidden, with_driver
from .study import Plan, best_trial


def announce(text: str) -> None:
    print(f"[search] {text}", flush=True)


def dashboard_command(plan: Plan) -> str:
    return f"optuna-dashboard {hidden(with_driver(str(plan.options.storage)))} --artifact-dir {artifact_folder(plan)}"


def write_note(plan: Plan, study: Any, trials: list[Any] | None = None) -> None:
    """The study's note: its best trial, how to compute that again, how to go on. It must not cost a trial if it fails."""
    with contextlib.suppress(Exception):
        from optuna_dashboard import save_note

        save_note(study, note(plan, study, study.get_trials(deepcopy=False) if trials is None else trials))


def note(plan: Plan, study: Any, trials: list[Any]) -> str:
    """Markdown on the study as it is now."""
    count = {state: sum(t.state == state for t in trials) for state in TrialState}
    metric, cost = plan.facts.get("metric", "metric"), plan.options.cost
    bound = "" if plan.max_cost is None else f", {cost} at most {plan.max_cost:g}"
    goal = f"{metric} and {cost}" if plan.options.pareto else f"{metric}{bound}"
    lines = [
        f"## {plan.name}", "",
        f"Searched: {goal}. {count[TrialState.COMPLETE]} trials complete, {count[TrialState.PRUNED]} pruned, "
        f"{count[TrialState.FAIL]} failed, {count[TrialState.RUNNING]} running, {count[TrialState.WAITING]} waiting.",
    ]  # fmt: skip
    best = best_trial(study, trials=trials)
    if best is not None:
        spent = f", {cost} {best.user_attrs[cost]:.4f}" if cost in best.user_attrs else ""
        lines += ["", f"**Best: trial {best.number}**, {metric} {best.values[0]:.4f}{spent}"]
        if "command" in best.user_attrs:
            lines += ["", "To train it again:", "", "```", best.user_attrs["command"], "```"]
    again = plan.facts.get("command")
    lines += ["", "To go on with this study, or to add workers:", "", "```", again, "```"] if again else []
    lines += ["", "To see files of the trials here:", "", "```", dashboard_command(plan), "```"]
    return "\n".join(lines)


def line_of(plan: Plan, trial: Any) -> str:
    """How a trial ended, in a line."""
    cost, metric = plan.options.cost, plan.facts.get("metric", "metric")
    if trial.state == TrialState.COMPLETE:
        spent = f", {cost} {trial.user_attrs[cost]:.4f}" if cost in trial.user_attrs else ""
        above = "" if all(v <= 0 for v in trial.constraints.values()) else f" (above {plan.max_cost:g})"
        return f"trial {trial.number}: {metric} {trial.values[0]:.4f}{spent}{above}"
    if trial.state == TrialState.PRUNED:
        return f"trial {trial.number}: pruned" + (f" at {metric} {trial.value:.4f}" if trial.value is not None else "")
    return f"trial {trial.number}: failed: {trial.user_attrs.get('reason', 'no reason given')}"
