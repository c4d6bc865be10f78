"""A task's YAML file: read, checked, varied."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.messages import did_you_mean
from . import presets
from .overlay import ConfigError
from .typed import imported, typed

KINDS = {
    "image_classification": "ldp_search.runner.tasks.images:ImageClassification",
    "text_classification": "ldp_search.runner.tasks.text:TextClassification",
    "language_modelling": "ldp_search.runner.tasks.language:LanguageModelling",
    "segmentation": "ldp_search.runner.tasks.segmentation:Segmentation",
}
"""A kind of task is a subclass of `runner.tasks.Task` in a module of its own; a file names it, or its own "module:Class"."""


@dataclass
class TaskFile:
    """What a YAML file of `tasks/` holds.

    dataset: fields of the kind's own dataclass, `Task.Data`. recipe, quick: settings of a run. names: {name: fields of
    `dataset` that differ, and perhaps a `recipe`} of a collection of data sets, of which `name=` picks one.
    """

    description: str = ""
    kind: str = "image_classification"
    dataset: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)


def load_task(name: str, member: str | None = None, changes: dict[str, Any] | None = None) -> TaskFile:
    """A task's YAML file, by shipped name or path, checked.

    Args:
        member: which of `names`. changes: fields of `dataset` that lie over those of the file.

    Raises:
        ValueError: unknown name, key or kind with the nearest ones, or a value of the wrong type.
    """
    file, where = presets.path("tasks", name), f"in task {name!r}"
    task = TaskFile(**{key: typed(TaskFile, key, value, where) for key, value in presets.read_yaml(file).items()})
    schema = kind(task.kind).Data
    if member is not None:
        _choose(task, member, name)
    in_file = {key: typed(schema, key, value, f"in `dataset` of task {name!r}") for key, value in task.dataset.items()}
    source = str(in_file.get("source", ""))
    if source.startswith("."):  # a file's own neighbours, wherever the command runs
        in_file["source"] = str((file.parent / source).resolve())
    given = {key: typed(schema, key, v, "in dataset.FIELD=VALUE", name=f"dataset.{key}") for key, v in (changes or {}).items()}
    task.dataset = in_file | given
    return task


def _choose(task: TaskFile, member: str, name: str) -> None:
    if not task.names:
        raise ConfigError(f"name= picks one of a collection of data sets, but the task {name!r} is a single one; drop it.")
    if member not in task.names:
        raise ConfigError(f"The task {name!r} has no data set called {member!r}.{did_you_mean(member, task.names)}")
    chosen = dict(task.names[member] or {})
    task.recipe = task.recipe | chosen.pop("recipe", {})
    task.dataset = task.dataset | chosen


def kind(name: str) -> Any:
    """The class of a kind of task. Raises ConfigError with the nearest names."""
    if name not in KINDS and ":" not in name:
        raise ConfigError(f"Unknown kind of task {name!r}.{did_you_mean(name, KINDS)} One's own: 'module:Class'.")
    return imported(KINDS.get(name, name), "kind of task")


def display_name(name: str) -> str:
    """How a task or search space is called in names and titles: a file's stem."""
    return Path(name).stem if presets.is_path(name) else name
