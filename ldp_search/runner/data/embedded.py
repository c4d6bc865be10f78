"""Real data that comes with the packages: for a first run, for tests, and where there is no network."""

from __future__ import annotations

import torch
from torch import Tensor


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's 1,797 handwritten digits as ((pictures, labels) for training, the same for evaluation).

    Pictures are (N, 1, 8, 8) uint8. Every fifth of each class is for evaluation, which no version of any library can change.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = torch.from_numpy(found.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(found.target).long()
    rank = torch.zeros_like(labels)
    for digit in range(10):
        rank[labels == digit] = torch.arange(int((labels == digit).sum()))
    held_out = rank % 5 == 4
    return (pictures[~held_out], labels[~held_out]), (pictures[held_out], labels[held_out])
