"""A run folder as it is on disk, finished or not, complete or not: nothing here fails because a file is missing.

Only a folder that holds no run at all is an error; everything else that is absent or unreadable becomes a line of
`Run.notes`, which the report shows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...core.bits.space import container_widths
from ..tasks.metrics import METRICS, Metric, metric
from .locate import FILES, require_run
from .schedule import Schedule, read_schedule


@dataclass
class Run:
    """The contents of one run folder, or of a controller that is at work (`live.py`), which has none."""

    folder: Path | None
    name: str
    config: dict = field(default_factory=dict)
    config_text: str = ""
    metrics: list[dict] = field(default_factory=list)
    schedule: Schedule | None = None
    allocation: dict = field(default_factory=dict)
    result: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return bool(self.result)

    @property
    def progress(self) -> float:
        """How far the run is, from 0 to 1, as far as its files tell."""
        if self.finished:
            return 1.0
        seen = [p for row in self.metrics if (p := number(row.get("progress"))) is not None]
        if self.schedule is not None:
            seen.append(float(self.schedule.progress[-1]))
        return min(1.0, max(seen, default=0.0))

    def setting(self, key: str) -> Any:
        """A value of the configuration: at its top, or inside the search space or task where these are mappings."""
        for place in (self.config, self.config.get("space"), self.config.get("task")):
            if isinstance(place, dict) and place.get(key) is not None:
                return place[key]
        return self.result.get(key)

    @property
    def policy(self) -> str:
        return named(self.setting("policy")) or "unknown policy"

    @property
    def seed(self) -> Any:
        return self.setting("seed")

    @property
    def target_cost(self) -> float | None:
        return number(self.setting("target_cost"))

    def highest(self, kind: str) -> int | None:
        """The highest bits that the configuration allows for weight, input or grad."""
        ends = _ends(self.setting(f"{kind}_bits")) or (_ends(self.setting("bits")) if kind != "grad" else [])
        containers = None if kind == "grad" else self.setting("containers")
        if containers is None or not ends:
            return max(ends, default=None)
        return max((width for width in container_widths(containers) if width <= max(ends)), default=None)

    @property
    def bit_range(self) -> tuple[int, int] | None:
        """Lowest and highest bits that the configuration allows weights and inputs."""
        ends = [*_ends(self.setting("weight_bits")), *_ends(self.setting("input_bits"))] or _ends(self.setting("bits"))
        return (min(ends), max(ends)) if ends else None

    @property
    def static_name(self) -> str:
        """What costs are relative to: the same network at its highest bits throughout."""
        found = list(dict.fromkeys(top for kind in ("weight", "input") if (top := self.highest(kind)) is not None))
        return f"static {'/'.join(map(str, found))} bits" if found else "static highest bits"

    @property
    def metric_name(self) -> str:
        """What says how good the model is: as the result has it, else the first known metric that was evaluated."""
        rows = [row for row in self.metrics if row.get("split") in ("eval", "final")]
        seen = (name for name in METRICS if any(name in row for row in rows))
        return str(self.result.get("metric") or next(seen, "accuracy"))

    @property
    def metric(self) -> Metric:
        return metric(self.metric_name)

    @property
    def score(self) -> float | None:
        """The last value of the metric: of the finished model, else of the newest evaluation."""
        name = self.metric_name
        return first(self.result.get(name), self.last(name, "final"), self.last(name, "eval"))

    @property
    def mean_cost(self) -> float | None:
        """Training cost averaged over the run (so far), relative to the highest bits."""
        return first(self.result.get("mean_cost"), self.allocation.get("mean_relative_cost"), self.last("mean_cost"))

    @property
    def inference_cost(self) -> float | None:
        return first(self.result.get("inference_cost"), self.allocation.get("relative_inference_cost"))

    @property
    def latency(self) -> float | None:
        """As predicted for the final bits, relative to the highest; None without a table."""
        return first(self.result.get("latency"), self.allocation.get("relative_latency"))

    @property
    def latency_ms(self) -> float | None:
        return first(self.result.get("latency_ms"), self.allocation.get("latency_ms"))

    @property
    def weight_mib(self) -> float | None:
        return first(self.result.get("weight_mib"), self.allocation.get("weight_mib"))

    @property
    def counts_come(self) -> str:
        """When the MACs of its layers are known, while they are not."""
        if self.folder is None:
            return "after one forward, or from the start with example_inputs given to apply()"
        return "once allocation.json is written"

    @property
    def coverage(self) -> dict:
        found = self.allocation.get("coverage")
        return found if isinstance(found, dict) else {}

    @property
    def seconds(self) -> float | None:
        return first(self.result.get("seconds"), self.last("seconds"))

    def last(self, key: str, split: str | None = None) -> float | None:
        """The newest recorded value of a metric."""
        rows = (row for row in reversed(self.metrics) if split is None or row.get("split") == split)
        return next((value for row in rows if (value := number(row.get(key))) is not None), None)

    def curve(self, key: str, *splits: str) -> tuple[list[float], list[float]]:
        """(progress, value) of a metric over the run."""
        points = [(number(row.get("progress")), number(row.get(key))) for row in self.metrics if row.get("split") in splits]
        known = sorted((p, v) for p, v in points if p is not None and v is not None)
        return [p for p, _ in known], [v for _, v in known]


def load_run(folder: str | os.PathLike) -> Run:
    """Read a run folder.

    Raises:
        ReportError: not a folder, or none of a run's files is in it.
    """
    folder = Path(folder)
    require_run(folder)
    run = Run(folder, folder.resolve().name)
    for name, read in _READERS.items():
        try:
            read(run, folder / name)
        except FileNotFoundError:
            run.notes.append(f"{name} is not there yet ({FILES[name]}).")
        except (ValueError, TypeError, OSError, yaml.YAMLError) as error:  # JSON and Parquet errors are ValueErrors
            run.notes.append(f"{name} could not be read ({FILES[name]}): {' '.join(str(error).split())[:200]}.")
    return run


def load_runs(given: Iterable[str | os.PathLike | Run]) -> list[Run]:
    """Read several run folders, each once, under names that tell them apart; what is read already is taken as it is."""
    runs: dict[Path | int, Run] = {}
    for place in given:
        run = place if isinstance(place, Run) else load_run(place)
        runs.setdefault(id(run) if run.folder is None else run.folder.resolve(), run)
    for depth in range(2, 6):
        counts = [run.name for run in runs.values()]
        for run in runs.values():
            if run.folder is not None and counts.count(run.name) > 1:
                run.name = "/".join(run.folder.resolve().parts[-depth:])
    for name in {run.name for run in runs.values()}:
        alike = [run for run in runs.values() if run.name == name]
        for number, run in enumerate(alike, start=1) if len(alike) > 1 else ():
            run.name = f"{name} ({number})"
    return list(runs.values())


def _ends(value: Any) -> list[int]:
    """The ends of a range of bits, given as a pair or as one number."""
    return [int(n) for v in (value if isinstance(value, list | tuple) else [value]) if (n := number(v)) is not None]


def _read_config(run: Run, path: Path) -> None:
    run.config_text = path.read_text(encoding="utf-8")
    run.config = _mapping(yaml.safe_load(run.config_text))


def _read_metrics(run: Run, path: Path) -> None:
    """JSON lines. A line cut off by a crash is counted, not fatal; a step repeated after a resume counts once."""
    rows, broken = {}, 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = _mapping(json.loads(line))
            rows[(row.get("split"), row.get("step"), None if "step" in row else len(rows))] = row
        except (ValueError, TypeError):
            broken += 1
    run.metrics = sorted(rows.values(), key=lambda row: number(row.get("step")) or 0)
    if broken:
        run.notes.append(f"metrics.jsonl has {broken} unreadable line{'s' * (broken > 1)}, left out here.")


def _read_schedule(run: Run, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(path)
    run.schedule = read_schedule(path)


def _read_allocation(run: Run, path: Path) -> None:
    """Until there is one, what the run has counted at its start: its layers without bits, and the coverage."""
    counted = path.with_name("layers.json")
    found = counted if counted.is_file() and not path.exists() else path
    run.allocation = _mapping(json.loads(found.read_text(encoding="utf-8")))


def _read_result(run: Run, path: Path) -> None:
    run.result = _mapping(json.loads(path.read_text(encoding="utf-8")))


_READERS = {
    "config.yaml": _read_config,
    "metrics.jsonl": _read_metrics,
    "schedule.parquet": _read_schedule,
    "allocation.json": _read_allocation,
    "result.json": _read_result,
}


def _mapping(value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"a mapping is expected, found {type(value).__name__}")
    return value


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (absent, text, NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def first(*values: Any) -> float | None:
    """The first of the values that is a number."""
    return next((n for value in values if (n := number(value)) is not None), None)


def named(value: Any) -> str:
    """The name of a component, task or model, given by name or as a mapping with ``name``."""
    return str((value.get("name") or "") if isinstance(value, dict) else ("" if value is None else value))
