"""Which coordinates share their bits: by granularity (network, block, layer) and ties."""

from __future__ import annotations

import re

import torch
from torch import Tensor


def block_of(name: str) -> str:
    """The block that a layer belongs to: its name up to the last number in it (`layer1.0.conv2` -> `layer1.0`)."""
    numbered = re.findall(r".*\.\d+(?=\.|$)|^\d+(?=\.|$)", name)
    return numbered[-1] if numbered else name


def assign_groups(
    layers: list[str], low: Tensor, high: Tensor, granularity: str, tie: bool, holders: list[str] | None = None
) -> tuple[Tensor, int]:
    """(layers, 3) group index of each coordinate, and the number of groups (1 at least); fixed coordinates take index 0.

    Tied: the weights and the inputs of a layer share a group. Coordinates of different ranges never do.
    holders: for each layer the one that holds its weight, where several have the same: its bits are theirs too.
    """
    unit = {"layer": lambda name: name, "block": block_of, "network": lambda name: ""}[granularity]
    index, known = torch.zeros(len(layers), 3, dtype=torch.long, device="cpu"), {}
    for row, name in enumerate(layers):
        for kind in range(3):
            bounds = float(low[row, kind]), float(high[row, kind])
            if bounds[0] < bounds[1]:
                shared = "forward" if tie and kind < 2 else kind
                owner = holders[row] if holders and (kind == 0 or shared == "forward") else name
                index[row, kind] = known.setdefault((unit(owner), shared, bounds), len(known))
    return index, max(1, len(known))
