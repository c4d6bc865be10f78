"""Rows that cannot be used: gathered, named by file and row, then refused together or left out, as `bad_rows=` says.

Everything is looked at before the training begins, so that no bad row ends a run in its middle.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from .errors import DataError

SHOWN = 5
POLICIES = ("refuse", "skip")


class Faults:
    """The bad rows of one split. policy: `refuse` or `skip`. where: what tells a row's file, {row: name}, where it is known."""

    def __init__(self, split: str, policy: str, where: dict[int, str] | None = None):
        self.split, self.policy, self.where = split, policy, where or {}
        self.rows: dict[int, str] = {}

    def add(self, row: int, why: str) -> None:
        """A row and what is wrong with it; the first reason counts."""
        self.rows.setdefault(row, why)

    def kept(self, rows: list[int]) -> list[int]:
        """`rows` without the bad ones.

        Raises:
            DataError: there are bad ones and they are to be refused, or no other rows are left.
        """
        if self.rows and self.policy == "refuse":
            raise DataError(
                f"{self._count()} of split {self.split!r} cannot be used:\n{self._listed()}\n"
                "Correct the data, or leave such rows out with bad_rows=skip."
            )
        good = [row for row in rows if row not in self.rows]
        if not good:
            raise DataError(f"No row of split {self.split!r} can be used:\n{self._listed()}\nThis is not the task's data.")
        return good

    @property
    def note(self) -> str | None:
        """What was left out, for the user; None without any."""
        return f"left out: {self._count()} of split {self.split!r}\n{self._listed()}" if self.rows else None

    def _count(self) -> str:
        return f"{len(self.rows):,} row{'s' if len(self.rows) > 1 else ''}"

    def _listed(self) -> str:
        lines = [f"  row {row}{self._file(row)}: {why}" for row, why in list(self.rows.items())[:SHOWN]]
        rest = Counter(why.partition(";")[0] for why in list(self.rows.values())[SHOWN:])
        return "\n".join(lines + [f"  and {n:,} more: {why}" for why, n in rest.most_common(3)])

    def _file(self, row: int) -> str:
        return f" ({self.where[row]})" if row in self.where else ""


def files_of(items: list[Any]) -> dict[int, str]:
    """{place: file name} of encoded pictures, as `datasets` holds them with decode=False, where they come from files."""
    return {i: item["path"] for i, item in enumerate(items) if isinstance(item, dict) and item.get("path")}
