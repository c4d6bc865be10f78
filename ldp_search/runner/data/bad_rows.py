"""Rows that cannot be used: gathered, named by file and row, then refused together or left out, as `bad_rows=` says.

Everything is looked at before the training begins, so that no bad row ends a run in its middle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:
    from .subsets import Origin

SHOWN = 5


class BadRows:
    """The bad rows of one split.

    Args:
        policy: `refuse` or `skip`. file: tells the file of a row, or None; asked for the rows that are shown alone, since it
            may read them. origin: where the split's rows were before it was divided, so that they are found there.
    """

    def __init__(self, split: str, policy: str, file: Callable[[int], str | None] | None = None, origin: Origin | None = None):
        self.split, self.policy, self.file, self.origin = origin.split if origin else split, policy, file, origin
        self.rows: dict[int, str] = {}

    def add(self, row: int, why: str) -> None:
        """A row and what is wrong with it; the first reason counts."""
        self.rows.setdefault(row, why)

    def kept(self, rows: list[int]) -> list[int]:
        """`rows` without the bad ones. Others than `rows` (outside of what a limit draws) are of no concern, and forgotten.

        Raises:
            DataError: there are bad ones and they are to be refused, or no other rows are left.
        """
        asked = set(rows)
        self.rows = {row: why for row, why in self.rows.items() if row in asked}
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
        found = sorted(self.rows.items())
        lines = [f"  row {self._number(row)}{self._file(row)}: {why}" for row, why in found[:SHOWN]]
        rest = Counter(why.partition(";")[0] for _, why in found[SHOWN:])
        return "\n".join(lines + [f"  and {n:,} more: {why}" for why, n in rest.most_common(3)])

    def _number(self, row: int) -> int:
        return self.origin.rows[row] if self.origin else row

    def _file(self, row: int) -> str:
        file = self.file(row) if self.file else None
        return f" ({file})" if file else ""


def picture_file(item: Any) -> str | None:
    """The file of an encoded picture, as `datasets` holds it with decode=False, where it comes from one."""
    return item.get("path") if isinstance(item, dict) else None
