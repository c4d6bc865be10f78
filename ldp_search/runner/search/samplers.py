"""Samplers and pruners by name, with defaults for the number of trials.

A sampler here is a function of what the study holds and of (seed, trial number): a trial whose worker was killed while its
values were drawn draws the same, and one worker after the other finds the same values as one alone.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from ...config.overlay import ConfigError, as_component
from ...core.messages import did_you_mean
from .outer_space import OuterSpace

FEW_TRIALS = 40
"""Below it the median of all is a better yardstick than Hyperband's brackets, which want ten trials each."""
MOST_CELLS = 100_000


class Seeded(BaseSampler):
    """Another sampler, made anew for every trial, with a seed of its own; and for every parameter that is drawn by itself.

    A trial that is taken up again does not draw what it had drawn before: the rest must not depend on how much that was.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int):
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: Any, trial: Any) -> None:
        self.inner = self._made_for(f"{trial.number}")
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        alone = self._made_for(f"{trial.number}/{param_name}")
        return alone.sample_independent(study, trial, param_name, param_distribution)

    def _made_for(self, what: str) -> BaseSampler:
        return self.make(random.Random(f"{self.seed}/{what}").getrandbits(32))

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self.inner.after_trial(study, trial, state, values)


class AmongFeasible(BasePruner):
    """Another pruner that compares a trial with the feasible ones only: one that spends more than allowed is no yardstick."""

    def __init__(self, inner: BasePruner):
        self.inner = inner

    def prune(self, study: Any, trial: Any) -> bool:
        return self.inner.prune(_Feasible(study), trial)


class _Feasible:
    """A study as far as its feasible trials go."""

    def __init__(self, study: Any):
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[Any]:
        return [t for t in self._study.get_trials(deepcopy, states) if all(v <= 0 for v in t.constraints.values())]


def make_sampler(spec: Any, trials: int, pareto: bool, seed: int) -> BaseSampler:
    """The sampler of a setting. Raises ConfigError: an option that it does not have, or a package that it needs."""
    options = as_component(spec)
    name = options.pop("name", "auto")
    if name == "auto":
        name = "nsgaii" if pareto and trials >= 1000 else "tpe"
    known = {
        "tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler, "qmc": optuna.samplers.QMCSampler,
        "grid": optuna.samplers.RandomSampler, "gp": optuna.samplers.GPSampler, "nsgaii": optuna.samplers.NSGAIISampler,
        "cmaes": optuna.samplers.CmaEsSampler,
    }  # fmt: skip
    defaults: dict[str, Any] = {}
    if name == "tpe":
        defaults = {"n_startup_trials": max(4, min(10, trials // 4)), "multivariate": True, "group": True}
    _check_options("sampler", name, known[name], options)
    if name == "qmc":  # one sequence for all trials, continued through the storage
        return _made("sampler", name, known[name], {"scramble": True, "warn_independent_sampling": False} | options, seed)
    return Seeded(lambda number: _made("sampler", name, known[name], defaults | options, number), seed)


def _made(kind: str, name: str, cls: type, options: dict[str, Any], seed: int) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return cls(**options, seed=seed)
    except ImportError as error:
        raise ConfigError(f"{kind}={name} needs another package: {' '.join(str(error).split())[:200]}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind}={name} cannot be made with {options}: {error}") from error


def _check_options(kind: str, name: str, cls: type, options: dict[str, Any]) -> None:
    known = [p for p in inspect.signature(cls.__init__).parameters if p not in ("self", "seed")]
    for option in options:
        if option not in known:
            raise ConfigError(f"{kind}={name} has no option {option!r}.{did_you_mean(option, known)}")


def make_pruner(spec: Any, trials: int, pareto: bool, reports: int) -> BasePruner:
    """The pruner of a setting; `reports` is how often a trial reports. Raises ConfigError."""
    options = as_component(spec)
    name = options.pop("name", "auto")
    if pareto or reports < 2:
        name = "none"
    elif name == "auto":
        name = "median" if trials < FEW_TRIALS or reports < 9 else "hyperband"
    pruners, warmup = optuna.pruners, max(2, math.ceil(reports / 3))  # at first, accuracies are noise
    classes: dict[str, tuple[type, dict[str, Any]]] = {
        "none": (pruners.NopPruner, {}),
        "median": (pruners.MedianPruner, {"n_startup_trials": 5, "n_warmup_steps": warmup}),
        "percentile": (pruners.PercentilePruner, {"percentile": 25.0, "n_warmup_steps": warmup}),
        "hyperband": (pruners.HyperbandPruner, {"min_resource": max(1, reports // 9), "max_resource": reports}),
        "halving": (pruners.SuccessiveHalvingPruner, {"min_resource": max(1, reports // 9)}),
        "patient": (pruners.PatientPruner, {"wrapped_pruner": None, "patience": max(2, reports // 3)}),
        "threshold": (pruners.ThresholdPruner, {"lower": 0.0}),
    }
    cls, defaults = classes[name]
    _check_options("pruner", name, cls, options)
    try:
        pruner = cls(**(defaults | options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pruner={name} cannot be made with {defaults | options}: {error}") from error
    return AmongFeasible(pruner) if name in ("median", "percentile") else pruner


def grid(space: OuterSpace, setting: Any, trials: int, seed: int) -> list[dict[str, Any]]:
    """Optuna's parameters of at most `trials` cells of a grid, in an order that the seed draws.

    A range has as many points as let the whole grid fit the number of trials best, at least its two ends.
    """
    points = 2
    while _cells(space, points + 1) <= trials and points < 50:
        points += 1
    cells, seen = [], set()
    if _cells(space, points) > MOST_CELLS:
        raise ConfigError(f"A grid of {_cells(space, points):,} cells is too large: take sampler=random, or fix settings.")
    for values in itertools.product(*[_points(p, points) for p in space.params]):
        chosen: dict[str, Any] = {}
        labels: dict[str, Any] = {}
        for param, value in zip(space.params, values, strict=True):
            if param.exists(chosen, setting):
                chosen[param.key], labels[param.name] = param.value(value), value
        if (text := json.dumps(labels)) not in seen:
            seen.add(text)
            cells.append(labels)
    random.Random(seed).shuffle(cells)
    return cells[:trials]


def _points(param: Any, points: int) -> list[Any]:
    """Labels of a parameter's grid."""
    d = param.distribution
    if isinstance(d, optuna.distributions.CategoricalDistribution):
        return list(d.choices)
    shares = [i / (points - 1) for i in range(points)]
    values = [d.low * (d.high / d.low) ** s if d.log else d.low + (d.high - d.low) * s for s in shares]
    if isinstance(d, optuna.distributions.IntDistribution):
        return sorted({d.low + round((v - d.low) / d.step) * d.step for v in values})
    if d.step is not None:
        return sorted({round(d.low + round((v - d.low) / d.step) * d.step, 12) for v in values})
    return [min(max(v, d.low), d.high) for v in values]


def _cells(space: OuterSpace, points: int) -> int:
    total = 1
    for param in space.params:
        total *= len(_points(param, points))
    return total
