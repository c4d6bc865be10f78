"""Masks: pictures whose pixels name classes, decoded and turned from a data set's own values into class indices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..models.semantic import IGNORED
from .errors import DataError
from .pictures import source_of

_WRONG = -2
_VALUES = 1 << 16


def open_mask(item: Any) -> np.ndarray:
    """(H, W) integers of an encoded mask: grey (8 or 16 bits), a palette's indices, or colours whose channels are equal.

    Raises:
        ValueError: there is none, it is a colour picture, or its file holds other values than were written (JPEG). Besides,
            whatever Pillow finds wrong with it.
    """
    from PIL import Image, ImageOps

    if item is None:
        raise ValueError("there is no mask")
    picture = Image.open(source_of(item))
    if (kind := _lossy(picture)) is not None:
        raise ValueError(f"the mask is a {kind} file, whose compression changes the class numbers; save masks as PNG")
    if picture.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        raise ValueError("the mask is a colour picture; its pixels must be class numbers")
    raw = _raw_mode(picture)
    if "16" in raw and picture.mode in ("RGB", "RGBA", "LA"):
        raise ValueError("the mask has several channels of 16 bits, which are read as 8; save masks as grey")
    values = _unscaled(np.asarray(ImageOps.exif_transpose(picture)), raw)
    if values.ndim == 3:  # grey that was saved as RGB, with or without a channel of opacity
        colours = values[..., :3] if values.shape[2] > 2 else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise ValueError("the mask is a colour picture; its pixels must be class numbers")
        values = colours[..., 0]
    if values.dtype.kind == "f" and (values == np.rint(values)).all() and np.abs(values).max(initial=0) < _VALUES:
        values = values.astype(np.int64)  # whole numbers in a file of floating-point ones
    if values.dtype.kind not in "iub":
        raise ValueError(f"the mask has values of type {values.dtype}; its pixels must be class numbers")
    return values


def _raw_mode(picture: Any) -> str:
    """How Pillow says that pixels lie in the file of an opened picture: `L;4` are four bits of grey."""
    arguments = picture.tile[0][3] if getattr(picture, "tile", None) else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _unscaled(values: np.ndarray, raw: str) -> np.ndarray:
    """The numbers in the file: Pillow stretches grey of 2 and 4 bits to 255, and turns white-is-zero round."""
    kind, *details = raw.split(";")
    if kind not in ("L", "1") or not details:
        return values
    flags = "".join(details)
    if "I" in flags:
        values = ~values if values.dtype.kind == "b" else 255 - values
    return values // {"2": 85, "4": 17}.get(flags[0], 1) if values.dtype.kind != "b" else values


def _lossy(picture: Any) -> str | None:
    """The format of an opened picture whose compression changes values; None for one that keeps them."""
    if picture.format in ("JPEG", "MPO", "AVIF"):
        return picture.format
    if picture.format == "TIFF" and picture.info.get("compression") in ("jpeg", "tiff_jpeg"):
        return "JPEG-compressed TIFF"
    if picture.format == "WEBP":
        picture.fp.seek(0)
        lossy = b"VP8 " in picture.fp.read(1 << 12)  # the lossless chunk is VP8L
        return "lossy WEBP" if lossy else None
    return None


class MaskValues:
    """What a mask's values mean: `of` maps them to class indices, or IGNORED.

    Args:
        classes: how many. ignore: values to leave out. ids: the value of each class, in order, all others being left out
            (Cityscapes); empty: value i is class i. reduce_zero_label: value 0 is left out, and i is class i - 1 (ADE20K).
    """

    def __init__(self, classes: int, ignore: Sequence[int] = (), ids: Sequence[int] = (), reduce_zero_label: bool = False):
        self.classes, first = classes, 1 if reduce_zero_label else 0
        self.rule = f"classes are {first} to {first + classes - 1}, left out: {', '.join(map(str, ignore)) or 'none'}"
        self.table = np.full(_VALUES, IGNORED if ids else _WRONG, dtype=np.int16)
        self.table[np.asarray(list(ids) or range(first, first + classes))] = np.arange(classes)
        if reduce_zero_label:
            self.table[0] = IGNORED
        self.table[[value % _VALUES for value in ignore]] = IGNORED

    def of(self, values: np.ndarray) -> np.ndarray:
        """(H, W) int16 class indices. Raises ValueError for a value that is neither a class nor to be ignored."""
        if values.dtype.itemsize > 2 and values.size and max(-int(values.min()), int(values.max())) >= _VALUES:
            raise ValueError(f"a value of the mask is out of range ({self.rule}); {values.min()} to {values.max()}")
        mask = self.table[values.astype(np.int64) % _VALUES]
        if (mask == _WRONG).any():
            raise ValueError(f"a value of the mask is out of range ({self.rule}); it is {values[mask == _WRONG].flat[0]}")
        return mask


def numbered_classes(
    found: Counter[int], ignore: Sequence[int], reduce_zero_label: bool, column: str
) -> tuple[list[str], tuple[str, ...]]:
    """(names of the classes, a note on those that do not occur) of masks whose classes are named nowhere: 0 to the largest.

    Args:
        found: {value: in how many masks it occurs}.

    Raises:
        DataError: fewer than two classes, or values so far apart that they are no numbers of classes.
    """
    first = 1 if reduce_zero_label else 0
    used = sorted(value for value in found if value not in ignore and value >= first)
    left_out = sorted(set(found) - set(used))
    what = f"the masks in column {column!r} have the values {_some(sorted(found))}"
    what += f", of which {_some(left_out)} {'are' if len(left_out) > 1 else 'is'} left out" if left_out else ""
    if len(used) < 2 or len(used) < (used[-1] - first + 1) / 4:
        ids = sorted(value for value in found if value >= 0)
        ways = ["Name the classes in FOLDER/classes.txt or as dataset.classes=[...]"]
        if 2 <= len(ids) <= 64:
            ignored = " dataset.ignore=[]" if set(ids) & set(ignore) else ""
            ways.insert(0, f"If each value is a class: dataset.ids={str(ids).replace(' ', '')}{ignored}")
        rule = f"The values of masks must be numbers of two or more classes, from {first} on"
        raise DataError(f"{rule}; {what}. {'. '.join(ways)}.")
    absent = [str(value) for value in range(first, used[-1] + 1) if value not in used]
    note = (f"in no mask: {_some(absent)} of the classes {first} to {used[-1]}, which were counted from the masks",)
    return [str(i) for i in range(first, used[-1] + 1)], note if absent else ()


def _some(values: Sequence[Any], most: int = 8) -> str:
    return ", ".join(map(str, values[:most])) + (f", ... {values[-1]} ({len(values)} in all)" if len(values) > most else "")
