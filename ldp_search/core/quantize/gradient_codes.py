"""Rounded gradients as they are stored: grids, and integers with the scales that they are multiplied by."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GradGrid(NamedTuple):
    """scale * code + offset, fp32, broadcastable against the gradient. offset None: zero, which is then exact.

    most: the largest code, 0-d; the smallest one is -most, or 0 where there is an offset.
    """

    scale: Tensor
    offset: Tensor | None
    most: Tensor


class GradCodes(NamedTuple):
    """A gradient as scale * values + offset. values: int8, in its shape and memory; scale, offset: fp32, broadcastable."""

    values: Tensor
    scale: Tensor
    offset: Tensor

    def to_float(self) -> Tensor:
        """The values, fp32."""
        return self.values.float().mul_(self.scale).add_(self.offset)


class BlockCodes(NamedTuple):
    """A gradient in codes with a scale for each `size` neighbours along the dimensions `summed`, from the first to the last.

    values: int8, in its shape and memory. scale: fp32, of its shape, where blocks stand for those dimensions together.
    """

    values: Tensor
    scale: Tensor
    summed: tuple[int, int]
    size: int

    def to_float(self) -> Tensor:
        """The values, fp32."""
        first, last = self.summed
        flat = self.values.float().flatten(first, last)
        each = self.scale.repeat_interleave(self.size, first).narrow(first, 0, flat.shape[first])
        return flat.mul_(each).view(self.values.shape)
