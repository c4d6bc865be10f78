"""The same search for a training function of the user's own.

def train(trial):
    model = ldp_search.apply(make_model(), trial.space)
    ...                                                  # any loop, with ldp.step() in it; trial["lr"], trial.seed
    return accuracy, ldp_search.controller(model)

best = ldp_search.tune(train, space="ldp", storage="study.journal", trials=30)
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...api import resolve_space
from ...config import presets
from ...config.overlay import ConfigError, overlay, parse_words
from ...config.settings import COMPONENTS, LISTS, SPACE_FIELDS
from ...config.study import OPTION_FIELDS, StudyOptions, is_url
from ...core.bits.space import SearchSpace
from .best import Best, as_best
from .command import quiet_libraries
from .dashboard import announce, dashboard_command
from .objective import Job, Outcome
from .outer_space import parse
from .searched_settings import option_of
from .storage import open_storage
from .study import Plan, best_trial, open_study
from .worker import Hopeless, Worker


@dataclass
class TrialConfig:
    """What a training function gets. space: for `ldp_search.apply`. values: every searched setting, those of the space too.

    folder: of this trial, for checkpoints; after a kill the function is called again with the same folder and values.
    """

    number: int
    space: SearchSpace
    values: dict[str, Any]
    seed: int
    folder: Path
    job: Job

    def __getitem__(self, key: str) -> Any:
        """A searched setting, such as trial["lr"]. Raises KeyError with those that there are."""
        if key not in self.values:
            raise KeyError(f"{key!r} is not searched in this trial; searched: {', '.join(self.values)}")
        return self.values[key]

    def report(self, step: int, metric: float) -> None:
        """Tell the metric so far, so that a bad trial can be given up: this raises then, which need not be caught."""
        self.job.outcome.metric = metric
        self.job.report(step, metric)


def tune(
    train_fn: Callable[[TrialConfig], Any],
    space: str | Path | dict = "ldp",
    storage: str | Path | None = None,
    trials: int = 20,
    *,
    direction: str = "maximize",
    metric: str = "metric",
    reports: int = 1,
    seed: int = 0,
    **options: Any,
) -> Best:
    """Search the `outer:` section of a space around a training function; call it again to go on, and from many processes.

    Args:
        train_fn: called with a TrialConfig; returns (metric, controller), or (metric, controller, {more figures}).
        space: a shipped name, a YAML file or a mapping, with an `outer:` section; its parameters may be of any name.
        storage: journal file or database URL; None: study.journal in `output`.
        trials: their total number, those in the storage included.
        direction: maximize or minimize the metric. reports: how often train_fn calls `trial.report`, for the pruner.
        options: those of a search on the command line (sampler, pruner, max_cost, pareto, study, ...), and output=FOLDER.

    Raises:
        ValueError: a wrong space or option, or a storage of another search. RuntimeError: every trial failed.
    """
    plan, base = _plan(space, storage, trials, direction, metric, reports, seed, dict(options))
    quiet_libraries()
    plan.folder.mkdir(parents=True, exist_ok=True)
    study = open_study(plan, open_storage(str(plan.options.storage), announce))
    announce(f"study {plan.name}; to watch it: {dashboard_command(plan)}")
    try:
        Worker(plan, study, Function(train_fn, base, plan)).work()
    except Hopeless as error:
        raise RuntimeError(str(error)) from error
    found = best_trial(study)
    if found is None:
        raise RuntimeError(f"No trial of {plan.name!r} is complete and within the bound on its cost.")
    return as_best(found)


def _plan(space: Any, storage: Any, trials: int, direction: str, metric: str, reports: int, seed: int, options: dict[str, Any]):
    """(plan, the space without its outer section). Raises ConfigError."""
    if direction not in ("maximize", "minimize"):
        raise ConfigError(f"direction must be maximize or minimize; received {direction!r}.")
    output = options.pop("output", None)
    for key in options:
        if key not in OPTION_FIELDS or key in ("workers", "isolation", "seeds"):
            known = ", ".join(name for name in OPTION_FIELDS if name not in ("workers", "isolation", "seeds"))
            raise ConfigError(f"tune has no option {key!r}. It has: output, {known}. For more workers start it several times.")
    content = dict(space) if isinstance(space, dict) else presets.load("search_spaces", str(space))
    where = "in the given mapping" if isinstance(space, dict) else f"in search space {str(space)!r}"
    outer = parse(content.pop("outer", None), where)
    content.pop("description", None)
    resolve_space(content)  # wrong fields show here, before anything is written
    given = StudyOptions(trials=trials, storage=None if storage is None else str(storage), **options)
    given.check()
    name = given.study or (f"tune-{Path(space).stem}" if not isinstance(space, dict) else "tune")
    beside = None if given.storage is None or is_url(given.storage) else Path(given.storage).with_suffix("")
    folder = Path(output or beside or Path("runs") / name).expanduser()
    given.storage = given.storage or str(folder / "study.journal")
    facts = {"metric": metric, "reports": reports}
    setting = lambda key: _setting(key, content)  # noqa: E731
    return Plan(name, given, outer, setting, folder, seed, direction, {"space": content, "seed": seed}, facts), content


def _setting(key: str, content: dict[str, Any]) -> Any:
    """The value of a setting outside of the search: of the space's fields their own, of other names none."""
    values = {name: content.get(name, field.default) for name, field in SPACE_FIELDS.items()}
    return option_of(key, values)


class Function:
    """Carries out a trial by calling the user's function."""

    def __init__(self, train_fn: Callable[[TrialConfig], Any], base: dict[str, Any], plan: Plan):
        self.train_fn, self.base, self.plan = train_fn, base, plan

    def progress(self, folder: Path) -> float:
        """Unknown: the function keeps its own checkpoints, if any."""
        return 0.0

    def __call__(self, job: Job) -> Outcome:
        of_space = {key: v for key, v in job.chosen.items() if key.partition(".")[0] in SPACE_FIELDS}
        words = [f"{key}={json.dumps(value)}" for key, value in of_space.items()]
        space = resolve_space(overlay(self.base, parse_words(words, COMPONENTS, LISTS), COMPONENTS))
        job.folder.mkdir(parents=True, exist_ok=True)
        job.outcome.attributes |= {"folder": str(job.folder.absolute()), "seeds": [self.plan.seed]}
        config = TrialConfig(job.number, space, job.chosen, self.plan.seed, job.folder, job)
        metric, ldp, figures = _unpacked(self.train_fn(config))
        if ldp is not None:
            figures = _figures(ldp) | figures
            job.outcome.files = _keep(ldp, job.folder)
            del ldp
            gc.collect()  # a model and its hooks refer to each other
        return Outcome(metric, figures, job.outcome.attributes | {"config": space.to_dict()}, job.outcome.files)


def _unpacked(returned: Any) -> tuple[float, Any, dict[str, float]]:
    """(metric, controller or None, more figures). Raises TypeError."""
    parts = returned if isinstance(returned, tuple) else (returned, None)
    metric, ldp, figures = (*parts, {})[:3] if len(parts) in (2, 3) else (None, None, None)
    if not isinstance(metric, int | float) or not (ldp is None or hasattr(ldp, "cost")) or not isinstance(figures, dict):
        raise TypeError(f"train_fn must return (metric, controller) or (metric, controller, figures); it gave {returned!r}.")
    return float(metric), ldp, figures


def _figures(ldp: Any) -> dict[str, float]:
    cost = ldp.cost()
    return {
        "training_cost": cost.mean_relative, "inference_cost": cost.relative_inference, "weight_mib": cost.weight_mib,
        "coverage": ldp.coverage.share, **({} if cost.relative_latency is None else {"latency": cost.relative_latency}),
    }  # fmt: skip


def _keep(ldp: Any, folder: Path) -> list[Path]:
    """The bits, over the training and at its end, in the trial's folder and as a picture. Returns what is to be shown."""
    from ...core.controller.finalize import allocation
    from ..report.heatmap import scale_of, schedule_figure
    from ..report.load import load_run

    allocation(ldp).save(folder / "allocation.json")
    if len(ldp.trajectory):
        ldp.trajectory.save(folder / "schedule.parquet")
        run = load_run(folder)
        (folder / "schedule.png").write_bytes(schedule_figure(run, scale_of(run)))
    return [folder / "schedule.png", folder / "allocation.json"]
