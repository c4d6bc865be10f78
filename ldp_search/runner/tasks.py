"""What a task is: a YAML file of `tasks/`, and the object that gives the training loop its batches, losses and metrics.

A kind of task (image classification now) is a subclass of Task in a module of its own; a YAML file names the kind, or one's
own class as "module:Class".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import presets
from ..core.registry import did_you_mean
from .overlay import ConfigError
from .typed import imported, typed

KINDS = {"image_classification": "ldp_search.runner.images:ImageClassification"}


@dataclass
class TaskFile:
    """What a YAML file of `tasks/` holds. `dataset` holds the fields of the kind's own dataclass, `Task.Data`."""

    description: str = ""
    kind: str = "image_classification"
    dataset: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)


class Task:
    """Base of the kinds of tasks. Made from the data's description and the run's Config.

    train_size, eval_size: numbers of samples. metric: the key of `metrics` that says how good a model is, higher is better.
    fingerprint: a hash of the data, so that a run is only continued on the same. looks_at: the settings of Config that an
    object of the kind depends on, so that a search loads its data once; None: it may be any.
    """

    @dataclass
    class Data:
        """Fields of `dataset:` in the task's file."""

    metric = "accuracy"
    looks_at: tuple[str, ...] | None = None
    train_size: int
    eval_size: int
    fingerprint: str

    def __init__(self, data: Any, config: Any):
        raise TypeError(f"{type(self).__name__} must define __init__(data, config), which loads the data.")

    def batch(self, indices: Tensor, epoch: int | None) -> Any:
        """The samples `indices` of the training set in `epoch`, or of the evaluation set when epoch is None.

        Called in data workers. Random parts may depend on (seed, epoch, index) alone, so that neither the number of workers
        nor a resume changes them, and must leave the global random state as it is.
        """
        raise TypeError(f"{type(self).__name__} must define batch(indices, epoch).")

    def create_model(self, spec: Any, pretrained: bool) -> nn.Module:
        """The model of the setting `model`, with the outputs that this task needs."""
        raise TypeError(f"{type(self).__name__} must define create_model(spec, pretrained).")

    def creation(self, spec: Any) -> dict[str, Any] | None:
        """What timm.create_model was given besides the name, where the model is one of timm's: to make it again when loaded."""
        return None

    def example_inputs(self) -> tuple:
        """Positional inputs of a forward, a batch of one: for counting multiply-accumulates."""
        raise TypeError(f"{type(self).__name__} must define example_inputs().")

    def measure(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """(mean loss, 0-d, with gradient; sums over the batch as a vector, detached, for `metrics` to divide)."""
        raise TypeError(f"{type(self).__name__} must define measure(model, batch).")

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics, with `loss` among them, from sums of `measure` added over batches and processes."""
        raise TypeError(f"{type(self).__name__} must define metrics(sums).")


def load_task(name: str) -> TaskFile:
    """A task's YAML file, by shipped name or path, checked.

    Raises:
        ValueError: unknown name, key or kind with the nearest ones, or a value of the wrong type.
    """
    file, where = presets.path("tasks", name), f"in task {name!r}"
    task = TaskFile(**{key: typed(TaskFile, key, value, where) for key, value in presets.read_yaml(file).items()})
    schema = kind(task.kind).Data
    task.dataset = {key: typed(schema, key, value, f"in `dataset` of task {name!r}") for key, value in task.dataset.items()}
    source = str(task.dataset.get("source", ""))
    if source.startswith("."):  # a file's own neighbours, wherever the command runs
        task.dataset["source"] = str((file.parent / source).resolve())
    return task


def kind(name: str) -> type[Task]:
    """The class of a kind of task. Raises ConfigError with the nearest names."""
    if name not in KINDS and ":" not in name:
        raise ConfigError(f"Unknown kind of task {name!r}.{did_you_mean(name, KINDS)} One's own: 'module:Class'.")
    return imported(KINDS.get(name, name), "kind of task")


def build_task(file: TaskFile, config: Any) -> Task:
    """The task's object, with its data loaded. Raises ConfigError when the data cannot be had."""
    cls = kind(file.kind)
    return cls(cls.Data(**file.dataset), config)


def display_name(name: str) -> str:
    """How a task or search space is called in names and titles: a file's stem."""
    return Path(name).stem if presets.is_path(name) else name
