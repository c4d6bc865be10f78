"""Tables of which a few rows run always, and the others with the slow tests."""

from collections.abc import Collection, Iterable

import pytest

ROWS = "further rows of a table of which some always run"


def breadth(names: str, rows: Iterable, always: int | Collection, reason: str = ROWS, **options) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize(names, rows, **options)` whose rows are `slow`, but for the first `always` or those in it.

    ValueError: where no row would always run, or where one of `always` is no row.
    """
    rows = list(rows)
    places = range(min(always, len(rows))) if isinstance(always, int) else [rows.index(row) for row in always]
    if not places:
        raise ValueError(f"At least one row of {names!r} must always run; received always={always!r}.")
    several, slow = "," in names, pytest.mark.slow(reason=reason)
    values = [
        row if place in places else pytest.param(*(row if several else (row,)), marks=slow) for place, row in enumerate(rows)
    ]
    return pytest.mark.parametrize(names, values, **options)
