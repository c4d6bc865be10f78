"""The tests themselves: what is slow says why, and every file shows something in every run."""

from pathlib import Path

import pytest
from breadth import breadth
from suite import COLLECTED, LONGEST


@pytest.fixture
def collected(request) -> list[pytest.Item]:
    return request.config.stash[COLLECTED]


def test_what_is_slow_says_why(collected):
    for item in collected:
        for mark in item.iter_markers("slow"):
            assert mark.kwargs.get("reason") and not mark.args, f"{item.nodeid}: write @pytest.mark.slow(reason=...)"


def test_every_file_with_slow_tests_has_some_that_always_run(collected):
    slow, always = (
        {item.path for item in collected if (item.get_closest_marker("slow") is not None) == kind} for kind in (True, False)
    )
    assert slow <= always


def test_the_longest_files_are_files():
    names = {path.name for path in Path(__file__).parents[1].rglob("test_*.py")}
    assert set(LONGEST) <= names and len(set(LONGEST)) == len(LONGEST)


def rows(decorator: pytest.MarkDecorator) -> list[tuple[tuple, bool]]:
    """(values, slow) of each row."""
    found = []
    for row in decorator.args[1]:
        plain = not hasattr(row, "marks")
        values = row if plain else row.values
        found.append((tuple(values) if isinstance(values, list | tuple) else (values,), not plain))
    return found


def test_a_table_of_which_some_rows_always_run():
    assert rows(breadth("name", "abc", always=1)) == [(("a",), False), (("b",), True), (("c",), True)]
    assert rows(breadth("name", ["a", "b"], always=["b"])) == [(("a",), True), (("b",), False)]
    assert rows(breadth("a, b", [(1, 2), (3, 4)], always=[(3, 4)])) == [((1, 2), True), ((3, 4), False)]
    assert breadth("a", [1], always=1, ids=["one"]).kwargs == {"ids": ["one"]}
    (mark,) = breadth("name", "ab", always=1, reason="why").args[1][1].marks
    assert (mark.name, mark.kwargs) == ("slow", {"reason": "why"})


@pytest.mark.parametrize("always", [0, [], ["c"]])
def test_no_table_is_left_without_a_row_that_always_runs(always):
    with pytest.raises(ValueError, match="At least one row of 'name' must always run|is not in list"):
        breadth("name", ["a", "b"], always=always)
