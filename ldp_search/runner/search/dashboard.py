"""What a person reads while a study goes on: lines in the terminal, and the study's note in optuna-dashboard."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import TrialState

from .storage import hidden, with_driver
from .study import Plan, best_trial

PREFIX = "artifacts:"  # of Optuna's system attributes


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


def artifact_folder(plan: Any) -> Path:
    return Path(plan.options.artifacts).expanduser() if plan.options.artifacts else plan.folder / "artifacts"


def show_files(plan: Any, trial_or_study: Any, files: list[Path]) -> None:
    """Upload files. One of the same name is replaced: a trial that was taken up again shows everything once."""
    present = [path for path in files if path.is_file()]
    if not present:
        return
    folder = artifact_folder(plan)
    folder.mkdir(parents=True, exist_ok=True)
    store, known = FileSystemArtifactStore(folder), _known(trial_or_study)
    for path in present:
        if path.name in known:
            with open(path, "rb") as file:
                store.write(known[path.name], file)
        else:
            mimetype = "text/plain" if path.suffix in (".yaml", ".txt") else None  # Python guesses neither on every system
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial_or_study, mimetype=mimetype)


def _known(trial_or_study: Any) -> dict[str, str]:
    """{file name: artifact id} of what was uploaded before."""
    if hasattr(trial_or_study, "_trial_id"):
        attrs = trial_or_study.storage.get_trial(trial_or_study._trial_id).system_attrs
    else:
        attrs = trial_or_study._storage.get_study_system_attrs(trial_or_study._study_id)
    found = [json.loads(value) for key, value in attrs.items() if key.startswith(PREFIX)]
    return {meta["filename"]: meta["artifact_id"] for meta in found}
