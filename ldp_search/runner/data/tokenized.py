"""Texts as tokens: made once, kept in a file beside the data's own cache, and mapped into memory from there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

PAD_TO = 8
"""Sequences are padded to a multiple of this, which matrix units of GPUs like and which keeps shapes few."""


class Ragged:
    """A column of lists of integers, as they lie in memory-mapped Arrow chunks: nothing is copied until it is asked for."""

    def __init__(self, column: Any):
        self._values, starts, total = [], [np.zeros(1, np.int64)], 0
        self._first_value = [0]
        for chunk in column.chunks:
            self._values.append(chunk.flatten().to_numpy(zero_copy_only=True) if len(chunk) else np.zeros(0, np.int32))
            offsets = chunk.offsets.to_numpy()[: len(chunk) + 1].astype(np.int64)
            starts.append(offsets[1:] - offsets[0] + total)
            total += len(self._values[-1])
            self._first_value.append(total)
        self._starts = np.concatenate(starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def total(self) -> int:
        """Number of values in all rows."""
        return int(self._starts[-1])

    def sum(self) -> int:
        return int(sum(values.sum(dtype=np.int64) for values in self._values))

    def row(self, i: int) -> np.ndarray:
        return self.span(self._starts[i], self._starts[i + 1])

    def span(self, start: int, stop: int) -> np.ndarray:
        """Values from `start` to `stop` of all rows one after the other."""
        out, chunk = [], int(np.searchsorted(self._first_value, start, side="right")) - 1
        while start < stop and chunk < len(self._values):
            first = self._first_value[chunk]
            out.append(self._values[chunk][start - first : stop - first])
            start, chunk = self._first_value[chunk + 1], chunk + 1
        return out[0] if len(out) == 1 else np.concatenate([np.zeros(0, np.int32), *out])

    def update(self, digest: Any) -> None:
        """Feed all of it to a hash."""
        digest.update(self._starts.tobytes())
        for values in self._values:
            digest.update(np.ascontiguousarray(values))


def tokenize(split: Any, encode: Callable[[dict], dict], options: list[Any]) -> dict[str, Ragged]:
    """Columns of integer lists that `encode` makes of batches of rows, cached under the data's fingerprint and the options.

    Args:
        encode: {column: values of some rows} -> {column: a list of integers for each}.
        options: all that `encode` depends on, in a form whose text tells it apart.
    """
    import datasets

    key = hashlib.sha256(repr([split._fingerprint, options]).encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "ldp_search"
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(split), desc="tokenizing", delay=3, leave=False, disable=None) as bar:

        def encoded(rows: dict) -> dict:
            out = encode(rows)
            bar.update(len(out["input_ids"]))
            return out

        datasets.disable_progress_bars()  # ours comes when it takes long
        columns = list(encode(split[:1]))
        features = datasets.Features({name: datasets.Sequence(datasets.Value("int32")) for name in columns})
        made = split.map(
            encoded, batched=True, remove_columns=split.column_names, features=features, new_fingerprint=key,
            cache_file_name=str(folder / f"{key}.arrow"), load_from_cache_file=True,
        )  # fmt: skip
    return {name: Ragged(made.data.column(name)) for name in columns}


def padded(rows: list[np.ndarray], value: int, longest: int) -> Tensor:
    """(N, L) int64: rows with `value` behind them, L the longest one's length rounded up, but not above `longest`."""
    length = max(len(row) for row in rows)
    length = max(length, min(-(-length // PAD_TO) * PAD_TO, longest))
    out = np.full((len(rows), length), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def quiet_tokenizers() -> None:
    """Data workers are forked; `tokenizers` would warn of that, though they never call it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
