"""What comes out of a search: the best trial, its model, its bits, its settings."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from ...config.overlay import ConfigError
from ...config.study import check_storage, is_url
from ...core import Allocation
from ...core.messages import did_you_mean
from .storage import open_storage
from .study import best_trial


@dataclass(frozen=True)
class Best:
    """The best trial of a study. figures: its costs and whatever else it measured; params: the searched settings."""

    number: int
    metric: float
    figures: dict[str, Any]
    params: dict[str, Any]
    config: dict[str, Any]
    folder: Path

    @functools.cached_property
    def allocation(self) -> Allocation:
        """The integer bits of every layer. Raises FileNotFoundError where the trial's folder is not on this machine."""
        return Allocation.load(self.folder / "allocation.json")

    @functools.cached_property
    def model(self) -> Any:
        """The trained model, with its bits. Raises FileNotFoundError likewise."""
        from ..pretrained.save_load import load_pretrained

        return load_pretrained(self.folder)


def load_study(storage: str | Path, study: str | None = None) -> optuna.Study:
    """The study in a storage.

    Raises:
        ConfigError: no such storage, or it holds none or several studies and `study` names none of them.
    """
    word = str(storage)
    check_storage(word)
    if not is_url(word) and not Path(word).expanduser().is_file():
        near = sorted(str(p) for p in Path(word).parent.glob("*.journal"))[:5]
        raise ConfigError(f"There is no journal {word!r}." + (f" Here are: {', '.join(near)}." if near else ""))
    opened = open_storage(word)
    names = optuna.get_all_study_names(opened)
    if study is None and len(names) != 1:
        have = "no study" if not names else f"several studies: name one, study=NAME: {', '.join(sorted(names))}"
        raise ConfigError(f"The storage {word!r} holds {have}.")
    if study is not None and study not in names:
        raise ConfigError(f"The storage {word!r} holds no study {study!r}.{did_you_mean(study, names)}")
    return optuna.load_study(study_name=study or names[0], storage=opened)


def best(storage: str | Path, study: str | None = None, max_cost: float | None = None) -> Best:
    """The best finished trial that keeps to the study's bound on the cost, or to `max_cost`.

    Args:
        storage: what `storage=` was: a journal file or a database's URL. study: its name, where the storage has several.

    Raises:
        ValueError: no such storage or study, or no feasible trial in it yet.
    """
    found = load_study(storage, study)
    trial = best_trial(found, max_cost)
    if trial is None:
        raise ConfigError(f"The study {found.study_name!r} has no finished trial within the bound on its cost yet.")
    return as_best(trial)


def as_best(trial: Any) -> Best:
    attrs = trial.user_attrs
    figures = {key: value for key, value in attrs.items() if isinstance(value, int | float)}
    return Best(trial.number, trial.values[0], figures, trial.params, attrs.get("config", {}), Path(attrs.get("folder", ".")))


def write_best(study: optuna.Study, path: Path) -> bool:
    """The best trial's settings as YAML that `python -m ldp_search.run config=FILE` takes. False while there is none."""
    from omegaconf import OmegaConf

    from ..io.atomic import write_whole

    trial = best_trial(study)
    if trial is None or "config" not in trial.user_attrs:
        return False
    metric, cost = study.user_attrs.get("metric", "metric"), study.user_attrs.get("cost", "training_cost")
    spent = f", {cost} {trial.user_attrs[cost]:.4f}" if cost in trial.user_attrs else ""
    head = f"# Trial {trial.number} of study {study.study_name}: {metric} {trial.values[0]:.4f}{spent}\n"
    head += f"# python -m ldp_search.run config={path}\n"
    write_whole(path, head + OmegaConf.to_yaml(OmegaConf.create(trial.user_attrs["config"])))
    return True
