"""One's own pictures and masks in folders, paired by their names.

    FOLDER/images/train/a.jpg     FOLDER/masks/train/a.png      or  FOLDER/train/images, FOLDER/train/masks
    FOLDER/images/val/b.jpg       FOLDER/masks/val/b.png        or  FOLDER/train, FOLDER/trainannot (CamVid of SegNet)

ADE20K's (images/training, annotations/training) and Cityscapes's folders (leftImg8bit/train/CITY, gtFine/train/CITY) are found
too. Without folders of splits (FOLDER/images, FOLDER/masks) a fifth of the pairs, always the same, is for evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .class_folders import is_picture
from .errors import DataError
from .listing import files_in, not_read, split_of
from .subsets import spread

LAYOUTS = "pictures in images/train and masks of the same names in masks/train (and images/val, masks/val), or Parquet files"
_FOLDERS = (
    ("images/{}", "masks/{}"),
    ("images/{}", "annotations/{}"),
    ("images/{}", "labels/{}"),
    ("{}/images", "{}/masks"),
    ("{}/images", "{}/labels"),
    ("{}/image", "{}/mask"),
    ("leftImg8bit/{}", "gtFine/{}"),
    ("{}", "{}annot"),
    ("{}", "{}_masks"),
    ("{}", "{}_labels"),
)
_FLAT = (("images", "masks"), ("images", "annotations"), ("images", "labels"), ("image", "mask"))


def paired_folders(
    place: Path, splits: Sequence[str], image_suffix: str, mask_suffix: str
) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """({split: data set with the columns image, mask (encoded; None where a partner is missing)}, notes on pictures that are
    not read); None if it is no such folder.

    Args:
        splits: names of splits to look for. image_suffix, mask_suffix: what the names of a pair have besides their common
            part, before the extension (`_leftImg8bit`, `_gtFine_labelIds`); files without it are passed over.

    Raises:
        DataError: the folders are there, but nothing in them fits, or two files in one of them have the same name.
    """
    suffixes = (image_suffix, mask_suffix)
    found = {}
    for split in splits:
        for pattern in _FOLDERS:
            pair = [place / folder.format(split) for folder in pattern]
            if all(folder.is_dir() for folder in pair) and split not in found:
                found[split] = _pairs(pair, suffixes)
    for pattern in _FLAT:
        pair = [place / folder for folder in pattern]
        if not found and all(folder.is_dir() for folder in pair):
            every = _pairs(pair, suffixes)
            kept, held = spread(len(every), 0.2)
            found = {"train": every.select(kept), "validation": every.select(held)}
    return (found, _unread(place, found)) if found else None


def _unread(place: Path, found: dict[str, Any]) -> tuple[str, ...]:
    """A note on pictures that are in none of the splits, nor in a folder of another split, nor partners of another kind."""
    read = {Path(path) for split in found.values() for column in ("image", "mask") for path in _paths(split, column)}
    folders = {file.parent for file in read}
    others = [file for file in files_in(place) if is_picture(file) and file not in read and file.parent not in folders]
    return not_read(place, [file for file in others if not any(map(split_of, file.relative_to(place).parts[:-1]))])


def _paths(split: Any, column: str) -> list[str]:
    return [item["path"] for item in split[column] if item is not None]


def _pairs(folders: Sequence[Path], suffixes: Sequence[str]) -> Any:
    import datasets

    stems: list[dict[str, str]] = []
    for folder, suffix in zip(folders, suffixes, strict=True):
        found: dict[str, str] = {}
        for file in files_in(folder):
            if not is_picture(file) or not file.stem.endswith(suffix):
                continue
            name = str(file.relative_to(folder).with_suffix(""))[: -len(suffix) or None]
            if name in found:
                raise DataError(
                    f"Each name may occur once in {str(folder)!r}; {Path(found[name]).name} and {file.name} are of one name. "
                    "Which of them is meant is said by dataset.image_suffix= or dataset.mask_suffix=; else remove one."
                )
            found[name] = str(file)
        stems.append(found)
    if not set(stems[0]) & set(stems[1]):
        raise DataError(
            f"Pictures and masks must have the same names; those in {str(folders[0])!r} ({_few(stems[0])}) and "
            f"{str(folders[1])!r} ({_few(stems[1])}) have none in common. What the names have besides, before the extension, "
            "is said by dataset.image_suffix= and dataset.mask_suffix=."
        )
    names = sorted(set(stems[0]) | set(stems[1]))
    columns = {key: [stem.get(name) for name in names] for key, stem in zip(("image", "mask"), stems, strict=True)}
    plain = datasets.Image(decode=False)
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": plain, "mask": plain}))


def _few(names: dict[str, str]) -> str:
    return ", ".join(Path(file).name for file in list(names.values())[:2]) + (", ..." if len(names) > 2 else "") or "none"


def names_in(place: Path) -> list[str]:
    """Names of the classes from FOLDER/classes.txt, one a line; [] without one. Raises DataError for names that are none."""
    file = place / "classes.txt"
    if not file.is_file():
        return []
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeError as error:
        raise DataError(f"{str(file)!r} must be UTF-8, but {error.reason} at byte {error.start}: save it as UTF-8.") from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"{str(file)!r} must hold two names or more, each once, a line each; it holds {names[:10]}.")
    return names
