"""The settings of a study: typed like those of a run, given beside them on the command line."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.messages import did_you_mean
from .overlay import ConfigError, as_component

PLAN = "ldp_search:plan"

SAMPLERS = ("auto", "tpe", "random", "qmc", "grid", "gp", "nsgaii", "cmaes")
PRUNERS = ("auto", "none", "median", "percentile", "hyperband", "halving", "patient", "threshold")
COSTS = {
    "training_cost": "bit operations of the whole training, relative to the highest bits of the space as given",
    "inference_cost": "bit operations of a forward pass at the final bits, relative likewise",
    "weight_mib": "size of the weights at the final bits, in MiB",
    "latency": "predicted latency at the final bits, relative to the highest bits of the space as given (needs latency=TABLE)",
}
SCHEMES = ("sqlite", "postgresql", "mysql", "grpc")


def _is(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass
class StudyOptions:
    """How a study is searched. What the trials are follows from the settings of a run and the space's `outer:` section."""

    trials: int | None = _is(None, "search: so many trials in total, those already in the storage included")
    storage: str | None = _is(None, "journal file, or sqlite:///, postgresql://, grpc://HOST:PORT (default: in output)")
    study: str | None = _is(None, "name of the study within the storage (default: TASK-MODEL-SPACE)")
    workers: int = _is(1, "processes that work on trials at the same time")
    pareto: bool = _is(False, "two objectives, metric and cost, instead of the metric under a bound on the cost")
    cost: str = _is("training_cost", f"the cost meant: {', '.join(COSTS)}")
    max_cost: float | None = _is(None, "bound on the cost (default: the space's outer.max_cost; none if it has none)")
    seeds: int = _is(1, "trainings a trial, with seeds seed, seed + 1, ...; the metric is their mean")
    sampler: Any = _is("auto", f"{', '.join(SAMPLERS)}; options of Optuna's class as sampler.OPTION=VALUE")
    pruner: Any = _is("auto", f"{', '.join(PRUNERS)}; options as pruner.OPTION=VALUE")
    isolation: str = _is("none", "process: every trial in a process of its own")
    retries: int = _is(5, "how often a trial whose worker died without progress is taken up again")
    artifacts: str | None = _is(None, "folder of the files that optuna-dashboard shows (default: artifacts in output)")

    def check(self) -> None:
        """Raises ConfigError when a value is out of its range."""
        for name, least in (("trials", 1), ("workers", 1), ("seeds", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}; received {value!r}.")
        known = {"cost": COSTS, "isolation": ("none", "process"), "sampler": SAMPLERS, "pruner": PRUNERS}
        for name, values in known.items():
            given = str(as_component(getattr(self, name)).get("name", "auto"))
            if given not in values:
                raise ConfigError(f"Unknown {name} {given!r}.{did_you_mean(given, values)}")
        if self.max_cost is not None and self.max_cost <= 0:
            raise ConfigError(f"max_cost must be greater than 0; received {self.max_cost!r}.")
        if self.storage is not None:
            check_storage(self.storage, self.workers)
        if self.pareto and as_component(self.pruner).get("name") not in ("auto", "none", None):
            raise ConfigError("pareto=true has two objectives, and Optuna prunes with one only: leave pruner= out.")


OPTION_FIELDS = {f.name: f for f in dataclasses.fields(StudyOptions)}


def is_url(storage: str) -> bool:
    return "://" in storage


def check_storage(storage: str, workers: int = 1) -> None:
    """Raises ConfigError for what is neither a journal file nor a URL that Optuna knows, as far as a look can tell."""
    if is_url(storage):
        scheme = re.split(r"[+:]", storage)[0]
        if scheme not in SCHEMES:
            raise ConfigError(f"Unknown storage {storage!r}.{did_you_mean(scheme, SCHEMES)} Or the path of a journal file.")
        if scheme == "sqlite" and workers > 1:
            raise ConfigError("SQLite locks up under several workers: give a journal file (storage=study.journal) or "
                              "postgresql://USER@HOST/DATABASE.")  # fmt: skip
        return
    if re.match(r"(sqlite|postgres|postgresql|mysql|grpc)\b.*:", storage):
        raise ConfigError(f"A storage URL has :// after its scheme; received {storage!r}.")
    path = Path(storage).expanduser()
    if path.is_dir():
        raise ConfigError(f"storage must be a journal file, but {storage!r} is a folder. Give {path / 'study.journal'}.")
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            head = file.read(64)
        if head.startswith(b"SQLite format 3"):
            raise ConfigError(f"{storage!r} is an SQLite database: write storage=sqlite:///{storage}.")
        if b'"op_code"' not in head:
            raise ConfigError(f"storage must be a journal of Optuna's, but {storage!r} holds something else. Give a new file.")
