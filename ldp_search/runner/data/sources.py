"""Where data comes from: the hub, a folder, a file; what can go wrong there, said in one message with the ways out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.messages import did_you_mean
from ..io.hub_access import settle_hub
from ..remedies import in_words
from .class_folders import class_folders, is_picture
from .errors import DataError
from .listing import files_in, not_read, split_of
from .text_files import COMPRESSED, READERS, Format, check, options, reader_of

_NOT_DATA = (KeyboardInterrupt, MemoryError)
FORMATS = "Parquet, CSV, JSONL or text files named train-*, test-* (or lying in folders train/, test/), or pictures in folders"


class Splits(dict):
    """{split name: datasets.Dataset}. notes: what of the source was not read, for the user."""

    def __init__(self, splits: dict[str, Any], notes: tuple[str, ...] = ()):
        super().__init__(splits)
        self.notes = notes


def load_splits(
    source: str, config: str | None, given: str | None, offline: str, streaming: bool = False, wanted: Sequence[str] = (),
    how: Format | None = None,
) -> Splits:  # fmt: skip
    """The splits of a hub id, or of the folder or file that is given instead of it.

    Args:
        config: which of the data set's configurations. given: what `data=` says. offline: words of a task that needs no
            network, for the message. streaming: splits are read as they are iterated (datasets.IterableDataset).
        wanted: names of splits that the task asks for. how: encoding and delimiter of files.

    Raises:
        DataError: no such folder, nothing readable in it, something in it that would not be read, or a hub that cannot be
            reached and has nothing in its cache.
    """
    how = (how or Format()).checked()
    if given is None and Path(source).exists() and source:
        given = source
    if given is not None:
        return _from_place(Path(given).expanduser(), config, streaming, wanted, how)
    if not source:
        raise DataError("The task must name its data: `dataset: {source: ...}` in its file, or data=FOLDER.")
    return Splits(_from_hub(source, config, offline, streaming))


def _from_place(place: Path, config: str | None, streaming: bool, wanted: Sequence[str], how: Format) -> Splits:
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
        return _read_file(place, streaming, how) if place.is_file() else _read_folder(place, config, streaming, wanted, how)
    except (DataError, *_NOT_DATA):
        raise
    except Exception as error:  # pyarrow, fsspec and datasets raise two dozen classes here
        raise DataError(f"The data in {str(place)!r} cannot be read: {reason(error)}\n  Expected: {FORMATS}.") from error


def _read_file(file: Path, streaming: bool, how: Format) -> Splits:
    if reader_of(file) is None:
        raise DataError(f"data=FILE must end in {', '.join(READERS)}; received {str(file)!r}.")
    return Splits(_read_tables({"train": [file]}, streaming, how))


def _read_folder(place: Path, config: str | None, streaming: bool, wanted: Sequence[str], how: Format) -> Splits:
    import datasets

    if (place / "dataset_dict.json").is_file():
        return Splits(datasets.load_from_disk(str(place)))
    if (place / "state.json").is_file():  # a single split, saved by save_to_disk
        return Splits({"train": datasets.load_from_disk(str(place))})
    if config and (place / config).is_dir():  # the layout of collections on the hub: a folder for each
        place = place / config
    files = files_in(place)
    pictures, tables = [f for f in files if is_picture(f)], _tables(files)
    if any(f.name in ("metadata.csv", "metadata.jsonl", "metadata.parquet") for f in files) and pictures:
        return _read_by_datasets(place, files, streaming, how)
    if len(pictures) > len(tables):
        found, notes = class_folders(place, files, wanted)
        return Splits({k: v.to_iterable_dataset() for k, v in found.items()} if streaming else found, notes)
    if not tables or _names_files(place / "README.md"):
        return _read_by_datasets(place, files, streaming, how)
    splits = _split_files(tables, place, wanted)
    read = {file for found in splits.values() for file in found}
    return Splits(_read_tables(splits, streaming, how), not_read(place, [file for file in files if file not in read]))


def _tables(files: Sequence[Path]) -> list[Path]:
    """The files of tables of the most frequent kind; plain text, which may be notes, only where there is nothing else."""
    kinds = {file: reader for file in files if (reader := reader_of(file)) is not None}
    usual = Counter(kind for kind in kinds.values() if kind != "text").most_common(1)
    kind = usual[0][0] if usual else "text"
    return [file for file in files if kinds.get(file) == kind]


def _split_files(tables: Sequence[Path], place: Path, wanted: Sequence[str]) -> dict[str, list[Path]]:
    """{split: files} by the names of files and of the folders they lie in; where none speaks of a split, all are `train`."""
    out: dict[str | None, list[Path]] = {}
    for file in tables:
        stem = file.name.removesuffix("".join(file.suffixes[-2:] if file.suffixes[-1] in COMPRESSED else file.suffixes[-1:]))
        parts = (stem, *reversed(file.relative_to(place).parts[:-1]))
        out.setdefault(next((split for part in parts if (split := split_of(part, wanted))), None), []).append(file)
    unnamed = out.pop(None, [])
    return out or {"train": unnamed}


def _read_tables(splits: dict[str, list[Path]], streaming: bool, how: Format) -> dict[str, Any]:
    """Files of one kind, each looked at first. Raises DataError where not every row of a CSV file was read."""
    import datasets

    first = next(iter(splits.values()))[0]
    reader, rows = reader_of(first), {split: [check(file, how) for file in files] for split, files in splits.items()}
    named = {split: [str(file) for file in files] for split, files in splits.items()}
    found = datasets.load_dataset(reader, data_files=named, streaming=streaming, **options(reader, first, how))
    for split, counts in rows.items():
        if not streaming and None not in counts and sum(counts) != found[split].num_rows:
            raise DataError(
                f"The files of split {split!r} ({', '.join(file.name for file in splits[split][:3])}) hold {sum(counts):,} "
                f"rows, but {found[split].num_rows:,} were read: quotation marks that do not match are the usual cause."
            )
    return dict(found)


def _names_files(readme: Path) -> bool:
    """Whether the header of a data set's card says which files are which split."""
    head = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return head.startswith("---") and "data_files:" in head.partition("\n---")[0]


def _read_by_datasets(place: Path, files: Sequence[Path], streaming: bool, how: Format) -> Splits:
    """Folders that `datasets` knows more of: with a README that names splits, with metadata beside pictures, archives.

    Raises:
        DataError: it would not read files of the kind that it reads.
    """
    import datasets

    builder = datasets.load_dataset_builder(str(place))
    is_csv = type(builder.config).__name__ == "CsvConfig"
    first = next((file for file in files if reader_of(file) == "csv"), None)
    given = options("csv", first, how) if is_csv and first is not None else {}
    read = {os.path.realpath(str(file)) for named in (builder.config.data_files or {}).values() for file in named}
    left = [file for file in files if os.path.realpath(file) not in read]
    kinds = {Path(file).suffix.lower() for file in read}
    if lost := [file for file in left if file.suffix.lower() in kinds and (is_picture(file) or reader_of(file) != "text")]:
        raise DataError(
            f"{len(lost):,} files in {str(place)!r} would not be read, such as {lost[0].relative_to(place).as_posix()}: the "
            "README or the metadata name others, or they lie behind links. Name them there, or put files in the place of links."
        )
    return Splits(datasets.load_dataset(str(place), streaming=streaming, **given), not_read(place, left))


def _from_hub(source: str, config: str | None, offline: str, streaming: bool) -> dict[str, Any]:
    trouble = settle_hub("datasets", source)
    import datasets

    _quiet(datasets)
    try:
        return dict(datasets.load_dataset(source, config, streaming=streaming))
    except _NOT_DATA:
        raise
    except Exception as error:
        why = f"{trouble}, and it is not in the cache ({datasets.config.HF_DATASETS_CACHE})" if trouble else reason(error)
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


def reason(error: BaseException) -> str:
    """The first line of the error that lies at the bottom of a chain."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return in_words(error)


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
