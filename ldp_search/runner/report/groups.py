"""Runs that differ in nothing but their seed, taken together: mean, standard deviation and count."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from ...config.settings import NOT_A_RESULT
from ...core.bits.space import FINAL_BUDGETS
from .load import Run, named

NOT_IDENTITY = {*NOT_A_RESULT, "seed", "log_every", "eval_every", "eval_batch_size", "trials", "storage", "workers"}
"""Settings that change when, where or how often a run happens, not what it computes on average over seeds."""
TELLING = (
    *("task", "model", "space", "policy", "target_cost", "cost_weight", *FINAL_BUDGETS, "containers"),
    *("bits", "weight_bits", "input_bits", "grad_bits"),
)
"""Keys that name a group before any others do."""


@dataclass
class Group:
    """Runs of one configuration."""

    runs: list[Run]
    label: str = ""

    @property
    def finished(self) -> list[Run]:
        """The runs that the figures of the group are taken over: a run still going on would spoil a mean."""
        return [run for run in self.runs if run.finished]

    def mean_sd(self, quantity: str) -> tuple[float | None, float | None, int]:
        """(mean, sample standard deviation, count) of a quantity over the finished runs; no sd for one run."""
        values = [value for run in self.finished if (value := getattr(run, quantity)) is not None]
        if not values:
            return None, None, 0
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else None
        return mean, spread, len(values)


def group_runs(runs: list[Run]) -> list[Group]:
    """Groups in the order in which they first occur, each with a label that tells it from the others."""
    groups: dict[str, Group] = {}
    for run in runs:
        groups.setdefault(json.dumps(identity(run), sort_keys=True, default=str), Group([])).runs.append(run)
    found = list(groups.values())
    _label(found)
    return found


def identity(run: Run) -> dict[str, Any]:
    """What the run computes, flat: its configuration, less its seed and what has no influence on the result."""
    flat = _flatten({k: v for k, v in run.config.items() if k not in NOT_IDENTITY})
    if not flat:  # no configuration: go by what the result tells
        flat = {key: run.result.get(key) for key in ("task", "model", "policy", "target_cost")}
    return flat


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a component is its name, and its options below it, in whatever form it is given."""
    if not isinstance(value, dict):
        return {path: value}
    flat = {path: value["name"]} if path and "name" in value else {}
    for key, inner in value.items():
        if not (path and key == "name"):
            flat |= _flatten(inner, f"{path}.{key}" if path else str(key))
    return flat


def _label(groups: list[Group]) -> None:
    """Policy and target, then, only among groups that these do not tell apart, whatever else differs."""
    for group in groups:
        run = group.runs[0]
        target = f", target {run.target_cost:g}" if run.target_cost is not None else ""
        group.label = f"{run.policy}{target}"
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.label, []).append(group)
    for members in alike.values():
        if len(members) > 1:
            _tell_apart(members)


def _tell_apart(groups: list[Group]) -> None:
    identities = [identity(group.runs[0]) for group in groups]
    keys = dict.fromkeys(key for one in identities for key in one)
    differing = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in identities}) > 1]
    differing.sort(key=lambda key: TELLING.index(key.split(".")[0]) if key.split(".")[0] in TELLING else len(TELLING))
    used: list[str] = []
    for key in differing:
        before = len({_values(one, used) for one in identities})
        if len({_values(one, [*used, key]) for one in identities}) > before:
            used.append(key)
    for group, one in zip(groups, identities, strict=True):
        words = [f"{key} {_short(one.get(key))}" for key in used if one.get(key) is not None]
        group.label = ", ".join([group.label, *words])


def _values(one: dict[str, Any], keys: list[str]) -> str:
    return json.dumps([one.get(key) for key in keys], default=str)


def _short(value: Any) -> str:
    if isinstance(value, list):
        same = len(value) == 2 and value[0] == value[1]
        return _short(value[0]) if same else "–".join(_short(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else named(value)
