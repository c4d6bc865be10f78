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
from .errors import DataError

MODES = {1: "L", 3: "RGB"}
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = 0x9E3779B97F4A7C15


class PictureReader:
    """Decodes pictures to 8 bits a channel, with their values kept: what is more than a change of type is told in `remarks`.

    Grey of 16 bits is scaled, so that 65,535 is white, or the upper end of `value_range`, which pictures of other types
    (32 bits, floating point) need: their files do not say what is white. Transparent pixels lie on white, as viewers show them.

    Args:
        channels: 1 (grey) or 3 (colour). value_range: the values that are black and white in grey pictures of more than 8 bits.

    Attributes:
        remarks: {what was done: how many pictures}, of all that were read.
    """

    def __init__(self, channels: int, value_range: Sequence[float] = ()):
        self.channels, self.value_range = channels, tuple(value_range)
        self.remarks: Counter[str] = Counter()

    def __call__(self, item: Any) -> Any:
        """The PIL picture of what `datasets` holds with decode=False, turned as its EXIF data say (photographs of phones).

        Raises ValueError where its values have no range, or whatever Pillow finds wrong with it.
        """
        from PIL import Image, ImageOps

        picture = Image.open(source_of(item))
        if picture.format == "TIFF" and getattr(picture, "n_frames", 1) > 1:
            self.remarks["only the first of several pages is read"] += 1
        sixteen = "16" in picture.mode or (picture.mode == "I" and picture.format == "PNG")  # older Pillow: I for 16 bits
        picture = ImageOps.exif_transpose(picture)
        picture = self._scaled(picture, sixteen) if picture.mode.startswith(("I", "F")) else self._opaque(picture)
        return picture.convert(MODES[self.channels])

    def _scaled(self, picture: Any, sixteen: bool) -> Any:
        """A grey picture of more than 8 bits, in 8."""
        from PIL import Image

        if not sixteen and not self.value_range:
            kind = "floating-point numbers" if picture.mode == "F" else "32-bit integers"
            raise ValueError(f"its file does not say which of its {kind} are black and white: dataset.value_range=[LOW,HIGH]")
        low, high = self.value_range or (0, 2**16 - 1)
        values = (np.asarray(picture).astype(np.float64) - low) / (high - low)
        if not np.isfinite(values).all():
            raise ValueError("its values must be finite; some are not")
        if values.size and (values.min() < 0 or values.max() > 1):
            self.remarks["values outside of dataset.value_range are cut off"] += 1
        self.remarks[f"grey of {'16 bits' if sixteen else '32 bits'} is read as 8 bits, {high:g} being white"] += 1
        return Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8))

    def _opaque(self, picture: Any) -> Any:
        """A picture without transparency, on white."""
        from PIL import Image

        if not (picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info):
            return picture
        picture = picture.convert("RGBA")
        if picture.getextrema()[3][0] == 255:
            return picture
        self.remarks["transparent pixels are read as white"] += 1
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)

    def note(self, split: str) -> tuple[str, ...]:
        """What was told so far, as a note for the user; () without anything."""
        return tuple(f"split {split!r}: {what} ({n:,} pictures)" for what, n in self.remarks.items())


def check_range(value_range: Sequence[float]) -> None:
    """Raises DataError for a `value_range` that is neither empty nor two rising numbers."""
    if value_range and (len(value_range) != 2 or not value_range[0] < value_range[1]):
        raise DataError(f"`value_range` must be the values of black and white, rising; received {list(value_range)}.")


def source_of(item: Any) -> Any:
    """What Pillow opens of an encoded picture: its file's name, or its bytes."""
    raw = item.get("bytes") if isinstance(item, dict) else item
    return io.BytesIO(raw) if raw is not None else item["path"]


def decode(
    encoded: Sequence[Any], rows: Sequence[int], read: PictureReader, size: int | None, faults: BadRows
) -> dict[int, np.ndarray]:
    """{row: (H, W) or (H, W, 3) uint8} of encoded pictures, resized to size x size; `faults` hears of the others.

    Without `size`, pictures must have the size that most of the first ones have.
    """
    from PIL import Image

    out: dict[int, np.ndarray] = {}
    for row, item in zip(rows, encoded, strict=True):  # threads were tried: no gain on small pictures
        try:
            picture = read(item)
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
