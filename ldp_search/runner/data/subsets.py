"""Which rows of a split are used: a subset that the seed draws, and rows held out where there is no split to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .columns import pick_split
from .errors import DataError
from .sources import first_rows

_SEED = 0
Parts = tuple[list[int], list[int]]
"""(rows to train on, rows to evaluate on), both in their order."""


class Origin(NamedTuple):
    """Where the rows of a part were before: the split's name, and for each row its number there."""

    split: str
    rows: list[int]


def subset(size: int, limit: int | None, seed: int) -> list[int]:
    """Indices, in their order, of `limit` of `size` rows that the seed draws; all of them without a limit."""
    if limit is None or limit >= size:
        return list(range(size))
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:limit].sort().values.tolist()


def spread(size: int, share: float) -> Parts:
    """A share of the rows, drawn from all of them: files are often sorted, or alternate, so that no regular pick is fair.

    The same rows whatever the run's seed; RandomState's streams are frozen, which makes them the same for ever.
    """
    held = set(np.random.RandomState(_SEED).permutation(size)[: _count(size, share)].tolist())
    return [i for i in range(size) if i not in held], sorted(held)


def ending(size: int, share: float) -> Parts:
    """The last rows: of a running text, single lines would have their neighbours in training."""
    first = size - _count(size, share)
    return list(range(first)), list(range(first, size))


def _count(size: int, share: float) -> int:
    return int(size * share + 1e-6)  # 0.3 * 10 is a little less than 3


def check_share(share: float) -> None:
    """Raises DataError for a `hold_out` that is none."""
    if not 0 <= share < 0.5:
        raise DataError(f"`hold_out` must be a share below 0.5; received {share}.")


def hold_out(
    splits: dict[str, Any], data: Any, limit: int | None, parts: Callable[[int, float], Parts] = spread
) -> tuple[dict[str, Any], dict[str, Origin], tuple[str, ...]]:
    """(splits with one to evaluate on, {name of a part: its origin}, notes for the user).

    Where the data has a split to evaluate on, or `hold_out` is 0, the splits are as they were.

    Args:
        data: fields of `dataset:`, of which `train`, `eval` and `hold_out` count. limit: rows to take of a stream.

    Raises:
        DataError: no training split, or too few rows in it.
    """
    if any(name in splits for name in data.eval):
        return splits, {}, shared_split(splits, data.train, data.eval)
    if not data.hold_out:
        return splits, {}, ()
    name, rows = pick_split(splits, data.train, "train")
    rows = first_rows(rows, limit, "train")
    kept, held = parts(len(rows), data.hold_out)
    if not held:
        raise DataError(f"hold_out={data.hold_out} of the {len(rows)} rows of split {name!r} is not a single one: "
                        "give more data, or data with a split to evaluate on.")  # fmt: skip
    which = "the last ones" if held[-1] - held[0] == len(held) - 1 else "drawn once for all"
    note = f"held out for evaluation: {len(held):,} of the {len(rows):,} rows of split {name!r}, {which}"
    made = {name: rows.select(kept), data.eval[0]: rows.select(held)}
    return splits | made, {name: Origin(name, kept), data.eval[0]: Origin(name, held)}, (note,)


def shared_split(splits: dict[str, Any], train: Sequence[str], evaluation: Sequence[str]) -> tuple[str, ...]:
    """A note where one split serves both uses; of the names, the first found counts."""
    found = [next((name for name in names if name in splits), None) for names in (train, evaluation)]
    if None in found or found[0] != found[1]:
        return ()
    return (f"EVALUATED ON THE TRAINING DATA: split {found[0]!r} is used for both; the metrics say nothing about new data",)
