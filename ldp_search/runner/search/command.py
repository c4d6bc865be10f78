"""From the words of a search to its exit status: the study opened, its trials carried out, the results written."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ...config.overlay import ConfigError
from ...config.settings import Settings
from ...config.study import is_url
from ..tasks.metrics import metric
from ..training.setup import on_cpu
from . import launch
from .best import write_best
from .dashboard import announce, dashboard_command, line_of, write_note
from .ranks import Ranks
from .run_trial import Training, facts_of
from .samplers import make_pruner, make_sampler
from .searched_settings import identity_of, outer_space, setting_of, study_name
from .storage import hidden, open_storage
from .study import Plan, best_trial, open_study
from .worker import Hopeless, Worker


def search(settings: Settings, words: list[str]) -> int:
    """Carry out the search that the settings ask for; returns the exit status.

    Raises:
        ConfigError: something is wrong that the user can mend; nothing has been written.
    """
    plan = plan_of(settings, words)
    quiet_libraries()
    if launch.is_child():
        launch.end_with_parent()
        return _work(plan, settings, Ranks(), launch.trials_of_a_child())
    ranks = Ranks(PartialState(cpu=on_cpu()))
    in_children = plan.options.workers > 1 or plan.options.isolation == "process"
    if ranks.count > 1 and in_children:
        raise ConfigError("workers=... and isolation=process start processes of their own, and so does the launcher of this "
                          f"command ({ranks.count} of them): give one or the other.")  # fmt: skip
    plan.facts |= ranks.agree(lambda: facts_of(settings, ranks.count))
    plan.direction = "maximize" if metric(plan.facts["metric"]).higher else "minimize"
    plan.identity |= {"processes": ranks.count, "data (fingerprint)": plan.facts["data"]}
    study = ranks.agree(lambda: _begun(plan))
    status = launch.run_workers(plan, words, _open(plan, begin=False)) if in_children else _work(plan, settings, ranks)
    if ranks.is_main and study is not None:
        _end(plan, _open(plan, begin=False), status)
    if status == 0 and ranks.count > 1:
        ranks.world.destroy_process_group()
    return status


def plan_of(settings: Settings, words: list[str]) -> Plan:
    """The plan of a search. Raises ConfigError; writes nothing."""
    options, space = settings.study, outer_space(settings)
    name = options.study or study_name(settings)
    output = settings.config.output
    if output is None:
        output = _folder(options.storage, name)
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output must be a folder, but {folder} is a file. Give another output=FOLDER.")
    if options.storage is None:
        options.storage = str(folder / "study.journal")
    if settings.config.resume not in ("auto", "never"):
        raise ConfigError("resume=FOLDER goes on with one run; a search goes on by its storage: give the same storage=... .")
    make_sampler(options.sampler, options.trials, options.pareto, 0)  # only whether they can be made
    make_pruner(options.pruner, 1, False, 9)
    again = [w for w in words if w.partition("=")[0] not in ("output", "storage")]
    command = shlex.join([*again, f"storage={hidden(options.storage)}", f"output={folder}"])
    return Plan(
        name, options, space, setting_of(settings), folder, settings.config.seed,
        identity=identity_of(settings, space), facts={"command": f"python -m ldp_search.run {command}"},
    )  # fmt: skip


def _folder(storage: str | None, name: str) -> str:
    """Where a search writes if nothing is said: beside its journal; without a storage a new folder each time."""
    if storage is None:
        return str(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    return str(Path("runs") / name if is_url(storage) else Path(storage).with_suffix(""))


def _begun(plan: Plan) -> bool:
    """Make or find the study, on the main process, and say so."""
    study = _open(plan, begin=True)
    states = [t.state for t in study.get_trials(deepcopy=False)]
    over = sum(state.is_finished() for state in states)
    names = ", ".join(dict.fromkeys(p.name for p in plan.space.params))
    goal = f"{plan.facts['metric']} and {plan.options.cost}" if plan.options.pareto else plan.facts["metric"]
    bound = f", {plan.options.cost} at most {plan.max_cost:g}" if plan.max_cost is not None else ""
    announce(f"study {plan.name}: {goal}{bound}; {over} of {len(states)} trials done; searched: {names}")
    announce(f"to watch it: {dashboard_command(plan)}")
    write_note(plan, study)
    return True


def _open(plan: Plan, begin: bool) -> Any:
    return open_study(plan, open_storage(str(plan.options.storage), announce), begin)


def _work(plan: Plan, settings: Settings, ranks: Ranks, most: int | None = None) -> int:
    """This process as a worker; returns the exit status."""
    study = _open(plan, begin=False) if ranks.is_main else None
    plan.facts = ranks.agree(lambda: plan.facts)
    worker = Worker(plan, study, Training(settings, plan.facts, plan.options.seeds, ranks), ranks, most)
    try:
        done = worker.work()
        return launch.NOTHING_LEFT if most is not None and done < most else 0
    except KeyboardInterrupt as stopped:
        return getattr(stopped, "code", 130)
    except Hopeless as error:
        if ranks.is_main:
            print(f"ldp_search.run: {error}\nCorrect it and give the same command again.", file=sys.stderr)
        return 1


def _end(plan: Plan, study: Any, status: int) -> None:
    """What a search leaves: the best settings, the report, and how to go on."""
    again = plan.facts["command"]
    write_note(plan, study)
    if write_best(study, plan.folder / "best.yaml"):
        announce(f"best settings: {plan.folder / 'best.yaml'}  (python -m ldp_search.run config={plan.folder / 'best.yaml'})")
    if status == 0:
        _report(plan, study)
    best = best_trial(study)
    if best is not None:
        announce(f"best: {line_of(plan, best)}")
    if status in (130, 143):
        announce(f"stopped; nothing is lost. To go on:\n  {again}")
    elif status == 0:
        announce(f"to search on, for as many trials again:\n  {_with_more(again, plan.options.trials)}")


def _with_more(command: str, trials: int | None) -> str:
    """The command of a search with twice as many trials as it had."""
    words = [word for word in shlex.split(command) if not word.startswith("trials=")]
    return shlex.join([*words, *([] if trials is None else [f"trials={2 * trials}"])])


def _report(plan: Plan, study: Any) -> None:
    """The page on the study. That it fails must not cost anything: it can be made later."""
    from ..report.study import write_study_report
    from .dashboard import show_files

    try:
        page = write_study_report(study, plan.folder)
        show_files(plan, study, sorted(plan.folder.glob("*.png")))
        announce(f"report: {page}")
    except Exception as error:
        again = f"python -m ldp_search.report {hidden(str(plan.options.storage))}"
        print(f"The report could not be made ({type(error).__name__}: {error}).\nTry later: {again}", file=sys.stderr)


def quiet_libraries() -> None:
    """Optuna tells of every trial and of every function it calls experimental: here this module tells what is worth it."""
    import logging
    import warnings

    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if int(os.environ.get("RANK", "0")) != 0:
        warnings.simplefilter("ignore")
