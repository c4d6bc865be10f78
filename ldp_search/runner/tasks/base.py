"""What a kind of task is: the object that gives the training loop its batches, losses and metrics."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...config.overlay import ConfigError
from ...config.task_file import TaskFile, kind


class Task(ABC):
    """Base of the kinds of tasks. Made from the data's description and the run's Config.

    train_size, eval_size: numbers of samples. metric: the key of `metrics` that says how good a model is (`metrics.py` knows
    in which direction). fingerprint: a hash of the data, so that a run is only continued on the same. notes: lines for the
    user, about rows that were left out for instance. looks_at: the settings of Config that an object of the kind depends on,
    so that a search loads its data once; None: it may be any. names: of the classes, where there are any.
    """

    @dataclass
    class Data:
        """Fields of `dataset:` in the task's file."""

    metric = "accuracy"
    looks_at: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    names: Sequence[str] = ()
    train_size: int
    eval_size: int
    fingerprint: str

    @abstractmethod
    def __init__(self, data: Any, config: Any):
        """Loads the data."""

    @abstractmethod
    def create_model(self, spec: Any, pretrained: bool) -> nn.Module:
        """The model of the setting `model`, with the outputs that this task needs. Called before any batch is asked for, so
        that what a model demands of its inputs (its own size, mean, tokenizer) can be taken over.
        """

    def creation(self, spec: Any) -> dict[str, Any] | None:
        """What timm.create_model was given besides the name, where the model is one of timm's: to make it again when loaded."""
        return None

    @abstractmethod
    def example_inputs(self) -> tuple | dict[str, Any]:
        """Inputs of a forward, positional or by name, a batch of one: for counting multiply-accumulates."""

    @abstractmethod
    def batch(self, indices: Tensor, epoch: int | None) -> Any:
        """The samples `indices` of the training set in `epoch`, or of the evaluation set when epoch is None.

        Called in data workers. Random parts may depend on (seed, epoch, index) alone, so that neither the number of workers
        nor a resume changes them, and must leave the global random state as it is.
        """

    @abstractmethod
    def measure(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """(mean loss, 0-d, with gradient; sums over the batch as a vector, detached, for `metrics` to divide).

        The sums of all batches are added, over processes too; those of training may be shorter than those of evaluation.
        """

    @abstractmethod
    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics, with `loss` among them, from sums of `measure` added over batches and processes."""

    def save_extras(self, folder: Path) -> None:
        """Write what the saved model needs beside it to be used: the names of the classes (a kind adds a tokenizer, say)."""
        if self.names:
            (folder / "classes.json").write_text(json.dumps(list(self.names)) + "\n", encoding="utf-8")

    def examples(self, model: nn.Module) -> dict[str, tuple[bytes, str]]:
        """{file name: (PNG, caption)} of some predictions beside the truth, for the report."""
        return {}


def build_task(file: TaskFile, config: Any) -> Task:
    """The task's object, with its data loaded. Raises ConfigError when the data cannot be had, or the kind is incomplete."""
    cls = kind(file.kind)
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(f"The kind of task {file.kind!r} must define {' and '.join(missing)}, as runner.tasks.Task says.")
    return cls(cls.Data(**file.dataset), config)
