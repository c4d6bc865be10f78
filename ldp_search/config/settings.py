"""The fields of a run: their defaults, what --help says of them, their rules; and all settings of a run, resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..core.bits.space import COMPONENT_KINDS, SearchSpace
from ..core.messages import did_you_mean
from .overlay import ConfigError
from .study import StudyOptions
from .task_file import TaskFile


def _is(default: Any, about: str) -> Any:
    """A field with its default and the line that --help shows."""
    factory = {"default_factory": default.copy} if isinstance(default, list | dict) else {"default": default}
    return field(metadata={"help": about}, **factory)


@dataclass
class Config:
    """Settings of a run, besides those of the search space."""

    task: str = _is("digits", "a shipped task, or the path of a YAML file like those in tasks/")
    name: str | None = _is(None, "which data set of a task that holds several (task=glue name=mrpc)")
    model: Any = _is("timm:cifar_resnet20", "ALIAS, timm:NAME, hf:ID or module:function; options as model.OPTION=VALUE")
    space: str = _is("ldp", "a shipped search space, or the path of a YAML file like those in search_spaces/")
    recipe: str = _is("full", "full, or quick for the task's short recipe")
    config: str | None = _is(None, "a YAML file of settings, such as a search's best.yaml; words beside it count more")
    output: str | None = _is(None, "folder of this run (default: runs/TASK-MODEL-POLICY-TIME)")
    data: str | None = _is(None, "folder or file with the task's data, instead of the hub")
    dataset: dict[str, Any] = _is({}, "fields of the task's `dataset:`, as dataset.FIELD=VALUE")
    bad_rows: str = _is("refuse", "rows that cannot be used: refuse them all with their places, or skip them")
    tokenizer: str | None = _is(None, "of text: an id or folder (default: the model's; from scratch: trained on the text)")
    seed: int = _is(0, "of everything random; the same seed and settings give the same result")
    epochs: int | None = _is(None, "length of the training in epochs ...")
    steps: int | None = _is(None, "... or in optimizer steps")
    batch_size: int = _is(128, "samples of an optimizer step, over all processes and accumulated parts")
    eval_batch_size: int = _is(500, "samples at once in evaluation, on each process")
    accumulate: int = _is(1, "parts that a batch is computed in, one after the other, to save memory")
    lr: float = _is(0.1, "learning rate at its highest")
    optimizer: Any = _is("sgd", "sgd, adamw, or another of timm's; options as optimizer.OPTION=VALUE")
    momentum: float = _is(0.9, "of sgd and its relatives")
    weight_decay: float = _is(1e-4, "of the weights (never of the bits)")
    lr_schedule: str = _is("multistep", "multistep, cosine, linear or constant")
    milestones: list[float] = _is([0.5, 0.75], "shares of the run after which multistep multiplies lr by gamma")
    gamma: float = _is(0.1, "the factor of multistep")
    warmup: float = _is(0.0, "share of the run in which lr rises from 0")
    decay_norms: bool = _is(True, "whether weight_decay also holds for biases and norms")
    head_lr_scale: float = _is(1.0, "factor on lr for the head: what follows the encoder, which may be pretrained")
    ema: float | None = _is(None, "decay of a moving average of the weights, which is then evaluated and saved")
    clip_norm: float | None = _is(None, "largest norm of the gradient")
    precision: str = _is("fp32", "fp32 or bf16 (autocast)")
    compile: bool = _is(False, "compile the model with torch.compile")
    overhead: bool = _is(True, "measure at the start what a step costs against the plain one, where that takes seconds")
    pretrained: bool = _is(False, "start from published weights")
    limit: int | None = _is(None, "train on this many samples only, drawn by the seed")
    eval_limit: int | None = _is(None, "evaluate on this many samples only")
    data_workers: int = _is(0, "processes that prepare batches; 0: the training process itself")
    eval_every: int = _is(1, "epochs between evaluations")
    log_every: int | None = _is(None, "steps between lines of metrics.jsonl (default: about 400 lines a run)")
    checkpoint_every: str = _is("60s", "time between checkpoints, as 90s or 10min, or a number of steps")
    resume: str = _is("auto", "auto: go on if output holds an unfinished run; never; or a run's folder to go on from")
    export: list[str] = _is([], "files to leave at the end: onnx, packed, torch (also later: python -m ldp_search.export)")
    trackers: list[str] = _is(["tensorboard"], "Accelerate's trackers (wandb, trackio, mlflow, ...), or none")

    def check(self) -> None:
        """Raises ConfigError when a value is out of its range."""
        for names, fits, rule in _RULES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ConfigError(f"{name} must be {rule}; received {value!r}.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of its known values; received {getattr(self, name)!r}."
                                  f"{did_you_mean(getattr(self, name), known)}")  # fmt: skip
        check_formats(self.export)
        interval(self.checkpoint_every)
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError("The length of a training is given by epochs=... or by steps=...; received "
                              f"{'both' if self.steps else 'neither'}.")  # fmt: skip


_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("epochs", "steps", "batch_size", "eval_batch_size", "accumulate", "limit", "eval_limit", "eval_every", "log_every"),
     lambda v: v >= 1, "at least 1"),
    (("seed", "data_workers", "weight_decay", "momentum"), lambda v: v >= 0, "0 or more"),
    (("lr", "gamma", "clip_norm", "head_lr_scale"), lambda v: v > 0, "greater than 0"),
    (("warmup",), lambda v: 0 <= v < 1, "a share of the run, 0 <= warmup < 1"),
    (("ema",), lambda v: 0 < v < 1, "between 0 and 1"),
    (("milestones",), lambda v: all(0 < x < 1 for x in v) and v == sorted(v), "rising shares of the run, e.g. [0.5, 0.75]"),
)  # fmt: skip
CHOICES = {"lr_schedule": ("multistep", "cosine", "linear", "constant"), "precision": ("fp32", "bf16"),
           "recipe": ("full", "quick"), "bad_rows": ("refuse", "skip")}  # fmt: skip
EXPORT_FORMATS = ("onnx", "packed", "torch")
COMPONENTS = ("dataset", "model", "optimizer", *COMPONENT_KINDS)
LISTS = ("trackers", "export", "milestones", "bits", "weight_bits", "input_bits", "grad_bits", "skip", "containers")
RUN_FIELDS = {f.name: f for f in dataclasses.fields(Config)}
SPACE_FIELDS = {f.name: f for f in dataclasses.fields(SearchSpace) if f.name not in RUN_FIELDS}  # both have a seed: one seed
NOT_A_RESULT = ("config", "output", "resume", "trackers", "data_workers", "checkpoint_every", "data", "bad_rows",
                "overhead", "export")  # fmt: skip
"""Settings that may differ between a run and its continuation: the result does not depend on them (data is compared itself)."""


@dataclass
class Settings:
    """A resolved configuration. `values` is all of it as plain data, as config.yaml holds it; `asked` what was given by
    words and config=FILE alone. `study` is there when a search is wanted.
    """

    config: Config
    space: SearchSpace
    task: TaskFile
    values: dict[str, Any]
    asked: dict[str, Any] = field(default_factory=dict)
    study: StudyOptions | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on: a checkpoint is continued only under the same."""
        kept = {key: value for key, value in self.values.items() if key not in NOT_A_RESULT}
        return kept | {"task file": {"kind": self.task.kind, "dataset": self.task.dataset}}


def check_formats(formats: list[str]) -> None:
    """ConfigError for an unknown format of an export, with the nearest one."""
    for name in formats:
        if name not in EXPORT_FORMATS:
            raise ConfigError(f"Unknown export format {name!r}.{did_you_mean(name, EXPORT_FORMATS)}")


def interval(text: str) -> tuple[str, float]:
    """("steps", n) or ("seconds", n) from checkpoint_every. Raises ConfigError."""
    for unit, seconds in (("min", 60), ("s", 1), ("h", 3600), ("", None)):
        number = text.removesuffix(unit).strip()
        if text.endswith(unit) and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return ("steps", float(number)) if seconds is None else ("seconds", float(number) * seconds)
    raise ConfigError(f"checkpoint_every must be a time (90s, 10min, 1h) or a number of steps (500); received {text!r}.")
