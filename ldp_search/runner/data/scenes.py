"""Segmentation without a network: scenes of scikit-learn's real handwritten digits on a coloured, noisy ground.

A scene is a function of (half, index): up to 6 digits of one half of the 1,797, enlarged to 16 to 28 pixels, each in a colour
of its own, over a slope of two colours with noise. A pixel's class is 0 on the ground, and digit + 1 where a digit's ink covers
it. One for which there is no room is left out. No digit of the training scenes occurs in those for evaluation.
"""

from __future__ import annotations

import numpy as np
import torch

from .embedded import digits
from .pairs import Pair

SIZE = 64
SCENES = (1000, 200)  # for training, for evaluation
NAMES = ["ground", *map(str, range(10))]
INK = 0.35  # share of a digit's colour in a pixel from which on the pixel belongs to it


def scenes(half: int, indices: list[int]) -> list[Pair]:
    """Pairs of (3, 64, 64) uint8 and (64, 64) int16; half: 0 for training, 1 for evaluation."""
    pictures, labels = digits()[half]
    arrays, classes = pictures[:, 0].numpy() / 255.0, labels.tolist()
    return [_scene(arrays, classes, np.random.RandomState([20, half, index])) for index in indices]


def _scene(arrays: np.ndarray, classes: list[int], draw: np.random.RandomState) -> Pair:
    """RandomState's streams are frozen, which makes the scenes the same for ever."""
    slope = (np.arange(SIZE)[:, None] * draw.rand() + np.arange(SIZE)[None, :] * draw.rand())[..., None] / SIZE
    ground = draw.rand(3) * 0.6
    picture = ground + slope * (draw.rand(3) - 0.5) * 0.5
    mask, placed, wanted = np.zeros((SIZE, SIZE), np.int16), 0, 2 + int(draw.rand() * 5)
    for _ in range(12):
        which, size = int(draw.rand() * len(arrays)), 16 + int(draw.rand() * 13)
        top, left = (int(draw.rand() * (SIZE - size + 1)) for _ in range(2))
        colour = ground + (0.35 + 0.3 * draw.rand(3)) * (1 if ground.mean() < 0.4 else -1)
        window = (slice(top, top + size), slice(left, left + size))
        ink = _enlarged(arrays[which], size)
        if placed < wanted and not (mask[window] > 0)[ink > 0].any():
            picture[window] += ink[..., None] * (colour - picture[window])
            mask[window][ink >= INK] = classes[which] + 1
            placed += 1
    picture = picture + (draw.rand(SIZE, SIZE, 3) - 0.5) * 0.2
    pixels = np.rint(picture.clip(0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)
    return Pair(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(mask))


def _enlarged(digit: np.ndarray, size: int) -> np.ndarray:
    """(size, size) of (8, 8), bilinear; written out, so that no version of a library changes the last bit."""
    place = ((np.arange(size) + 0.5) * 8 / size - 0.5).clip(0, 7)
    low = np.minimum(place.astype(int), 6)
    share = place - low
    rows = digit[low] * (1 - share)[:, None] + digit[low + 1] * share[:, None]
    return rows[:, low] * (1 - share)[None, :] + rows[:, low + 1] * share[None, :]
