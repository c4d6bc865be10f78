"""Tokens hidden for masked language modelling, as BERT does it (arXiv:1810.04805): of each sample 15 %, of which 80 % become
the mask token, 10 % a random token, and 10 % stay.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .pictures import random_bits

IGNORED = -100
"""Label of a place that is not predicted, as cross-entropy knows it."""


def mask_tokens(
    ids: Tensor, may: Tensor, indices: Tensor, seed: int, epoch: int | None, mask: int, vocabulary: int, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """(inputs, labels), both (N, L): what is hidden depends on (seed, epoch, index) alone, in evaluation on the index.

    Args:
        ids: (N, L) tokens. may: (N, L) where tokens may be hidden. epoch: None for evaluation, whose masks never change.
        mask: id of the mask token. vocabulary: random tokens are below it.
    """
    seed, epoch = (0, -1) if epoch is None else (seed, epoch)
    hide, how, other = (np.empty(ids.shape) for _ in range(3))
    for i, bits in enumerate(random_bits(seed, epoch, indices)):
        hide[i], how[i], other[i] = np.random.Generator(np.random.Philox(key=int(bits))).random((3, ids.shape[1]))
    hidden = may & torch.from_numpy(hide < share)
    how, other = torch.from_numpy(how), (torch.from_numpy(other) * vocabulary).long()
    inputs = torch.where(hidden & (how < 0.8), mask, ids)
    return torch.where(hidden & (how >= 0.9), other, inputs), torch.where(hidden, ids, IGNORED)
