"""Pictures with their masks: checked before the training, and kept decoded where they are small."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .bad_rows import BadRows
from .masks import MaskValues, open_mask
from .pictures import open_picture
from .stores import FULLY_CHECKED

KEPT_BYTES = 1 << 29
"""Decoded pairs of a split are kept up to this size; those of larger splits are decoded when they are asked for."""
SAMPLED = 1000
"""So many pairs of a large set are decoded before the training."""


class Pair(NamedTuple):
    """picture: (3, H, W) uint8. mask: (h, w) int16, class indices; of the picture's size, or of that before it was resized."""

    picture: Tensor
    mask: Tensor


class PairReader:
    """Decodes rows of a data set. size: pixels of the shorter side to resize to; training: the mask is resized too."""

    def __init__(self, split: Any, image: str, mask: str, values: MaskValues, size: int | None, training: bool):
        self.split, self.image, self.mask, self.values, self.size, self.training = split, image, mask, values, size, training

    def __call__(self, row: int) -> Pair:
        """Raises ValueError, or what Pillow finds wrong: its message is for the user."""
        item = self.split[row]
        if item[self.image] is None:
            raise ValueError("there is no picture for this mask")
        try:
            picture = open_picture(item[self.image], 3)
        except Exception as error:
            raise ValueError(f"the picture cannot be decoded; {type(error).__name__}: {error}") from error
        try:
            values = open_mask(item[self.mask])
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"the mask cannot be decoded; {type(error).__name__}: {error}") from error
        height, width = values.shape
        if picture.size != (width, height):
            raise ValueError(f"mask and picture differ in size; {width}x{height} and {picture.width}x{picture.height}")
        return self._resized(picture, self.values.of(values))

    def _resized(self, picture: Any, mask: np.ndarray) -> Pair:
        from PIL import Image

        if self.size is not None and min(picture.size) != self.size:
            scale = self.size / min(picture.size)
            width, height = (max(1, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            if self.training:  # in evaluation, predictions are compared with the mask as it is
                mask = mask[nearest(mask.shape[0], height)[:, None], nearest(mask.shape[1], width)[None, :]]
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return Pair(pixels, torch.from_numpy(np.ascontiguousarray(mask)))

    def file(self, row: int) -> str | None:
        """File of the picture, or of the mask where there is none; None where rows come without names of files."""
        items = [self.split[row][column] or {} for column in (self.image, self.mask)]
        return next((item["path"] for item in items if item.get("path")), None)

    def header(self, row: int) -> None:
        """A quick look at a row of a set that is too large to be decoded twice. Raises what is wrong."""
        from PIL import Image

        for item in (self.split[row][self.image], self.split[row][self.mask]):
            if item is None:
                raise ValueError("there is a picture or a mask missing")
            Image.open(io.BytesIO(item["bytes"]) if item.get("bytes") is not None else item["path"]).close()

    def digest(self, rows: list[int]) -> bytes:
        """Of the rows' numbers and of a hundred of them, spread over all."""
        digest = hashlib.sha256(str(rows).encode())
        for row in rows[:: max(1, len(rows) // 100)]:
            for item in (self.split[row][self.image], self.split[row][self.mask]):
                raw = item.get("bytes")
                digest.update(raw if raw is not None else Path(item["path"]).read_bytes())
        return digest.digest()


def nearest(size: int, new: int) -> np.ndarray:
    """Which of `size` pixels each of `new` ones takes, centres on centres."""
    return ((np.arange(new) + 0.5) * size / new).astype(np.int64)


class Pairs:
    """The pairs of a split by place. kept: decoded ones, or None; then `read` decodes the row at a place.

    A pair that turns out broken when it is decoded (in sets too large to be checked whole) is replaced by the next one, with a
    warning.
    """

    def __init__(self, kept: list[Pair] | None, read: Callable[[int], Pair] | None = None, rows: list[int] | None = None):
        self.kept, self.read, self.rows = kept, read, rows or []
        self.replaced: set[int] = set()  # rows of broken pairs that this process met

    def __len__(self) -> int:
        return len(self.kept if self.kept is not None else self.rows)

    def __getitem__(self, place: int) -> Pair:
        if self.kept is not None:
            return self.kept[place]
        for step in range(len(self.rows)):
            row = self.rows[(place + step) % len(self.rows)]
            try:
                return self.read(row)
            except Exception as error:  # Pillow, zlib and struct each raise their own
                if row not in self.replaced:
                    self.replaced.add(row)
                    warnings.warn(f"row {row} cannot be used and is replaced by the next: {error}", stacklevel=2)
        raise OSError(f"None of the {len(self.rows)} pictures can be decoded any more; was the data removed?")

    def __iter__(self) -> Iterator[Pair]:
        return (self[place] for place in range(len(self)))

    def digest(self) -> bytes:
        if self.kept is None or self.read is not None:
            return self.read.digest(self.rows)
        digest = hashlib.sha256()
        for pair in self.kept:
            digest.update(pair.picture.numpy().tobytes() + pair.mask.numpy().tobytes())
        return digest.digest()


def checked_pairs(read: PairReader, rows: list[int], faults: BadRows) -> Pairs:
    """The good ones among `rows`. All are decoded for it; of large sets a thousand, spread over them, and headers of the rest:
    what is wrong with a whole set (its classes, its sizes) is found so, and single broken ones are replaced later.

    Raises:
        DataError: as `faults` says.
    """
    whole, kept, size = len(rows) <= FULLY_CHECKED, {}, 0
    decoded = set(rows if whole else rows[:: len(rows) // SAMPLED])
    for row in tqdm(rows, desc="checking pictures and masks", delay=3, leave=False, disable=None):
        try:
            if row not in decoded:
                read.header(row)
                continue
            pair = read(row)
        except Exception as error:
            faults.add(row, str(error))
            continue
        size += pair.picture.numel() + 2 * pair.mask.numel()
        if whole and size <= KEPT_BYTES:
            kept[row] = pair
    good = faults.kept(rows)
    return Pairs([kept[row] for row in good] if whole and size <= KEPT_BYTES else None, read, good)
