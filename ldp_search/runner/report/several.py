"""The report on several runs, side by side: metric against cost, seeds as spread, then each run on its own."""

from __future__ import annotations

from collections.abc import Iterator

from . import html
from .comparison import curves_figure, metrics_of, scatter_figure, schedules_figure
from .groups import Group, group_runs
from .heatmap import scale_of
from .load import Run, named
from .one import Pictures, run_sections, title_of
from .schedule import KINDS
from .words import digits, duration, percent, score

MOST_SCHEDULES = 24  # schedules drawn side by side; past this, one of each group
MOST_DETAILS = 12  # runs shown in full below the comparison; past this the page would be too heavy to open


def comparison_sections(runs: list[Run], pictures: Pictures) -> Iterator[str]:
    """The parts of the page on several runs."""

    def show(file: str, png: bytes, caption: str) -> str:
        pictures[file] = png
        return html.picture(png, file, caption)

    groups, scale = group_runs(runs), scale_of(*runs)
    metric = " or ".join(m.title for m in metrics_of(groups)) or "metric"
    yield from _caveats(runs)
    yield html.heading("Groups: runs that differ in their seed alone")
    yield _group_table(groups, metric.lower())
    if metrics_of(groups):
        yield html.heading(f"{metric} against cost")
        caption = "A small point a finished run, a large one the mean of its group with standard deviations"
        yield show("comparison.png", scatter_figure(groups), caption)
    yield html.heading("The runs")
    yield _run_table(groups, metric.lower())
    yield html.heading("Over the training")
    yield show(
        "curves.png",
        curves_figure(groups),
        "Every line a run, every colour a group; mean bits of weights and inputs over the layers",
    )
    yield from _schedules(groups, scale, show)
    yield from _each(runs, scale, pictures)


def _caveats(runs: list[Run]) -> Iterator[str]:
    """What a reader has to know before comparing the numbers."""
    going = [f"{run.name}: at {percent(run.progress, 0)}" for run in runs if not run.finished]
    yield html.note("Not finished, and therefore in no mean:", going)
    lacking = [f"{run.name}: {line}" for run in runs if run.finished for line in run.notes]
    yield html.note("Missing or unreadable:", lacking)
    measured = [run for run in runs if run.folder is not None]
    different = {f"{named(run.setting('task'))}: {run.metric.title}": None for run in measured}
    if len({run.metric for run in measured}) > 1:
        yield html.note("These runs have different metrics, each with an axis of its own:", list(different))
    scales: dict[tuple, list[str]] = {}
    for run in runs:
        scales.setdefault(tuple(run.highest(kind) for kind in KINDS[:3]), []).append(run.name)
    if len(scales) > 1:
        lines = [
            f"{'/'.join('?' if top is None else str(top) for top in tops)} bits: {', '.join(names)}"
            for tops, names in scales.items()
        ]
        title = "Relative costs of these runs have different units (highest weight/input/gradient bits): do not compare them."
        yield html.note(title, lines)


def _group_table(groups: list[Group], metric: str) -> str:
    columns = ("group", "n", "seeds", metric, "training cost", "target", "inference cost", "weights, MiB", "time")
    rows = []
    for group in groups:
        n = f"{len(group.finished)}" + (f" of {len(group.runs)}" if len(group.finished) < len(group.runs) else "")
        seeds = ", ".join("–" if run.seed is None else str(run.seed) for run in group.runs)
        rows.append(
            (
                group.label,
                n,
                seeds,
                _score(group),
                _spread(group, "mean_cost", 2),
                percent(group.runs[0].target_cost, 1),
                _spread(group, "inference_cost", 1),
                digits(group.mean_sd("weight_mib")[0], 3),
                duration(group.mean_sd("seconds")[0]),
            )
        )
    return html.table(columns, rows, numeric=(1, 3, 4, 5, 6, 7, 8))


def _score(group: Group) -> str:
    """Mean ± sample standard deviation of the metric."""
    if group.runs[0].metric.percent:
        return _spread(group, "score", 2)
    mean, spread, _ = group.mean_sd("score")
    return "–" if mean is None else f"{mean:.4g}" if spread is None else f"{mean:.4g} ± {spread:.2g}"


def _spread(group: Group, quantity: str, places: int) -> str:
    """Mean ± sample standard deviation, in percent."""
    mean, spread, _ = group.mean_sd(quantity)
    if mean is None:
        return "–"
    return f"{100 * mean:.{places}f} %" if spread is None else f"{100 * mean:.{places}f} ± {100 * spread:.{places}f} %"


def _run_table(groups: list[Group], metric: str) -> str:
    columns = ("run", "group", "seed", metric, "training cost", "inference cost", "weights, MiB", "time", "state")
    rows = [
        (
            run.name,
            group.label,
            "–" if run.seed is None else run.seed,
            score(run),
            percent(run.mean_cost, 2),
            percent(run.inference_cost),
            digits(run.weight_mib, 3),
            duration(run.seconds),
            "finished" if run.finished else f"at {percent(run.progress, 0)}",
        )
        for group in groups
        for run in group.runs
    ]
    return html.table(columns, rows, numeric=(2, 3, 4, 5, 6, 7))


def _schedules(groups: list[Group], scale, show) -> Iterator[str]:
    drawn = [run for group in groups for run in group.runs if run.schedule is not None]
    if not drawn:
        return
    yield html.heading("The schedules")
    if len(drawn) > MOST_SCHEDULES:
        firsts = [next((run for run in group.runs if run.schedule), None) for group in groups]
        drawn = [run for run in firsts if run is not None][:MOST_SCHEDULES]
        yield html.paragraph(f"Of the many runs, these are the first of {len(drawn)} groups.")
    yield show(
        "schedules.png",
        schedules_figure(drawn, scale),
        "Bits of every layer (first on top) over the training, one colour scale",
    )


def _each(runs: list[Run], scale, pictures: Pictures) -> Iterator[str]:
    yield html.heading("Each run")
    for i, run in enumerate(runs[:MOST_DETAILS], start=1):
        summary = f"{run.name}: {title_of(run)}, seed {'–' if run.seed is None else run.seed}"
        yield html.details(summary, run_sections(run, scale, pictures, prefix=f"run{i:02d}_"), css="run")
    more = len(runs) - MOST_DETAILS
    if more > 0:
        yield html.paragraph(f"{more} more are not shown in full: `python -m ldp_search.report RUN` writes the page of one.")
