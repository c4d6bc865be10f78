"""Which coordinates share their bits: by granularity (network, block, layer) and ties."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ..messages import did_you_mean
from .space import FULL_PRECISION, BitRange, BitsOfKinds, SearchSpace, within_containers

FULL = (FULL_PRECISION,) * 3


def block_of(name: str) -> str:
    """The block that a layer belongs to: its name up to the last number in it (`layer1.0.conv2` -> `layer1.0`)."""
    numbered = re.findall(r".*\.\d+(?=\.|$)|^\d+(?=\.|$)", name)
    return numbered[-1] if numbered else name


def assign_groups(
    layers: list[str],
    low: Tensor,
    high: Tensor,
    granularity: str,
    tie: bool,
    holders: list[str] | None = None,
    joint: list[bool] | None = None,
) -> tuple[Tensor, int]:
    """(layers, kinds) group index of each coordinate, and the number of groups (1 at least); fixed coordinates take index 0.

    Tied: the weights and the inputs of a layer share a group. Coordinates of different ranges never do.
    joint: for each layer whether both its backward products take one gradient, whose bits are then shared.
    holders: for each layer the one that holds its weight, where several have the same: its bits are theirs too.
    """
    unit = {"layer": lambda name: name, "block": block_of, "network": lambda name: ""}[granularity]
    index = torch.zeros(low.shape, dtype=torch.long, device="cpu")
    known: dict[tuple[str, str | int, BitRange], int] = {}
    for row, name in enumerate(layers):
        for kind in range(low.shape[1]):
            bounds = float(low[row, kind]), float(high[row, kind])
            if bounds[0] < bounds[1]:
                shared = "forward" if tie and kind < 2 else 2 if kind == 3 and joint and joint[row] else kind
                owner = holders[row] if holders and (kind == 0 or shared == "forward") else name
                index[row, kind] = known.setdefault((unit(owner), shared, bounds), len(known))
    return index, max(1, len(known))


def precisions(names: Collection[str], space: SearchSpace, final: bool) -> dict[str, tuple[BitsOfKinds, BitsOfKinds]]:
    """{row: (lowest, highest), each of weight, input and gradient bits}.

    final: all names are known, so that a pattern that matches none is a mistake in it.
    """
    found = {name: _precision(name, space) for name in names}
    for option, patterns in (("skip", space.skip), ("fixed", space.fixed)) if final else ():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"{option}: the pattern {pattern!r} matches no layer.{did_you_mean(pattern, names)}")
    if final and all(bounds[0][0] == FULL_PRECISION for bounds in found.values()):
        raise ValueError(f"skip={space.skip} keeps every layer in full precision, so nothing is left to quantize.")
    return found


def _precision(name: str, space: SearchSpace) -> tuple[BitsOfKinds, BitsOfKinds]:
    if any(fnmatchcase(name, pattern) for pattern in space.skip):
        return FULL, FULL
    for pattern, (bits, _) in space.fixed.items():
        if fnmatchcase(name, pattern):
            grad = bits if bits == FULL_PRECISION else space.grad_bits[1]
            return (bits, bits, grad), (bits, bits, grad)
    forward = [space.weight_bits, space.input_bits]
    if (widths := space.widths) is not None:
        forward = [within_containers(bits, widths, "bits") for bits in forward]
    low, high = zip(*forward, space.grad_bits, strict=True)
    return low, high
