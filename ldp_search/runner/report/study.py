"""The page on a study: the best trial, the front, what mattered, schedules side by side, every trial in a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import html
from .comparison import schedules_figure
from .front import corner, front_figure, history_figure
from .heatmap import scale_of
from .load import load_run
from .locate import ReportError
from .params import ENOUGH, coordinates_figure, importance_figure, importances
from .trials import StudyView, TrialRow, folder_of, view_of
from .words import digits, duration, percent

SHOWN = 6  # schedules side by side
MOST_ROWS = 1000


def write_study_report(study: Any, output: str | os.PathLike) -> Path:
    """Write report.html and its PNGs on an Optuna study into a folder; returns the page's path.

    Raises:
        ReportError: the study holds no trial. OSError: the output cannot be written.
    """
    from . import PAGE, _replace

    view, pictures = view_of(study), {}
    if not view.rows:
        raise ReportError(f"The study {view.name!r} holds no trial yet.")
    parts = [html.heading(f"Study {view.name}", 1), html.paragraph(_goal(view), "under"), *_sections(study, view, pictures)]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        _replace(folder / name, png)
    _replace(folder / PAGE, html.page(f"Study {view.name}: LDP report", parts).encode("utf-8", errors="replace"))
    return folder / PAGE


def _goal(view: StudyView) -> str:
    bound = "" if view.max_cost is None else f", {view.cost} at most {view.max_cost:g}"
    return f"{view.metric} against {view.cost}{bound}" if view.pareto else f"{view.metric}{bound}"


def _sections(study: Any, view: StudyView, pictures: dict[str, bytes]) -> Iterator[str]:
    def show(file: str, png: bytes, caption: str) -> str:
        pictures[file] = png
        return html.picture(png, file, caption)

    yield html.cards(_headline(view))
    yield from _against_given(view)
    yield html.heading("Metric and cost")
    yield show("front.png", front_figure(view), "Complete trials; the front is drawn through the feasible ones")
    yield show("history.png", history_figure(view), "Trial by trial")
    if view.complete:
        yield html.heading("What mattered")
        yield from _importance(study, view, show)
        yield show("coordinates.png", coordinates_figure(view), "A line a complete trial, dark and thick: a better metric")
        yield from _schedules(view, show)
    yield html.heading("The trials")
    yield _table(view)
    yield from _failures(view)
    yield from _repeat(study, view)


def _headline(view: StudyView) -> list[tuple[str, str, str]]:
    states = Counter(row.state for row in view.rows)
    over = ", ".join(f"{count} {state}" for state, count in states.items())
    cards = [("Trials", str(len(view.rows)), over)]
    ranked = [row for row in view.ranked() if row.feasible]
    if ranked:
        best = ranked[0]
        cards = [("Best trial", str(best.number), "given" if best.figures.get("given") else "searched")] + cards
        spread = "" if best.spread is None else f"± {best.spread:.4f} over its seeds"
        cards[1:1] = [(view.metric, _metric(best.metric), spread), (view.cost, digits(best.cost, 4), "of the best trial")]
    worst, dearest = corner(view)
    cards.append(("Hypervolume", digits(view.hypervolume(None, worst, dearest), 4), f"{len(view.front())} trials on the front"))
    seconds = sum(row.figures.get("seconds") or 0 for row in view.rows)
    cards.append(("Training time", duration(seconds), "of all trials together"))
    return cards


def _metric(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _against_given(view: StudyView) -> Iterator[str]:
    """Whether the search found better than what it was given to begin with."""
    ranked = [row for row in view.ranked() if row.feasible]
    given = [row for row in ranked if row.figures.get("given")]
    if not ranked or not given:
        return
    best, rival = ranked[0], given[0]
    if best is rival:
        text = f"No searched trial is better than trial {rival.number}, which was given."
    else:
        text = (f"Trial {best.number} is ahead of the best given one, trial {rival.number}, by "
                f"{abs(best.metric - rival.metric):.4f} ({_metric(best.metric)} against {_metric(rival.metric)}, cost "
                f"{digits(best.cost, 4)} against {digits(rival.cost, 4)}). It was chosen because it is the highest of "
                f"{len(ranked)}: train both with other seeds before you believe the difference.")  # fmt: skip
    yield html.paragraph(text)


def _importance(study: Any, view: StudyView, show) -> Iterator[str]:
    found = importances(study, view)
    if not found:
        yield html.paragraph("Importances need more complete trials.")
        return
    yield show("importance.png", importance_figure(found), "Importance of each parameter (Optuna's evaluator)")
    everywhere = {name for shares in found.values() for name in shares}
    partly = [n for n in dict.fromkeys(n for r in view.complete for n in r.params) if n not in everywhere]
    if partly:
        yield html.paragraph(f"Not measured, because only some trials have them: {', '.join(partly)}.")
    if len(view.complete) < ENOUGH:
        yield html.paragraph(f"From {len(view.complete)} complete trials only: this order is mostly chance.")


def _schedules(view: StudyView, show) -> Iterator[str]:
    runs = []
    for row in view.ranked():
        if row.feasible and (folder := folder_of(row)) is not None and len(runs) < SHOWN:
            run = load_run(folder)
            if run.schedule is not None:
                run.name = f"trial {row.number}: {_metric(row.metric)} at {digits(row.cost, 3)}"
                runs.append(run)
    if runs:
        yield html.heading("The schedules of the best trials")
        caption = "Bits of every layer (first on top) over the training"
        yield show("schedules.png", schedules_figure(runs, scale_of(*runs)), caption)


def _table(view: StudyView) -> str:
    names = list(dict.fromkeys(name for row in view.rows for name in row.params))
    columns = ["trial", "state", view.metric, view.cost, "inference cost", "weights, MiB", "mean bits", "time", *names]
    others = [row for row in view.rows if row.state != "complete" or row.metric is None]
    rows = [_cells(row, names) for row in [*view.ranked(), *others][:MOST_ROWS]]
    return html.table(columns, rows, numeric=(0, 2, 3, 4, 5, 6, 7))


def _cells(row: TrialRow, names: list[str]) -> list[object]:
    f = row.figures
    state = row.state + ("" if row.feasible else ", above the bound") + (", given" if f.get("given") else "")
    metric = _metric(row.metric) + ("" if row.spread is None else f" ± {row.spread:.4f}")
    costs = [digits(row.cost, 4), percent(f.get("inference_cost")), digits(f.get("weight_mib"), 3)]
    values = [_short(row.params.get(name)) for name in names]
    return [row.number, state, metric, *costs, digits(f.get("mean_bits"), 2), duration(f.get("seconds")), *values]


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _failures(view: StudyView) -> Iterator[str]:
    lines = [f"trial {row.number}: {row.figures.get('reason', 'no reason given')}" for row in view.rows if row.state == "fail"]
    yield html.note("Failed trials", lines)


def _repeat(study: Any, view: StudyView) -> Iterator[str]:
    from ...config.study import PLAN

    ranked = [row for row in view.ranked() if row.feasible]
    if ranked and "command" in ranked[0].figures:
        yield html.heading("To train the best trial again")
        yield html.code(ranked[0].figures["command"])
    facts = (study._storage.get_study_system_attrs(study._study_id).get(PLAN) or {}).get("facts", {})
    if facts.get("command"):
        yield html.heading("To search on")
        yield html.code(facts["command"])
