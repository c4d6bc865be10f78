"""The `outer:` section of a search space: what Optuna searches around the learned bits.

    outer:
      max_cost: 0.45                                          # the constraint on the training cost
      params:
        lr: {low: 0.03, high: 0.3, log: true}                 # a range; both ends integers: integers
        policy: [learned, cyclic]                             # a choice
        policy.cycles: {low: 2, high: 32, log: true, if: {policy: cyclic}}
        policy.lr@ldp_sgd: {low: 0.1, high: 3, log: true, if: {policy: ldp_sgd}}
      enqueue:                                                # tried first, after the defaults
        - {policy: cyclic, policy.cycles: 8}

A parameter is a setting as the command line takes it. `if:` names settings and the values (one or a list) with which the
parameter exists. What follows an @ only tells apart several parameters for the same setting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ...config.overlay import ConfigError
from ...core.messages import did_you_mean

RANGE_KEYS = ("low", "high", "step", "log", "choices", "if")
Setting = Callable[[str], Any]
"""From a setting's key to its value outside of the search."""


@dataclass
class Param:
    """One searched setting. name: Optuna's; key: the setting's. decode: categorical label -> value, where they differ."""

    name: str
    key: str
    distribution: BaseDistribution
    condition: dict[str, list[Any]] = field(default_factory=dict)
    decode: dict[str, Any] = field(default_factory=dict)

    def exists(self, chosen: dict[str, Any], setting: Setting) -> bool:
        """Whether the parameter has a meaning beside the values chosen so far."""
        return all((chosen[key] if key in chosen else setting(key)) in values for key, values in self.condition.items())

    def suggest(self, trial: Any) -> Any:
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return self.value(trial.suggest_categorical(self.name, d.choices))
        suggest = trial.suggest_int if isinstance(d, IntDistribution) else trial.suggest_float
        return suggest(self.name, d.low, d.high, step=d.step, log=d.log)

    def value(self, label: Any) -> Any:
        return self.decode.get(label, label) if isinstance(label, str) else label

    def label(self, value: Any) -> Any:
        """The inverse of `value`, None where the value is out of range."""
        label, d = json.dumps(value) if isinstance(value, list | dict) else value, self.distribution
        if isinstance(d, CategoricalDistribution):
            return label if label in d.choices else None
        if isinstance(label, bool) or not isinstance(label, int | float) or not d.low <= label <= d.high:
            return None
        return label if isinstance(d, FloatDistribution) or label == int(label) else None

    def ends(self) -> list[Any]:
        """The values at the ends of a range, or all choices."""
        if isinstance(self.distribution, CategoricalDistribution):
            return [self.value(label) for label in self.distribution.choices]
        return [self.distribution.low, self.distribution.high]


@dataclass
class OuterSpace:
    """The searched settings in the order in which they are suggested, a bound on the cost, and what to try first."""

    params: list[Param]
    max_cost: float | None = None
    enqueue: list[dict[str, Any]] = field(default_factory=list)

    def suggest(self, trial: Any, setting: Setting) -> dict[str, Any]:
        """{setting: value} of a trial; those that the trial has already keep their values."""
        chosen: dict[str, Any] = {}
        for param in self.params:
            if param.exists(chosen, setting):
                chosen[param.key] = param.suggest(trial)
        return chosen

    def first_trials(self, setting: Setting) -> list[dict[str, Any]]:
        """Optuna's parameters of the trials to begin with: the defaults, then what `enqueue` lists, each completed by them."""
        trials: list[dict[str, Any]] = []
        for asked in [{}, *self.enqueue]:
            chosen: dict[str, Any] = {}
            labels: dict[str, Any] = {}
            for param in self.params:
                if param.exists(chosen, setting):
                    given = next((asked[name] for name in (param.name, param.key) if name in asked), None)
                    value = setting(_below(param.key, chosen)) if given is None else given
                    if (label := param.label(value)) is not None:
                        chosen[param.key], labels[param.name] = value, label
            if labels not in trials:
                trials.append(labels)
        return trials

    def without(self, keys: Iterable[str]) -> OuterSpace:
        """The space less the settings that somebody has fixed."""
        keys = set(keys)
        return OuterSpace([p for p in self.params if p.key not in keys], self.max_cost, self.enqueue)

    def describe(self) -> dict[str, Any]:
        """Plain data that tells two spaces apart."""
        rows = {}
        for p in self.params:
            made = {k: v for k, v in p.distribution._asdict().items() if v not in (None, False)}
            rows[p.name] = made | ({"if": p.condition} if p.condition else {})
        return rows


def _below(key: str, chosen: dict[str, Any]) -> str:
    """A component's option belongs to the component that is chosen: `policy.cycles` of {policy: cyclic} is looked up there."""
    head, dot, option = key.partition(".")
    return f"{head}[{chosen[head]}].{option}" if dot and head in chosen else key


def parse(outer: Any, where: str) -> OuterSpace:
    """An `outer:` section, checked for itself; whether its settings exist is checked by who knows them.

    Raises:
        ConfigError: an unknown key, a range that is none, or a condition on what comes later; with the place and the remedy.
    """
    if not isinstance(outer, dict) or not outer.get("params"):
        raise ConfigError(f"A search needs `outer: {{params: ...}}` {where}; received {outer!r}. "
                          "Take a space that has one: space=ldp, or see docs/search.md.")  # fmt: skip
    for key in outer:
        if key not in ("params", "max_cost", "enqueue"):
            raise ConfigError(f"Unknown key {key!r} in `outer` {where}.{did_you_mean(key, ['params', 'max_cost', 'enqueue'])}")
    if not isinstance(outer["params"], dict):
        raise ConfigError(f"`outer.params` maps settings to ranges {where}; received {outer['params']!r}.")
    params = [_param(name, spec, where) for name, spec in outer["params"].items()]
    keys = [p.key for p in params]
    for place, param in enumerate(params):
        for key in param.condition:
            if key in keys and key not in keys[:place]:
                raise ConfigError(f"The condition of {param.name!r} is on {key!r}, which must stand above it {where}.")
    max_cost, enqueue = outer.get("max_cost"), outer.get("enqueue") or []
    if max_cost is not None and (isinstance(max_cost, bool) or not isinstance(max_cost, int | float) or max_cost <= 0):
        raise ConfigError(f"`outer.max_cost` must be a number above 0 {where}; received {max_cost!r}.")
    space = OuterSpace(params, max_cost, enqueue)
    _check_enqueued(space, where)
    return space


def _check_enqueued(space: OuterSpace, where: str) -> None:
    if not isinstance(space.enqueue, list) or not all(isinstance(entry, dict) for entry in space.enqueue):
        raise ConfigError(f"`outer.enqueue` is a list of mappings, one a trial {where}; received {space.enqueue!r}.")
    for entry in space.enqueue:
        for key, value in entry.items():
            params = [p for p in space.params if key in (p.name, p.key)]
            if not params:
                known = did_you_mean(key, [p.name for p in space.params])
                raise ConfigError(f"`outer.enqueue` sets {key!r}, which is not searched {where}.{known}")
            if all(p.label(value) is None for p in params):
                raise ConfigError(f"`outer.enqueue` sets {key}={value!r}, outside of its range {where}.")


def _param(name: str, spec: Any, where: str) -> Param:
    where = f"in `outer.params.{name}` {where}"
    if isinstance(spec, list):
        spec = {"choices": spec}
    if not isinstance(spec, dict):
        raise ConfigError(f"A range is a list of choices or {{low: ..., high: ...}} {where}; received {spec!r}.")
    for key in spec:
        if key not in RANGE_KEYS:
            raise ConfigError(f"Unknown key {key!r} {where}.{did_you_mean(key, RANGE_KEYS)}")
    condition = {key: v if isinstance(v, list) else [v] for key, v in (spec.get("if") or {}).items()}
    key = name.partition("@")[0]
    if "choices" in spec:
        return _choice(name, key, spec, condition, where)
    return Param(name, key, _range(spec, where), condition)


def _choice(name: str, key: str, spec: dict[str, Any], condition: dict[str, Any], where: str) -> Param:
    choices = spec["choices"]
    if not isinstance(choices, list) or not choices or set(spec) - {"choices", "if"}:
        raise ConfigError(f"A choice is a list of at least one value, without low, high, step or log {where}; received {spec}.")
    decode = {json.dumps(c): c for c in choices if isinstance(c, list | dict)}  # Optuna takes plain values only
    labels = [json.dumps(c) if isinstance(c, list | dict) else c for c in choices]
    if len({json.dumps(label) for label in labels}) < len(labels):
        raise ConfigError(f"The choices must differ from each other {where}; received {choices}.")
    return Param(name, key, CategoricalDistribution(labels), condition, decode)


def _range(spec: dict[str, Any], where: str) -> BaseDistribution:
    ends = [spec.get("low"), spec.get("high")]
    numbers = [v for v in [*ends, spec.get("step", 1)] if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 3 or not ends[0] < ends[1]:
        raise ConfigError(f"A range needs numbers low < high (and a number as step) {where}; received {spec}.")
    log, step = bool(spec.get("log", False)), spec.get("step")
    if log and (ends[0] <= 0 or step is not None):
        raise ConfigError(f"A logarithmic range needs low > 0 and takes no step {where}; received {spec}.")
    try:
        if all(isinstance(v, int) for v in numbers):
            return IntDistribution(*ends, log=log, step=step or 1)
        return FloatDistribution(*map(float, ends), log=log, step=step)
    except ValueError as error:
        raise ConfigError(f"{error} {where}; received {spec}.") from error
