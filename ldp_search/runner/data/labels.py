"""Labels turned into class indices: the same for every split, whatever a split itself says of their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .bad_rows import BadRows
from .errors import DataError


class Classes:
    """The classes of a task, in the order of their indices; found in the first split that is read.

    Declared names (a ClassLabel) are taken over; else the column's values are the classes: 0 to n - 1, other whole numbers in
    their order, or text, sorted.

    Attributes:
        names: one a class. declared: whether they were, so that whole numbers elsewhere are indices of them.
    """

    def __init__(self, wanted: int):
        """wanted: how many there must be; 0: as many as the column has."""
        self.wanted, self.names, self.declared = wanted, [], False

    def labels(self, split: Any, column: str, split_name: str, faults: BadRows) -> list[int]:
        """The class index of every row; -1 of those that have none, which `faults` hears of.

        Raises:
            DataError: not as many classes as wanted, or fewer than two.
        """
        own = getattr(split.features[column], "names", None)
        if not self.names:
            self._find(split, column, split_name, own)
        index, out = {name: i for i, name in enumerate(self.names)}, []
        numbered = own or (self.names if self.declared else None)  # two splits may declare the same names in another order
        for row, value in enumerate(split[column][:]):  # all at once: a column read row by row takes seconds
            value = name = _plain(value)
            if numbered and _is_index(value):
                name = numbered[value] if 0 <= value < len(numbered) else None
            label = -1 if name is None else index.get(str(name), -1)
            if label < 0:
                faults.add(row, self._wrong(column, value if name is None else name))
            out.append(label)
        return out

    def _find(self, split: Any, column: str, split_name: str, declared: list[str] | None) -> None:
        if declared is not None:
            names, self.declared = list(declared), True
        else:
            values = {_plain(value) for value in split.unique(column)} - {None}
            names = self._named(values)
        if self.wanted and len(names) != self.wanted:
            raise DataError(
                f"The task has {self.wanted} classes, but column {column!r} of split {split_name!r} has {len(names)}: "
                "this is another data set. Give the right folder, or correct `classes` in the task's file."
            )
        if len(names) < 2:
            raise DataError(f"Two classes or more are needed; column {column!r} of split {split_name!r} has {names}.")
        self.names = names

    def _named(self, values: set[Any]) -> list[str]:
        if not all(_is_index(value) for value in values):
            return sorted({str(value) for value in values})
        if self.wanted:  # the training set need not have all of them
            return [str(i) for i in range(self.wanted)]
        return [str(value) for value in sorted(values)]

    def _wrong(self, column: str, value: Any) -> str:
        numbers, some = f"an integer from 0 to {len(self.names) - 1}", f"one of {', '.join(self.names[:5])}"
        some += ", ..." if len(self.names) > 5 else ""
        if self.names == [str(i) for i in range(len(self.names))]:
            some = numbers
        elif self.declared:
            some = f"{numbers} or {some}"
        return f"the label in column {column!r} must be {some}; it is {value!r}"


def one_class_note(labels: Sequence[int], names: Sequence[str], split: str) -> tuple[str, ...]:
    """A note where all rows that are evaluated on have one label: any model that always says it would seem perfect."""
    found = set(labels)
    if len(found) != 1:
        return ()
    return (f"ONLY ONE CLASS is evaluated: all {len(labels):,} rows of split {split!r} are {names[found.pop()]!r}",)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Whole numbers as integers: a column in which one is missing is read as 0.0, 1.0, nan."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else int(value) if value.is_integer() else value
