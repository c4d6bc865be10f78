"""Masks: pictures whose pixels name classes, decoded and turned from a data set's own values into class indices."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..models.semantic import IGNORED

_WRONG = -2
_VALUES = 1 << 16


def open_mask(item: Any) -> np.ndarray:
    """(H, W) integers of an encoded mask: grey (8 or 16 bits), a palette's indices, or colours whose channels are equal.

    Raises:
        ValueError: there is none, or it is a colour picture. Besides, whatever Pillow finds wrong with it.
    """
    from PIL import Image

    if item is None:
        raise ValueError("there is no mask")
    raw = item.get("bytes")
    values = np.asarray(Image.open(io.BytesIO(raw) if raw is not None else item["path"]))
    if values.ndim == 3:  # grey that was saved as RGB, with or without a channel of opacity
        colours = values[..., :3] if values.shape[2] > 2 else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise ValueError("the mask is a colour picture; its pixels must be class numbers")
        values = colours[..., 0]
    if values.dtype.kind not in "iub":
        raise ValueError(f"the mask has values of type {values.dtype}; its pixels must be class numbers")
    return values


class MaskValues:
    """What a mask's values mean: `of` maps them to class indices, or IGNORED.

    Args:
        classes: how many. ignore: values to leave out. ids: the value of each class, in order, all others being left out
            (Cityscapes); empty: value i is class i. reduce_zero_label: value 0 is left out, and i is class i - 1 (ADE20K).
    """

    def __init__(self, classes: int, ignore: Sequence[int] = (), ids: Sequence[int] = (), reduce_zero_label: bool = False):
        first = 1 if reduce_zero_label else 0
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
