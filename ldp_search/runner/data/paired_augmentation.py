"""Augmentation that moves a picture and its mask together: scale jitter, crop and mirror, and colours of the picture alone.

A crop of a picture that was scaled by s is the scaled crop of a region 1/s as large; so only that region is resized. Random
numbers come from a generator of the sample's own, so the global random state is left alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.semantic import IGNORED
from .pairs import Pair, nearest


def moved(pair: Pair, crop: Sequence[int], scale: Sequence[float], flip: bool, jitter: float, bits: int) -> Pair:
    """A random crop of `crop` = (height, width) pixels, from the pair scaled by a factor in `scale`, by 64 random bits.

    What lies outside of the picture is black and ignored.
    """
    draw = random.Random(bits)
    factor = draw.uniform(*scale)
    size = [max(1, round(side / factor)) for side in crop]
    places = [_place(draw.random(), have, want) for have, want in zip(pair.mask.shape, size, strict=True)]
    mirrored = flip and draw.random() < 0.5
    picture, mask = (_region(tensor, places, size, fill) for tensor, fill in ((pair.picture, 0), (pair.mask, IGNORED)))
    if tuple(size) != tuple(crop):
        picture = F.interpolate(picture[None].float(), tuple(crop), mode="bilinear", antialias=True)[0]
        rows, columns = (torch.from_numpy(nearest(old, new)) for old, new in zip(size, crop, strict=True))
        mask = mask[rows[:, None], columns[None, :]]
    if mirrored:
        picture, mask = picture.flip(-1), mask.flip(-1)
    if jitter:
        picture = _coloured(picture.float(), jitter, draw)
    return Pair(picture, mask)


def _place(share: float, have: int, want: int) -> int:
    """Where a region begins; a picture that is smaller lies anywhere in it."""
    spare = have - want
    return int(share * (spare + 1)) if spare >= 0 else -int(share * (1 - spare))


def _region(tensor: Tensor, places: Sequence[int], size: Sequence[int], fill: int) -> Tensor:
    """(..., *size) from `places` on, filled up where it goes beyond the edges."""
    for dim, place, want in ((-2, places[0], size[0]), (-1, places[1], size[1])):
        begin, end = max(0, place), min(tensor.shape[dim], place + want)
        tensor = tensor.narrow(dim, begin, end - begin)
    (top, left), (height, width) = (max(0, -place) for place in places), tensor.shape[-2:]
    if (height, width) == tuple(size):
        return tensor
    return F.pad(tensor, (left, size[1] - width - left, top, size[0] - height - top), value=fill)


def _coloured(picture: Tensor, strength: float, draw: random.Random) -> Tensor:
    """Brightness, contrast and saturation each changed by a factor in 1 +- strength."""
    bright, contrast, colour = (draw.uniform(1 - strength, 1 + strength) for _ in range(3))
    picture = picture * bright
    mean = picture.mean()
    picture = mean + contrast * (picture - mean)
    grey = picture.mean(0, keepdim=True)
    return (grey + colour * (picture - grey)).clamp(0, 255)
