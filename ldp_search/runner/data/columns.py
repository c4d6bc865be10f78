"""Splits and columns of a data set: found by their names, and labels turned into class indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import DataError
from .faults import Faults


def pick_split(splits: dict[str, Any], names: Sequence[str], use: str) -> tuple[str, Any]:
    """The first of `names` that the data has. Raises DataError."""
    for name in names:
        if name in splits:
            if getattr(splits[name], "num_rows", 1) == 0:  # a stream does not know
                raise DataError(f"The split {name!r} must hold samples; it is empty.")
            return name, splits[name]
    raise DataError(
        f"The data for {use} must be a split called {' or '.join(repr(n) for n in names)}; the data has: "
        f"{', '.join(sorted(splits))}. Name it in the task's file, or as a word: dataset.{use}=NAME."
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


def class_names(split: Any, column: str, classes: int, split_name: str) -> list[str]:
    """Names of the classes, in the order of their indices.

    Declared ones (a ClassLabel) are taken over; else whole numbers stand for themselves, and other values (text) are sorted.
    classes: how many there must be; 0: as many as the column has.

    Raises:
        DataError: there are not as many, or fewer than two.
    """
    declared = getattr(split.features[column], "names", None)
    if declared is None:
        values = set(split.unique(column)) - {None}
        if all(_is_index(value) for value in values):
            declared = [str(i) for i in range(classes or max(values, default=0) + 1)]
        else:
            declared = sorted(map(str, values))
    if classes and len(declared) != classes:
        raise DataError(
            f"The task has {classes} classes, but column {column!r} of split {split_name!r} has {len(declared)}: "
            "this is another data set. Give the right folder, or correct `classes` in the task's file."
        )
    if len(declared) < 2:
        raise DataError(f"Two classes or more are needed; column {column!r} of split {split_name!r} has {declared}.")
    return list(declared)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def class_labels(split: Any, column: str, names: list[str], faults: Faults) -> list[int]:
    """The class index of every row; -1 of those that have none, which `faults` hears of."""
    index = {name: i for i, name in enumerate(names)}
    out = []
    for row, value in enumerate(split[column][:]):  # all at once: a column read row by row takes seconds
        label = value if _is_index(value) else index.get(str(value), -1)
        if not 0 <= label < len(names):
            wanted = f"an integer from 0 to {len(names) - 1}" + (
                "" if names[0] == "0" else f" or one of {', '.join(names[:5])}"
            )
            faults.add(row, f"the label in column {column!r} must be {wanted}; it is {value!r}")
            label = -1
        out.append(label)
    return out
