"""Data sets from the hub, from a folder, or embedded: what can go wrong there, said in one message with the ways out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.registry import did_you_mean
from .hub import settle_hub
from .overlay import ConfigError

_NOT_DATA = (KeyboardInterrupt, MemoryError)


class DataError(ConfigError):
    """The data cannot be had or is not what the task needs; the message says what was found and what to do."""


def load_splits(source: str, config: str | None, folder: str | None) -> dict[str, Any]:
    """{split name: datasets.Dataset} of a hub id, or of the folder that is given instead of it.

    Raises:
        DataError: no such folder, nothing readable in it, or a hub that cannot be reached and has nothing in its cache.
    """
    if folder is None and Path(source).is_dir():
        folder = source
    if folder is not None:
        return _from_folder(Path(folder).expanduser())
    if not source:
        raise DataError("The task must name its data: `dataset: {source: ...}` in its file, or data=FOLDER.")
    return _from_hub(source, config)


def _from_folder(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        near = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, near).partition(" Known:")[0]
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise DataError(f"data=FOLDER must be a folder with the data; received {str(folder)!r}: {what}.{hint}")
    if not any(folder.iterdir()):
        raise DataError(f"data=FOLDER must hold Parquet files named train-*.parquet, test-*.parquet; {str(folder)!r} is empty.")
    import datasets

    _quiet(datasets)
    try:
        if (folder / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(str(folder)))
        return dict(datasets.load_dataset(str(folder)))
    except _NOT_DATA:
        raise
    except Exception as error:  # pyarrow, fsspec and datasets raise two dozen classes here
        raise DataError(
            f"The data in {str(folder)!r} cannot be read: {_reason(error)}\n"
            "  Expected: Parquet files named train-*.parquet and test-*.parquet. A file that was cut off while copying is the "
            "usual cause: copy it again."
        ) from error


def _from_hub(source: str, config: str | None) -> dict[str, Any]:
    reachable = settle_hub()
    import datasets

    _quiet(datasets)
    try:
        return dict(datasets.load_dataset(source, config))
    except _NOT_DATA:
        raise
    except Exception as error:
        why = f"the hub cannot be reached, and it is not in the cache ({datasets.config.HF_DATASETS_CACHE})"
        download = f"python -c \"import datasets; datasets.load_dataset('{source}')\""
        raise DataError(
            f"The data set {source!r} cannot be had: {_reason(error) if reachable else why}.\n"
            "Three ways out:\n"
            "  data=FOLDER   a local copy, as Parquet files called train-*.parquet and test-*.parquet\n"
            f"  the cache     where there is a network, {download};\n"
            "                then copy that machine's ~/.cache/huggingface here\n"
            "  task=digits   real handwritten digits that come with scikit-learn"
        ) from error


def _quiet(datasets: Any) -> None:
    """No progress bars: loading takes seconds, and errors are to be seen."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()


def _reason(error: BaseException) -> str:
    """The first line of the error that lies at the bottom of a chain."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def pick_split(splits: dict[str, Any], names: Sequence[str], use: str) -> tuple[str, Any]:
    """The first of `names` that the data has. Raises DataError."""
    for name in names:
        if name in splits:
            if len(splits[name]) == 0:
                raise DataError(f"The split {name!r} must hold samples; it is empty.")
            return name, splits[name]
    raise DataError(
        f"The data for {use} must be a split called {' or '.join(repr(n) for n in names)}; the data has: "
        f"{', '.join(splits)}. Name it in the task's file: dataset: {{{use}: NAME}}."
    )


def pick_column(split: Any, names: Sequence[str], use: str) -> str:
    """The first of `names` that is a column. Raises DataError."""
    for name in names:
        if name in split.column_names:
            return name
    raise DataError(
        f"The {use} must be in a column called {' or '.join(repr(n) for n in names)}; the data has the columns: "
        f"{', '.join(split.column_names)}. Name it in the task's file: dataset: {{{use}: COLUMN}}."
    )


def integer_labels(split: Any, column: str, classes: int, split_name: str) -> list[int]:
    """A column of class indices. Raises DataError with the first row that is none."""
    declared = getattr(split.features[column], "num_classes", classes)
    if declared != classes:
        raise DataError(
            f"The task has {classes} classes, but column {column!r} of split {split_name!r} is declared with {declared}: "
            "this is another data set. Give the right folder, or correct `classes` in the task's file."
        )
    labels = list(split[column])
    for row, label in enumerate(labels):
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
            raise DataError(
                f"Labels must be integers from 0 to {classes - 1}; row {row} of split {split_name!r}, column {column!r}, has "
                f"{label!r}. Correct the data, or `classes` in the task's file."
            )
    return labels
