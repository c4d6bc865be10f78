"""The small records that the parts of the package exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .. import tables


class Bits(NamedTuple):
    """Integer bits of one layer: of its weights, of its input, and of the gradient of its output."""

    weight: int
    input: int
    grad: int


class SplitBits(NamedTuple):
    """The same where a space splits the gradient's bits: `grad` in the product dL/dx, `weight_grad` in dL/dw."""

    weight: int
    input: int
    grad: int
    weight_grad: int


AnyBits = Bits | SplitBits


def as_bits(row: Sequence[int]) -> AnyBits:
    """Of three numbers, or of four."""
    return Bits(*row) if len(row) == 3 else SplitBits(*row)


def computed(kinds: int, macs: float, backward_macs: Sequence[float]) -> list[bool]:
    """Which of a layer's kinds of bits (3, or 4 where the gradient's are split) are in a product that training computes.

    The gradient's are in none where nobody asks for that gradient. All are, while no operations are counted.
    """
    gradients = [part > 0 or not macs > 0 for part in backward_macs]
    return [True, True, *(gradients if kinds == 4 else [any(gradients)])]


class LayerSpec(NamedTuple):
    """What the cost of a layer depends on.

    macs: multiply-accumulates of one sample's forward, over all calls. weight_numel: elements whose storage this layer is
    the first to own (0 where tied to an earlier one). input_numel: input elements per sample. calls: uses per forward.
    backward_macs: of dL/dx and of dL/dw, as the space's accounting counts them.
    """

    name: str
    kind: str
    macs: int
    weight_numel: int
    input_numel: int
    calls: int
    backward_macs: tuple[int, int]

    def computes(self, bits: AnyBits) -> list[bool]:
        """As `computed`, of this layer."""
        return computed(len(bits), self.macs, self.backward_macs)


class LeftOut(NamedTuple):
    """Multiply-accumulates (per sample) that do not go through quantized products, and why."""

    name: str
    macs: int
    reason: str


class Coverage(NamedTuple):
    """Share of the model's MACs that goes through quantized products (0 to 1), and what is left out."""

    share: float
    left_out: list[LeftOut]

    def _repr_html_(self) -> str:
        told = f"{self.share:.1%} of the MACs go through quantized products"
        if not self.left_out:
            return tables.lines([f"{told}; nothing is left out."])
        return tables.lines([told]) + tables.as_html(LEFT_OUT, self.left_out)


LEFT_OUT = ("left out", "MACs", "why")
