"""Tables and texts in files, looked at before they are read: their encoding, their delimiter, whether they are whole.

Readers guess wrongly or name another cause where one of these is off; a look at the file itself finds the true one.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DataError

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""Names for the delimiters that a shell would take for something else."""
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
_CSV = {"keep_default_na": False, "na_values": [""]}  # "None" and "NA" are words like others
_LFS = b"version https://git-lfs"
_BLOCK = 1 << 20


class Format(NamedTuple):
    """How text in files is written. encoding: by its name in Python, empty for UTF-8. delimiter: of columns, or its name in
    DELIMITERS; empty: a comma, in .tsv a tab.
    """

    encoding: str = ""
    delimiter: str = ""

    def checked(self) -> Format:
        """The same with the delimiter as a character. Raises DataError for an encoding or delimiter that is none."""
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError as error:
            raise DataError(
                f"dataset.encoding must be one that Python knows, such as cp1252, latin-1, utf-16 or shift_jis; received "
                f"{self.encoding!r}."
            ) from error
        delimiter = DELIMITERS.get(self.delimiter, self.delimiter.replace("\\t", "\t"))
        if len(delimiter) > 1:
            raise DataError(
                f"dataset.delimiter must be one character, or {', '.join(DELIMITERS)}; received {self.delimiter!r}."
            )
        return Format(self.encoding, delimiter)


def reader_of(file: Path) -> str | None:
    """The reader of `datasets` for a file by its extensions; None for one that holds no table or text."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return READERS.get(suffixes[-1]) if suffixes else None


def options(reader: str, file: Path, how: Format) -> dict[str, Any]:
    """What `datasets` is given to read a file."""
    encoding = how.encoding or ("utf-8-sig" if reader == "text" else "")  # the others pass over a byte order mark themselves
    out = {"encoding": encoding} if encoding and reader != "parquet" else {}
    if reader == "csv":
        out |= _CSV | ({"delimiter": delimiter} if (delimiter := _delimiter(file, how)) != "," else {})
    return out


def check(file: Path, how: Format) -> int | None:
    """A look at a whole file before it is read; returns the number of rows of a CSV file, else None.

    Raises:
        DataError: it is empty, a pointer to a file elsewhere, cut off, of another encoding or with another delimiter, or has
            rows with more fields than the header.
    """
    try:
        return _check(file, how)
    except OSError as error:
        raise DataError(f"The file {str(file)!r} cannot be opened: {error.strerror or error}.") from error


def _check(file: Path, how: Format) -> int | None:
    reader = reader_of(file)
    if file.stat().st_size == 0:
        raise DataError(f"The file {str(file)!r} is empty.")
    if _begins(file, _LFS):
        raise DataError(f"The file {str(file)!r} is a pointer of Git LFS, not the data: run `git lfs pull` where it came from.")
    if file.suffix.lower() in COMPRESSED:
        return None
    if reader == "parquet":
        _check_parquet(file)
        return None
    encoding = how.encoding or "utf-8"
    if reader == "json" and "utf-8" not in codecs.lookup(encoding).name and "A".encode(encoding) != b"A":
        rule = "JSON must be in an encoding that writes ASCII as it is"
        raise DataError(f"{rule}; {str(file)!r} is {encoding}. {_convert(file)}")
    _check_encoding(file, encoding, bool(how.encoding))
    return _check_csv(file, encoding, how) if reader == "csv" else None


def _check_parquet(file: Path) -> None:
    if not _begins(file, b"PAR1"):
        raise DataError(f"The file {str(file)!r} cannot be read: it is called .parquet, but is no Parquet file.")
    with open(file, "rb") as opened:
        opened.seek(-min(4, file.stat().st_size), io.SEEK_END)
        if opened.read() != b"PAR1":
            raise DataError(f"The file {str(file)!r} cannot be read: its end is missing, it was cut off. Copy it again.")


def _check_encoding(file: Path, encoding: str, given: bool) -> None:
    """Raises DataError where the bytes are not of the encoding, with one that they may be of."""
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    with open(file, "rb") as opened:
        head = opened.read(4)
        if not given and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise _encoding_error(file, "it begins as UTF-16 does", "utf-16")
        opened.seek(0)
        while True:
            block = opened.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:
                line += block[: getattr(error, "start", 0)].count(b"\n")
                wrong = f"line {line} is not {encoding} ({getattr(error, 'reason', error)})"
                raise _encoding_error(file, wrong, None if given else _guess(block)) from error
            if "\0" in text:
                if not given and block.count(0) > len(block) / 5:
                    raise _encoding_error(file, "every other byte is zero, as in UTF-16", _guess(block))
                line += text[: text.index("\0")].count("\n")
                raise DataError(f"Line {line} of {str(file)!r} holds a zero byte, where reading would stop: remove it.")
            line += text.count("\n")
            if not block:
                return


def _guess(block: bytes) -> str:
    """An encoding that the bytes may be of. Those of one byte a character decode anything, or nearly."""
    if block.count(0) > len(block) / 5:
        return "utf-16-le" if block[1::2].count(0) > block[::2].count(0) else "utf-16-be"
    try:
        block.decode("cp1252")
        return "cp1252"
    except UnicodeError:
        return "latin-1"


def _encoding_error(file: Path, why: str, likely: str | None) -> DataError:
    way_out = f"Say its encoding: dataset.encoding={likely}" if likely else "Give its own encoding as dataset.encoding=NAME"
    if reader_of(file) == "json" and likely and likely.startswith("utf-16"):
        way_out = _convert(file).rstrip(".")
    others = " (or another one, such as cp1250, shift_jis, gb18030)" if likely in ("cp1252", "latin-1") else ""
    rule = f"The text in {str(file)!r} must be UTF-8, or of the encoding that is given"
    return DataError(f"{rule}, but {why}. {way_out}{others}.")


def _convert(file: Path) -> str:
    return f"Convert it: iconv -f UTF-16 -t UTF-8 {file.name} > utf8_{file.name}."


def _check_csv(file: Path, encoding: str, how: Format) -> int:
    """The number of rows. Raises DataError where a row has more fields than the header: readers shift or drop the rest."""
    delimiter, rows = _delimiter(file, how), 0
    with _any_length(), open(file, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="") as opened:
        lines = csv.reader(opened, delimiter=delimiter)
        header = next(_filled(lines), [])
        if len(header) == 1 and not how.delimiter and (other := _other_delimiter(header[0], delimiter)):
            raise DataError(
                f"The columns of {str(file)!r} must be separated by {_name(delimiter)}; its first line, {header[0]!r}, has "
                f"none, but {_name(other)}: dataset.delimiter={_name(other)}."
            )
        for row in _filled(lines):
            rows += 1
            if len(row) > len(header):
                raise DataError(
                    f"Each row of {str(file)!r} must have the {len(header)} fields of its first line "
                    f"({', '.join(header)[:100]}); the one that ends in line {lines.line_num} has {len(row)}. "
                    f"A text in which the delimiter {_name(delimiter)} occurs must be in quotation marks; for another "
                    "delimiter: dataset.delimiter=NAME."
                )
    return rows


def _filled(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Rows without blank lines, which readers skip."""
    return (row for row in rows if row and not (len(row) == 1 and not row[0].strip()))


def _delimiter(file: Path, how: Format) -> str:
    return how.delimiter or ("\t" if ".tsv" in [suffix.lower() for suffix in file.suffixes] else ",")


def _other_delimiter(header: str, delimiter: str) -> str | None:
    found = [(header.count(other), other) for other in DELIMITERS.values() if other != delimiter and other in header]
    return max(found)[1] if found else None


def _name(delimiter: str) -> str:
    return next((name for name, character in DELIMITERS.items() if character == delimiter), repr(delimiter))


def _begins(file: Path, mark: bytes) -> bool:
    with open(file, "rb") as opened:
        return opened.read(len(mark)) == mark


@contextmanager
def _any_length() -> Iterator[None]:
    """Fields of any length: the csv module refuses those of more than 128 KiB, and the limit is a global one."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
