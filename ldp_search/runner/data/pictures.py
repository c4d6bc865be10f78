"""Pictures in memory as one uint8 tensor, and their augmentation, a batch at a time.

Random numbers come from a hash of (seed, epoch, index), not from a generator: every picture gets the same crop and flip in
the same epoch whatever the number of workers, after a resume too, and the global random state is left alone.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .bad_rows import BadRows

MODES = {1: "L", 3: "RGB"}
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = 0x9E3779B97F4A7C15


def open_picture(item: Any, channels: int):
    """The decoded PIL picture of what `datasets` holds with decode=False, turned as its EXIF data say (photographs of phones).

    Raises whatever Pillow finds wrong with it.
    """
    from PIL import Image, ImageOps

    raw = item.get("bytes") if isinstance(item, dict) else item
    picture = Image.open(io.BytesIO(raw) if raw is not None else item["path"])
    return ImageOps.exif_transpose(picture).convert(MODES[channels])


def decode(
    encoded: Sequence[Any], rows: Sequence[int], channels: int, size: int | None, faults: BadRows
) -> dict[int, np.ndarray]:
    """{row: (H, W) or (H, W, 3) uint8} of encoded pictures, resized to size x size; `faults` hears of the others.

    Without `size`, pictures must have the size that most of the first ones have.
    """
    from PIL import Image

    out: dict[int, np.ndarray] = {}
    for row, item in zip(rows, encoded, strict=True):  # threads were tried: no gain on small pictures
        try:
            picture = open_picture(item, channels)
        except Exception as error:  # Pillow, zlib and struct each raise their own
            faults.add(row, f"the picture cannot be decoded; {type(error).__name__}: {error}")
            continue
        if size is not None and picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        out[row] = np.asarray(picture)
    if out:
        usual = Counter(array.shape for array in list(out.values())[:1000]).most_common(1)[0][0]
        for row, array in out.items():
            if array.shape != usual:
                faults.add(row, f"the picture is {_shape(array)}, others are {_shape(usual)}; dataset.size=PIXELS resizes them")
    return out


def _shape(array: Any) -> str:
    height, width, *_ = getattr(array, "shape", array)
    return f"{width}x{height}"


def stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    """(N, channels, H, W) uint8 of pictures of one size."""
    pictures = torch.from_numpy(np.stack(arrays))
    return (pictures[:, None] if pictures.dim() == 3 else pictures.permute(0, 3, 1, 2)).contiguous()


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
