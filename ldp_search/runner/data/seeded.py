"""Random transformations that depend on (seed, epoch, index) alone, whatever library draws the numbers.

timm's and torchvision's transforms draw from Python's, NumPy's and torch's global generators. Inside `seeded` these begin at
a state that the sample determines, and afterwards they are what they were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from .pictures import random_bits


@contextmanager
def seeded() -> Iterator:
    """Gives a function that seeds all generators with 64 bits; on leaving, they are as before."""
    python, legacy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield _seed
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(torch_state)


def _seed(bits: int) -> None:
    random.seed(bits)
    np.random.seed(bits % 2**32)
    torch.default_generator.manual_seed(bits % 2**63)


def sample_bits(seed: int, epoch: int, indices: Tensor) -> list[int]:
    """64 random bits for each sample of a batch in an epoch."""
    return [int(bits) for bits in random_bits(seed, epoch, indices)]
