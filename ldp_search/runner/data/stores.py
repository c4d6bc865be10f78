"""Where the pictures of a split lie: decoded in memory, or encoded (memory-mapped) and decoded when they are asked for."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .bad_rows import BadRows
from .pictures import augment, decode, normalize, open_picture, random_bits, stacked
from .seeded import sample_bits, seeded

FULLY_CHECKED = 20_000
"""Of so many pictures each is decoded before the training; of more, the header is read."""


class InMemory:
    """Pictures of one size as (N, C, H, W) uint8: a batch costs a gather, a crop and a subtraction."""

    def __init__(self, pictures: Tensor):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Tensor, epoch: int | None, data: Any, seed: int) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) fp32: cropped and mirrored in training (epoch given), normalized; and the places, `indices`."""
        pictures = self.pictures[indices]
        if epoch is not None and (data.pad or data.flip):
            pictures = augment(pictures, data.pad, data.flip, random_bits(seed, epoch, indices))
        return normalize(pictures, data.mean, data.std), indices

    def digest(self) -> bytes:
        return str(tuple(self.pictures.shape)).encode() + hashlib.sha256(self.pictures.numpy()).digest()


class Encoded:
    """Pictures of any size in a column of a data set, transformed one by one by timm's pipeline.

    transforms: {training?: PIL picture -> (C, H, W)}, set when the model is known. A picture that turns out to be broken when
    it is decoded (in sets too large to decode twice) is replaced by the next one, with a warning.
    """

    def __init__(self, split: Any, column: str, rows: list[int], channels: int):
        self.split, self.column, self.rows, self.channels = split, column, rows, channels
        self.transforms: dict[bool, Callable] = {}
        self.replaced: set[int] = set()  # places of broken pictures that this process met

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, epoch: int | None, data: Any, seed: int) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) fp32, through the transforms, and the places that they are from, where their labels are too."""
        found = [self.picture(i) for i in indices.tolist()]
        places = torch.tensor([place for place, _ in found])
        if epoch is None:
            return torch.stack([self.transforms[False](picture) for _, picture in found]), places
        with seeded() as seed_all:
            out = []
            for (_, picture), bits in zip(found, sample_bits(seed, epoch, indices), strict=True):
                seed_all(bits)
                out.append(self.transforms[True](picture))
            return torch.stack(out), places

    def picture(self, place: int) -> tuple[int, Any]:
        """(place, PIL picture): the one at a place among the rows, or the next good one."""
        for step in range(len(self.rows)):
            at = (place + step) % len(self.rows)
            try:
                return at, open_picture(self.split[self.rows[at]][self.column], self.channels)
            except Exception as error:  # Pillow, zlib and struct each raise their own
                if at not in self.replaced:
                    self.replaced.add(at)
                    warnings.warn(f"row {self.rows[at]} cannot be decoded and is replaced by the next: {error}", stacklevel=2)
        raise OSError(f"None of the {len(self.rows)} pictures can be decoded any more; was the data removed?")

    def digest(self) -> bytes:
        """Of the rows and of a hundred pictures spread over them: reading all of a large set would take minutes."""
        digest = hashlib.sha256(str(self.rows).encode())
        for place in range(0, len(self.rows), max(1, len(self.rows) // 100)):
            item = self.split[self.rows[place]][self.column]
            digest.update(item["bytes"] if item.get("bytes") is not None else Path(item["path"]).read_bytes())
        return digest.digest()


def check_pictures(split: Any, column: str, rows: list[int], channels: int, faults: BadRows) -> None:
    """Tell `faults` of the pictures that cannot be decoded; of large sets, of those whose header is broken."""
    from PIL import Image

    whole = len(rows) <= FULLY_CHECKED
    for row in tqdm(rows, desc="checking pictures", delay=3, leave=False, disable=None):
        item = split[row][column]
        try:
            if whole:
                open_picture(item, channels)
            else:
                raw = item.get("bytes")
                Image.open(io.BytesIO(raw) if raw is not None else item["path"]).close()
        except Exception as error:
            faults.add(row, f"the picture cannot be decoded; {type(error).__name__}: {error}")


def load_pictures(
    split: Any, column: str, rows: list[int], channels: int, size: int | None, faults: BadRows
) -> tuple[InMemory, list[int]]:
    """The good ones among `rows` decoded in memory, and which rows they are. Raises DataError as `faults` says."""
    arrays = decode(list(split.select(rows)[column]), rows, channels, size, faults)
    good = faults.kept(rows)
    return InMemory(stacked([arrays[row] for row in good])), good
