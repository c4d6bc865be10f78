"""One's own pictures, a folder for each class: FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg.

Everything that the folder holds is read or named: links are followed, as torchvision and timm do, and whatever would be left
out (a folder beside the splits, a class without a picture, pictures at other depths) is refused with its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .errors import DataError
from .listing import hidden, not_read, split_of

LAYOUT = "FOLDER/train/CLASS/*.jpg and FOLDER/validation/CLASS/*.jpg, or FOLDER/CLASS/*.jpg with dataset.hold_out=0.1"
_STUBS = {".mpg", ".mpeg", ".hdf", ".h5", ".bufr", ".grib", ".wmf", ".emf", ".eps", ".ps", ".pcd"}
"""Extensions that Pillow knows, but has no decoder of its own for, or none that gives a picture's own pixels."""


@cache
def picture_suffixes() -> frozenset[str]:
    """Extensions of the files that Pillow decodes, in lower case."""
    from PIL import Image

    Image.init()
    return frozenset(e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN) - _STUBS


def is_picture(file: Path) -> bool:
    return file.suffix.lower() in picture_suffixes()


def class_folders(place: Path, files: Sequence[Path], wanted: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """({split: data set with the columns image, label}, notes on files that are no pictures).

    Args:
        files: all that `place` holds. wanted: names of splits that the task asks for.

    Raises:
        DataError: something that holds pictures would not be read, or a class has none.
    """
    place = _base(place, files, wanted)
    splits = _splits(place, [file for file in files if file.is_relative_to(place)], wanted)
    names = sorted({label for rows in splits.values() for _, label in rows if label is not None})
    if not names:
        return {split: _data_set(rows, None) for split, rows in splits.items()}, ()
    _check_empty(place, files)
    read = {file for rows in splits.values() for file, _ in rows}
    notes = not_read(place, [file for file in files if file not in read])
    return {split: _data_set(rows, names) for split, rows in splits.items()}, notes


def _base(place: Path, files: Sequence[Path], wanted: Sequence[str]) -> Path:
    """The folder that the splits lie in: often one below, as an archive was unpacked."""
    tops = {file.relative_to(place).parts[0] for file in files if is_picture(file)}
    if len(tops) != 1 or split_of(only := tops.pop(), wanted) or not (place / only).is_dir():
        return place
    inner = {folder.name for folder in (place / only).iterdir() if folder.is_dir()}
    return place / only if any(split_of(name, wanted) for name in inner) else place


def _splits(place: Path, files: Sequence[Path], wanted: Sequence[str]) -> dict[str, list[tuple[Path, str | None]]]:
    """{split: [(picture, its class, None for one that lies beside the classes)]}."""
    parts: dict[str, list[Path]] = {}
    for file in filter(is_picture, files):
        parts.setdefault(file.relative_to(place).parts[0], []).append(file)
    of = {top: split_of(top, wanted) for top in parts if (place / top).is_dir()}
    if not any(of.values()):
        return {"train": _labelled(place, [file for found in parts.values() for file in found])}
    if beside := [top for top in parts if of.get(top) is None]:
        raise DataError(
            f"Beside the splits ({', '.join(sorted(top for top in of if of[top]))}) {str(place)!r} holds pictures that belong "
            f"to none of them: {', '.join(beside[:5])} ({sum(len(parts[top]) for top in beside):,} pictures). Move them into "
            f"a split or away, or name the split: dataset.eval={beside[0]}. Expected: {LAYOUT}."
        )
    out: dict[str, list] = {}
    for top in sorted(of, key=lambda top: (list(wanted) + ["train"]).index(of[top]) if of[top] in wanted else len(wanted)):
        out.setdefault(of[top], []).extend(_labelled(place / top, parts[top]))
    return out


def _labelled(folder: Path, pictures: Sequence[Path]) -> list[tuple[Path, str | None]]:
    """Each picture with the folder that it lies in; classes may lie deeper, but then all of them do."""
    depths = {len(file.relative_to(folder).parts): file for file in pictures}
    deep = sorted(depth for depth in depths if depth > 1)
    if len(deep) > 1:
        shown = " and ".join(str(depths[depth].relative_to(folder)) for depth in deep[:2])
        raise DataError(
            f"In {str(folder)!r} the folders of the classes must lie at one depth; there are {shown}, so that it is not clear "
            f"which folders are classes. Expected: {LAYOUT}."
        )
    return [(file, file.parent.name if file.parent != folder else None) for file in pictures]


def _check_empty(place: Path, files: Sequence[Path]) -> None:
    """Raises DataError for a folder among those of the classes in which no picture lies."""
    pictures = [file for file in files if is_picture(file)]
    holders = {folder for file in pictures for folder in file.parents}
    for parent in sorted({file.parent.parent for file in pictures if file.parent != place}):
        for folder in sorted(parent.iterdir()):
            if not folder.is_dir() or folder in holders or hidden(folder.name):
                continue
            kinds = sorted({file.suffix or "no extension" for file in files if file.parent == folder})
            raise DataError(
                f"Among the folders of the classes {str(folder)!r} must hold pictures; it holds "
                f"{'files of ' + ', '.join(kinds[:3]) if kinds else 'nothing'}, so that the class would be missing. Convert "
                "its files to PNG or JPEG, or move the folder away."
            )


def _data_set(rows: Sequence[tuple[Path, str | None]], names: list[str] | None) -> Any:
    import datasets

    columns: dict[str, list] = {"image": [str(file) for file, _ in rows]}
    features: dict[str, Any] = {"image": datasets.Image(decode=False)}
    if names is not None:
        columns["label"] = [label for _, label in rows]
        features["label"] = datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
