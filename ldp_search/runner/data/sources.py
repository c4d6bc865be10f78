"""Where data comes from: the hub, a folder, a file; what can go wrong there, said in one message with the ways out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...core.messages import did_you_mean
from ..io.hub_access import settle_hub
from .errors import DataError

_NOT_DATA = (KeyboardInterrupt, MemoryError)
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
_CSV = {"keep_default_na": False, "na_values": [""]}  # "None" and "NA" are words like others
FORMATS = "Parquet, CSV, JSONL or text files named train-*, test-* (or lying in folders train/, test/), or pictures in folders"


def load_splits(source: str, config: str | None, given: str | None, offline: str, streaming: bool = False) -> dict[str, Any]:
    """{split name: datasets.Dataset} of a hub id, or of the folder or file that is given instead of it.

    Args:
        config: which of the data set's configurations. given: what `data=` says. offline: words of a task that needs no
            network, for the message. streaming: splits are read as they are iterated (datasets.IterableDataset).

    Raises:
        DataError: no such folder, nothing readable in it, or a hub that cannot be reached and has nothing in its cache.
    """
    if given is None and Path(source).exists() and source:
        given = source
    if given is not None:
        return _from_place(Path(given).expanduser(), config, streaming)
    if not source:
        raise DataError("The task must name its data: `dataset: {source: ...}` in its file, or data=FOLDER.")
    return _from_hub(source, config, offline, streaming)


def _from_place(place: Path, config: str | None, streaming: bool) -> dict[str, Any]:
    if not place.exists():
        near = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        hint = did_you_mean(place.name, near).partition(" Known:")[0]
        raise DataError(
            f"data= must be a folder or a file with the data; received {str(place)!r}: there is no such place.{hint}"
        )
    if place.is_dir() and not any(place.iterdir()):
        raise DataError(f"data=FOLDER must hold {FORMATS}; {str(place)!r} is empty.")
    import datasets

    _quiet(datasets)
    try:
        return dict(_read(datasets, place, config, streaming))
    except DataError:
        raise
    except _NOT_DATA:
        raise
    except Exception as error:  # pyarrow, fsspec and datasets raise two dozen classes here
        raise DataError(
            f"The data in {str(place)!r} cannot be read: {_reason(error)}\n"
            f"  Expected: {FORMATS}. A file that was cut off while copying is the usual cause: copy it again."
        ) from error


def _read(datasets: Any, place: Path, config: str | None, streaming: bool) -> Any:
    if place.is_file():
        if place.suffix not in READERS:
            raise DataError(f"data=FILE must end in {', '.join(READERS)}; received {str(place)!r}.")
        options = _CSV if READERS[place.suffix] == "csv" else {}
        options = options | ({"delimiter": "\t"} if place.suffix == ".tsv" else {})
        return datasets.load_dataset(READERS[place.suffix], data_files=str(place), streaming=streaming, **options)
    if (place / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(place))
    if (place / "state.json").is_file():  # a single split, saved by save_to_disk
        return {"train": datasets.load_from_disk(str(place))}
    if config and (place / config).is_dir():  # the layout of collections on the hub: a folder for each
        place = place / config
    if shards := _shards(place):
        return datasets.load_dataset("parquet", data_files=shards, streaming=streaming)
    options = _CSV if type(datasets.load_dataset_builder(str(place)).config).__name__ == "CsvConfig" else {}
    return datasets.load_dataset(str(place), streaming=streaming, **options)


def _shards(place: Path) -> dict[str, list[str]]:
    """{split: files} of a folder of SPLIT-00000-of-00001.parquet. `datasets` knows train, validation and test by their names
    and would take validation_matched and validation_mismatched for one.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(place.glob("*.parquet")):
        match = re.fullmatch(r"(\w+)-\d{5}-of-\d{5}", file.stem)
        if match is None:
            return {}
        found.setdefault(match[1], []).append(str(file))
    return found


def _from_hub(source: str, config: str | None, offline: str, streaming: bool) -> dict[str, Any]:
    trouble = settle_hub("datasets", source)
    import datasets

    _quiet(datasets)
    try:
        return dict(datasets.load_dataset(source, config, streaming=streaming))
    except _NOT_DATA:
        raise
    except Exception as error:
        why = f"{trouble}, and it is not in the cache ({datasets.config.HF_DATASETS_CACHE})" if trouble else _reason(error)
        asked = f"'{source}', '{config}'" if config else f"'{source}'"
        raise DataError(
            f"The data set {source!r} cannot be had: {why}.\n"
            "Three ways out:\n"
            f"  data=FOLDER   a local copy: {FORMATS}\n"
            f'  the cache     where there is a network, python -c "import datasets; datasets.load_dataset({asked})";\n'
            "                then copy that machine's ~/.cache/huggingface here\n"
            f"  {offline}"
        ) from error


def _quiet(datasets: Any) -> None:
    """Errors are to be seen, and no progress bars of what takes seconds."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()


def _reason(error: BaseException) -> str:
    """The first line of the error that lies at the bottom of a chain."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def first_rows(split: Any, limit: int | None, use: str) -> Any:
    """The first rows of a streamed split as an ordinary one; an ordinary split as it is. Raises DataError without a limit."""
    import datasets

    if not isinstance(split, datasets.IterableDataset):
        return split
    if limit is None:
        word = "limit" if use == "train" else "eval_limit"
        raise DataError(f"A streamed data set has no end that is known: give {word}=N, the first so many rows to take.")
    features = split.features or split._resolve_features().features
    plain = {k: datasets.Image(decode=False) if isinstance(v, datasets.Image) else v for k, v in features.items()}
    rows = list(split.cast(datasets.Features(plain)).take(limit))
    return datasets.Dataset.from_list(rows, features=datasets.Features(plain))
