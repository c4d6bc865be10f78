"""Files of a trial or of the whole study, put where optuna-dashboard finds and shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optuna.artifacts import FileSystemArtifactStore, upload_artifact

PREFIX = "artifacts:"  # of Optuna's system attributes


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
