"""Splits and columns of a data set, found by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import DataError


def pick_split(splits: dict[str, Any], names: Sequence[str], use: str, can_hold_out: bool = False) -> tuple[str, Any]:
    """The first of `names` that the data has, for the message also whether the task has `hold_out`. Raises DataError."""
    for name in names:
        if name in splits:
            if getattr(splits[name], "num_rows", 1) == 0:  # a stream does not know
                raise DataError(f"The split {name!r} must hold samples; it is empty.")
            return name, splits[name]
    way_out = "or as a word: dataset.train=NAME."
    if use == "eval":  # naming the training split would evaluate on what was learned
        way_out = "or as a word: dataset.eval=NAME, a split that is not trained on." + (
            " Where there is none, dataset.hold_out=0.1 keeps a tenth of the training rows for it." if can_hold_out else ""
        )
    raise DataError(
        f"The data for {use} must be a split called {' or '.join(repr(n) for n in names)}; the data has: "
        f"{', '.join(sorted(splits))}. Name it in the task's file, {way_out}"
    )


def pick_column(split: Any, names: Sequence[str], use: str) -> str:
    """The first of `names` that is a column. Raises DataError."""
    for name in names:
        if name in split.column_names:
            return name
    raise DataError(
        f"The {use} must be in a column called {' or '.join(repr(n) for n in names)}; the data has the columns: "
        f"{', '.join(split.column_names)}. Name it in the task's file, or as a word: dataset.{use}=COLUMN."
    )
