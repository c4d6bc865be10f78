"""The report: one self-contained HTML page on one run or on several, and its figures as PNG files beside it.

    write_report(["runs/a"])                      the page of one run, written into its folder
    write_report(["runs/a", "runs/b"], "out")     several runs side by side, written into `out`

A run that is still going on is reported as far as it is. The page loads nothing from anywhere.

From files to page: `load` (a run folder, finished or not; `locate` says which one was meant; `live`: a controller at work
instead, whose single pictures are `figures`), `schedule` (bits as arrays),
`layers` (shares of the cost), `words` (the schedule in sentences), `groups` (seeds taken together); `heatmap`, `bars`,
`curves`, `comparison` (figures, in the common `style`); `one`, `several` (the parts of the page), written by `html`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ...core import Controller
from . import html
from .heatmap import scale_of
from .live import run_of
from .load import Run, load_run, load_runs
from .locate import ReportError
from .one import Pictures, run_sections, title_of
from .several import comparison_sections

__all__ = ["ReportError", "Run", "load_run", "load_runs", "write_report"]

PAGE = "report.html"


Reportable = str | os.PathLike | Controller
"""A folder that `ldp_search.run` wrote, or the controller of a model."""


def write_report(runs: Iterable[Reportable] | Reportable, output: str | os.PathLike | None = None) -> Path:
    """Write the report on these runs and return the path of its page.

    Args:
        runs: run folders and controllers, or one of them.
        output: where the page and its PNGs go; by default the folder of the only run, or `report` for several.

    Raises:
        ReportError: a folder is missing or holds no run, or none was given.
        OSError: the output cannot be written.
    """
    given = [runs] if isinstance(runs, Reportable) else list(runs)
    runs = load_runs(run_of(one) if isinstance(one, Controller) else one for one in given)
    if not runs:
        raise ReportError("A report needs at least one run folder; none was given.")
    pictures: Pictures = {}
    if len(runs) == 1:
        run = runs[0]
        seed = "" if run.seed is None else f" · seed {run.seed}"
        title, under = title_of(run), f"{run.name}{seed}"
        parts = list(run_sections(run, scale_of(run), pictures))
    else:
        title, under = f"{len(runs)} runs side by side", ", ".join(run.name for run in runs)
        parts = list(comparison_sections(runs, pictures))
    only = runs[0].folder if len(runs) == 1 else None
    folder = Path(output) if output is not None else (only or Path("report"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        _replace(folder / name, png)
    document = html.page(f"{title}: LDP report", [html.heading(title, 1), html.paragraph(under, "under"), *parts])
    _replace(folder / PAGE, document.encode("utf-8", errors="replace"))
    return folder / PAGE


def _replace(path: Path, data: bytes) -> None:
    """Write a file at once: who looks at a report during training never sees half of one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
