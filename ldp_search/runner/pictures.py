"""Pictures in memory as one uint8 tensor, and their augmentation, a batch at a time.

Random numbers come from a hash of (seed, epoch, index), not from a generator: every picture gets the same crop and flip in
the same epoch whatever the number of workers, after a resume too, and the global random state is left alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .data import DataError

MODES = {1: "L", 3: "RGB"}
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = 0x9E3779B97F4A7C15


def decode(encoded: Sequence[Any], rows: Sequence[int], channels: int, size: int | None, split: str) -> Tensor:
    """(N, channels, H, W) uint8 from encoded pictures (what `datasets` holds with decode=False), resized to size x size.

    Raises:
        DataError: a picture that cannot be decoded, or pictures of several sizes without `size`; names the row.
    """
    from PIL import Image

    def one(row_and_item: tuple[int, Any]) -> np.ndarray:
        row, item = row_and_item
        try:
            raw = item.get("bytes") if isinstance(item, dict) else item
            picture = Image.open(io.BytesIO(raw) if raw is not None else item["path"]).convert(MODES[channels])
        except Exception as error:  # Pillow, zlib and struct each raise their own
            raise DataError(f"Row {row} of split {split!r} must hold a picture; decoding it failed: {error}") from error
        if size is not None and picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    arrays = [one(pair) for pair in zip(rows, encoded, strict=True)]  # threads were tried: no gain on small pictures
    for row, array in zip(rows, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"Pictures must have one size; row {rows[0]} of split {split!r} is {_shape(arrays[0])}, row {row} is "
                f"{_shape(array)}. Give `size: PIXELS` in the `dataset:` of the task's file, and they are resized."
            )
    stacked = torch.from_numpy(np.stack(arrays))
    return (stacked[:, None] if channels == 1 else stacked.permute(0, 3, 1, 2)).contiguous()


def _shape(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def random_bits(seed: int, epoch: int, indices: Tensor) -> np.ndarray:
    """64 random bits for each index: splitmix64 of (seed, epoch, index)."""
    x = np.array([(seed * 0x1000193 + epoch + 1) * _STEP % 2**64], dtype=np.uint64)
    for part in (np.zeros(1, np.uint64), indices.numpy().astype(np.uint64)):  # mixed twice, so that neighbours part
        x = x + (part + np.uint64(1)) * np.uint64(_STEP)
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
        x = x ^ (x >> np.uint64(31))
    return x


def augment(pictures: Tensor, pad: int, flip: bool, bits: np.ndarray) -> Tensor:
    """Crops of the black-padded pictures (N, C, H, W), of their own size, half of them mirrored; by 64 random bits each."""
    n, channels, height, width = pictures.shape
    columns = torch.arange(width).repeat(n, 1)
    if flip:
        mirrored = torch.from_numpy((bits & np.uint64(1)).astype(bool))
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    if not pad:
        return pictures.gather(3, columns[:, None, None].expand_as(pictures)) if flip else pictures
    places = np.uint64(2 * pad + 1)
    x = torch.from_numpy(((bits >> np.uint64(1) & np.uint64(0xFFFFFFF)) % places).astype(np.int64))
    y = torch.from_numpy(((bits >> np.uint64(32)) % places).astype(np.int64))
    padded = F.pad(pictures, (pad, pad, pad, pad))
    rows = (torch.arange(height) + y[:, None])[:, None, :, None]
    columns = (columns + x[:, None])[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows, columns]


def normalize(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """fp32 with the channels' mean and deviation (of pixels in [0, 1]) taken out."""
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) * 255 for values in (mean, std))
    return (pictures.float() - shift) / scale
