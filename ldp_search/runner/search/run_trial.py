"""A trial that is a run of `ldp_search.run`: the settings of the search with the trial's values over them."""

from __future__ import annotations

import functools
import gc
import json
import math
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from ...config import presets
from ...config.overlay import overlay, parse_words
from ...config.resolve import resolve_mapping
from ...config.settings import COMPONENTS, LISTS, Settings
from ..io import checkpoint_files
from ..tasks import Task, build_task
from ..training.batches import check_sizes
from ..training.finish import finish, write_report_page
from ..training.loop import fit
from ..training.run_session import CHECKPOINTS, Session, save_schedule
from ..training.setup import Finished, open_session, searchable
from ..training.stopping import stop_between_steps
from .objective import Job, Outcome
from .ranks import Ranks

SHOWN = ("schedule.png", "layers.png", "training.png", "metrics.jsonl", "allocation.json", "config.yaml", "result.json")
"""Files of a run that optuna-dashboard gets; it draws the pictures and lists the rows of metrics inline."""


def facts_of(settings: Settings, world: int) -> dict[str, Any]:
    """What a study has to know before its first trial, found by making data and model once.

    Raises:
        ConfigError: the data cannot be had, or the model does not fit it.
    """
    task = build_task(settings.task, settings.config)
    check_sizes(task, settings.config, world)
    import ldp_search

    cost = ldp_search.controller(searchable(settings, task)).cost()
    config, per_epoch = settings.config, task.train_size // settings.config.batch_size
    total = config.steps or config.epochs * per_epoch
    return {
        "metric": task.metric, "data": task.fingerprint, "reports": math.ceil(total / (per_epoch * config.eval_every)),
        "training_bitops": cost.training_bitops / cost.relative,
        "inference_bitops": cost.inference_bitops / cost.relative_inference,
        "latency_ms": None if not cost.relative_latency else (cost.latency_ms or 0.0) / cost.relative_latency,
    }  # fmt: skip


class Training:
    """Carries out trials as runs. The data stay in memory from one trial to the next."""

    def __init__(self, settings: Settings, facts: dict[str, Any], seeds: int, ranks: Ranks):
        self.base, self.facts, self.seeds, self.ranks = settings, facts, seeds, ranks
        self._task: tuple[Any, Task] | None = None

    def settings_of(self, chosen: dict[str, Any], **more: Any) -> Settings:
        """The settings of a trial's run."""
        return resolve_mapping(overlay(self.asked(chosen), more, COMPONENTS))

    def asked(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """What one has to ask `ldp_search.run` for, to get this trial's run: fit for config=FILE."""
        words = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
        kept = {key: value for key, value in self.base.asked.items() if key not in ("output", "resume")}
        kept |= {
            key: self.base.values[key] for key in ("task", "data", "latency") if key in kept
        }  # absolute, where they are paths
        if presets.is_path(str(kept.get("space", ""))):
            kept["space"] = str(Path(kept["space"]).expanduser().resolve())
        return overlay(kept, parse_words(words, COMPONENTS, LISTS), COMPONENTS)

    def progress(self, folder: Path) -> float:
        """Steps of the newest checkpoints, over all seeds of a trial."""
        newest = (checkpoint_files.candidates(place / CHECKPOINTS)[:1] for place in (folder, *folder.glob("seed-*")))
        return sum(int(path.name.rpartition("_")[2]) for found in newest for path in found)

    def __call__(self, job: Job) -> Outcome:
        first, results = self.base.config.seed, []
        quiet = {} if "trackers" in self.base.asked else {"trackers": ["none"]}
        job.outcome.attributes |= {"folder": str(self._folder(job, 0).absolute()), "git": git_commit()}
        for i in range(self.seeds):
            folder = self._folder(job, i)
            settings = self.settings_of(job.chosen, seed=first + i, output=str(folder), resume="auto", **quiet)
            job.outcome.files = [folder / name for name in SHOWN] if i == 0 else job.outcome.files
            try:
                results.append(self._train(settings, job, i))
            finally:
                gc.collect()  # a model and its hooks refer to each other
        return self._outcome(job, results)

    def _folder(self, job: Job, i: int) -> Path:
        return job.folder if self.seeds == 1 else job.folder / f"seed-{self.base.config.seed + i}"

    def _train(self, settings: Settings, job: Job, i: int) -> dict[str, Any]:
        """result.json of a run, of an earlier attempt where that had got so far."""
        try:
            run = open_session(settings, self._loaded(settings), quiet=True)
        except Finished as done:
            return json.loads((done.folder / "result.json").read_text())
        try:
            with stop_between_steps(run.accelerator.num_processes) as request:
                fit(run, request, lambda row: self._heard(run, job, row) if i == 0 else None)
            return finish(run)
        except optuna.TrialPruned:
            self._leave(run)
            raise
        finally:
            run.journal.close()

    def _loaded(self, settings: Settings) -> Task:
        """The task's object, made anew only where it would be another one."""
        config, looks_at = settings.config, None if self._task is None else self._task[1].looks_at
        key = (settings.task.dataset, config if looks_at is None else [getattr(config, name) for name in looks_at])
        if self._task is None or looks_at is None or self._task[0] != key:
            self._task = None  # free the old one first
            task = build_task(settings.task, config)
            looks_at = task.looks_at
            key = (settings.task.dataset, config if looks_at is None else [getattr(config, name) for name in looks_at])
            self._task = (key, task)
        return self._task[1]

    def _heard(self, run: Session, job: Job, row: dict[str, Any]) -> None:
        """An evaluation: what is known so far goes into the outcome, and Optuna hears of it."""
        cost = run.ldp.cost()
        job.outcome.metric = row[run.task.metric]
        job.outcome.figures = {
            "training_cost": row["mean_cost"] * cost.training_bitops / cost.relative / self.facts["training_bitops"],
            "mean_bits": row["mean_bits"], "seconds": round(run.journal.seconds, 1),
        }  # fmt: skip
        if row["split"] == "eval":
            job.report(math.ceil(run.step / (run.steps_per_epoch * run.config.eval_every)), row[run.task.metric])

    def _leave(self, run: Session) -> None:
        """The folder of a pruned run: its figures as far as it went, without checkpoints."""
        if run.accelerator.is_main_process:
            save_schedule(run)
            write_report_page(run.output)
            shutil.rmtree(run.output / CHECKPOINTS, ignore_errors=True)

    def _outcome(self, job: Job, results: list[dict[str, Any]]) -> Outcome:
        one, n = results[0], len(results)
        metrics = [r[r["metric"]] for r in results]

        def mean(of: Any) -> float:
            return sum(map(of, results)) / n

        figures = {
            "training_cost": mean(lambda r: r["mean_cost"] * r["training_bitops"] / r["cost"]) / self.facts["training_bitops"],
            "inference_cost": mean(lambda r: r["inference_bitops"]) / self.facts["inference_bitops"],
            **({"latency": mean(lambda r: r["latency_ms"]) / self.facts["latency_ms"]} if one.get("latency_ms") else {}),
            "weight_mib": mean(lambda r: r["weight_mib"]), "mean_bits": mean(lambda r: r["mean_bits"]),
            "coverage": one["coverage"], "loss": mean(lambda r: r["loss"]),
            "seconds": round(sum(r["seconds"] for r in results), 1),
        }  # fmt: skip
        asked = self.asked(job.chosen)
        attributes = job.outcome.attributes | {
            "seeds": [r["seed"] for r in results], "metrics": metrics, "config": asked, "command": command(asked),
            "data": one["data"], "versions": one["versions"],
        }  # fmt: skip
        return replace(job.outcome, metric=sum(metrics) / n, figures=figures, attributes=attributes)


def command(asked: dict[str, Any]) -> str:
    """The command line of a run that asks for these settings."""
    words = []
    for key, value in asked.items():
        if key in COMPONENTS and isinstance(value, dict):
            words += [f"{key}={value['name']}"] if "name" in value else []
            words += [f"{key}.{option}={_word(v)}" for option, v in value.items() if option != "name"]
        else:
            words.append(f"{key}={_word(value)}")
    return " ".join(["python -m ldp_search.run", *map(shlex.quote, words)])


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@functools.cache
def git_commit() -> str:
    """The commit of this package's checkout, with + where files differ from it; empty where it is installed."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if not here.is_relative_to(git("rev-parse", "--show-toplevel")) or git("check-ignore", str(here)):
            return ""
    except (OSError, subprocess.SubprocessError):
        pass  # check-ignore fails where nothing is ignored, which is the rule
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parents[1]))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""
