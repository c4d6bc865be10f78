"""Gradient quantizers: stochastic rounding of the gradient of a product's output, unbiased whatever the bits: E[g_q] = g.

Rounding up with the probability of the fraction f has the variance  scale^2 f (1 - f)  an element, so the scale decides how
much noise few bits make. One scale for a whole tensor is set by its one largest value. Finer scales, and where they stay out of
the sums of integers:

    dL/dx = g w    sums over the output channels: a scale a sample (or a token) multiplies whole rows of the result;
    dL/dw = g^T x  sums over samples and positions: a scale an output channel multiplies whole rows of the result.

`per_sample_channel` rounds g twice, once for each; `per_sample` rounds it once with a scale a sample for both, so that dL/dw
needs its sums of each sample apart. `per_block` has a scale for each 32 neighbours along what the product sums over, whose
sums are made apart, as processors with microscaling formats (MX, NVFP4) do. "A sample" is an index of dimension 0: an image, a
row of features, a sequence (`rows`: a token).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..native import kernels, with_kernel
from ..registry import Component, register
from .gradient_codes import BlockCodes, GradCodes, GradGrid
from .grid import measure

TINY = torch.finfo(torch.float32).tiny  # the smallest scale, of a gradient of zeros


def round_stochastically_(x: Tensor) -> Tensor:
    """In place: up with the probability of the fraction, else down, so that E[result] = x (to 2^-17).

    On a CPU the noise is sixteen random bits an element, four elements a draw: a fifth of the time of `torch.rand`.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.add_(torch.rand_like(x)).floor_()
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    noise = draws.view(torch.int16)[: x.numel()].view(x.shape)
    return x.add_(0.5 + 2**-17).add_(noise, alpha=2**-16).floor_()


class GradQuantizer(Component, kind="grad_quantizer"):
    """Base of the gradient quantizers. A new one defines `grid`; where dL/dx and dL/dw want different grids, `parts` too."""

    @abstractmethod
    def grid(self, g: Tensor, bits: Tensor) -> GradGrid:
        """The grid of g at so many bits (0-d fp32)."""

    def parts(self, channel_dim: int) -> tuple[GradQuantizer, GradQuantizer]:
        """The quantizers of g for dL/dx and for dL/dw; the same object where one rounding serves both.

        channel_dim: of the output channels in g: 1 of a convolution, -1 of a linear layer.
        """
        return self, self

    def __call__(self, g: Tensor, bits: Tensor) -> Tensor:
        """g on its grid, a fresh tensor of its type; where the two products differ, as dL/dx takes it."""
        return _values(g, bits, self.form(g), self)

    def codes(self, g: Tensor, bits: Tensor) -> GradCodes | BlockCodes:
        """The same as codes of at most 8 bits; those that start at 0 moved by half of their range, to fit a signed byte."""
        return GradCodes(*_codes(g, bits, self.form(g), self))

    def form(self, g: Tensor) -> kernels.Form | None:
        """The form of `grid` that kernels know; None: they know none like it."""
        return None

    def within_samples(self, g: Tensor) -> bool:
        """Whether the grid of each index of dimension 0 depends on no other, so that a part of a batch tells of the whole."""
        return False

    def pair(self, g: Tensor, input_bits: Tensor | None, weight_bits: Tensor | None, channel_dim: int) -> tuple[Tensor, Tensor]:
        """(g for dL/dx, g for dL/dw); one tensor twice where quantizer and bits are the same object for both.

        Bits of None, for a product that is not needed or takes the gradient in full: g itself.
        """
        return self._both(lambda part, bits: part(g, bits), input_bits, weight_bits, channel_dim, g)

    def pair_codes(
        self, g: Tensor, input_bits: Tensor | None, weight_bits: Tensor | None, channel_dim: int
    ) -> tuple[GradCodes | BlockCodes | None, GradCodes | BlockCodes | None]:
        """The same as codes; None where the bits are None."""
        return self._both(lambda part, bits: part.codes(g, bits), input_bits, weight_bits, channel_dim)

    def variance(self, g: Tensor, bits: Tensor) -> Tensor:
        """Of the rounding of each element by `self(g, bits)`, scale^2 f (1 - f); fp32, in the shape of g."""
        grid = self.grid(g, bits)
        fraction = _places(g, grid).frac_().abs_()  # below zero it is 1 - f, with the same product
        return fraction.mul_(1 - fraction).mul_(grid.scale).mul_(grid.scale)

    def total_variances(self, g: Tensor, levels: Tensor) -> Tensor:
        """(levels,) the sum of `variance` over all of g, at each number of bits."""
        form = self.form(g) if type(self).variance is GradQuantizer.variance else None
        return _total_variances(g, levels, form, self)

    def _both(self, of, input_bits: Tensor | None, weight_bits: Tensor | None, channel_dim: int, without=None) -> tuple:
        """of(quantizer, bits) for both products, once where both are the same; `without` where there are no bits."""
        of_input, of_weight = self.parts(channel_dim)
        first = without if input_bits is None else of(of_input, input_bits)
        if of_weight is of_input and weight_bits is input_bits:
            return first, first
        return first, without if weight_bits is None else of(of_weight, weight_bits)


def _places(g: Tensor, grid: GradGrid) -> Tensor:
    """Where g lies among the codes, a fresh fp32 tensor."""
    g = g.float()
    return g / grid.scale if grid.offset is None else torch.sub(g, grid.offset).div_(grid.scale)


@with_kernel(kernels.gradient_values)
def _values(g: Tensor, bits: Tensor, form: kernels.Form | None, quantizer: GradQuantizer | None) -> Tensor:
    """g rounded by the quantizer, whose grid has this form; None: by the one that the form tells of."""
    return _on_grid(g, (quantizer or of_form(form)).grid(g, bits))


@with_kernel(kernels.total_variances)
def _total_variances(g: Tensor, levels: Tensor, form: kernels.Form | None, quantizer: GradQuantizer | None) -> Tensor:
    quantizer = quantizer or of_form(form)
    return torch.stack([quantizer.variance(g, level).sum() for level in levels.unbind()])


@with_kernel(kernels.on_grid)
def _on_grid(g: Tensor, grid: GradGrid) -> Tensor:
    scale, offset, _ = grid
    codes = round_stochastically_(_places(g, grid)).mul_(scale)
    return (codes if offset is None else codes.add_(offset)).to(g.dtype)


@with_kernel(kernels.gradient_codes)
def _codes(g: Tensor, bits: Tensor, form: kernels.Form | None, quantizer: GradQuantizer) -> tuple[Tensor, Tensor, Tensor]:
    """(codes of g rounded by the quantizer, scale, offset)."""
    scale, offset, most = grid = quantizer.grid(g, bits)
    shift = torch.zeros_like(most) if offset is None else torch.exp2(bits - 1)
    values = round_stochastically_(_places(g, grid)).sub_(shift).clamp_(-128, 127).to(torch.int8)
    return values, scale, shift if offset is None else shift * scale + offset


@register("grad_quantizer", "stochastic")
@dataclass
class Stochastic(GradQuantizer):
    """Gradient quantizer: affine min/max of the tensor (method of CPT, FracTrain and LDP). Zero is in general off the grid."""

    def grid(self, g, bits):
        low, high, _ = measure(g)  # in fp32, so that half precision does not round the range
        most = torch.exp2(bits) - 1
        return GradGrid(((high - low) / most).clamp_min(TINY), low, most)

    def form(self, g):
        return (kernels.AFFINE, ()) if type(self).grid is Stochastic.grid else None


@register("grad_quantizer", "symmetric")
@dataclass
class SymmetricStochastic(GradQuantizer):
    """Gradient quantizer with exact zero (a dead ReLU's gradient stays zero) and one symmetric range for the tensor."""

    def axes(self, g: Tensor) -> tuple[int, ...]:
        """The dimensions of g along which the scale differs."""
        return ()

    def grid(self, g, bits):
        low, high, _ = measure(g, self.axes(g))
        most = torch.exp2(bits - 1) - 1
        return GradGrid((torch.maximum(-low, high).float() / most).clamp_min(TINY), None, most)

    def form(self, g):
        return (kernels.SYMMETRIC, self.axes(g)) if type(self).grid is SymmetricStochastic.grid else None


@dataclass
class _Sliced(SymmetricStochastic):
    """One scale for each place along these dimensions."""

    dims: tuple[int, ...] = ()

    def axes(self, g):
        return self.dims


def of_form(form: kernels.Form | None) -> GradQuantizer:
    """The quantizer whose grids have this form."""
    kind, axes = form or (kernels.SYMMETRIC, ())
    if kind == kernels.BLOCKS:
        first, last, size = axes
        return _Placed(size, along=(first, last))
    return Stochastic() if kind == kernels.AFFINE else _Sliced(axes)


@register("grad_quantizer", "per_sample")
@dataclass
class PerSample(SymmetricStochastic):
    """Gradient quantizer with exact zero and one scale a sample, an index of dimension 0, for both backward products.

    rows: a scale for each token (all dimensions but the last) of a linear layer's gradient instead of each sequence.
    """

    rows: bool = False

    def axes(self, g):
        beside_channels = g.dim() - 1  # of a vector none, so that it has one scale
        return tuple(range(beside_channels if self.rows else min(1, beside_channels)))

    def within_samples(self, g):
        return True

    def parts(self, channel_dim):
        part = PerSample() if self.rows and channel_dim != -1 else self  # the places of a convolution are no rows
        return part, part


@dataclass
class PerChannel(SymmetricStochastic):
    """One scale for each index of dimension `dim`."""

    dim: int = -1

    def axes(self, g):
        return (self.dim % g.dim(),)


@register("grad_quantizer", "per_sample_channel")
@dataclass
class PerSampleChannel(PerSample):
    """Gradient quantizer with exact zero, one scale a sample for dL/dx and one an output channel for dL/dw.

    Both factor out of integer products. Outside of layers, where no dimension is known as the channels', a scale a sample.
    rows: a scale for each token (all dimensions but the last) of a linear layer's gradient instead of each sequence.
    """

    def parts(self, channel_dim):
        return super().parts(channel_dim)[0], PerChannel(channel_dim)


@dataclass
class Blocks(SymmetricStochastic):
    """One scale for each `size` neighbours along the dimensions that a product sums over: channels, or positions.

    The positions are those of one sample; where it has one alone, the samples of the batch.
    """

    size: int = 32
    channel_dim: int = -1
    channels: bool = True

    def summed(self, g: Tensor) -> tuple[int, int]:
        """(first, last) dimension of g along which blocks lie."""
        channel = self.channel_dim % g.dim()
        if self.channels or g.dim() == 1:
            return channel, channel
        first, last = (1, channel - 1) if channel == g.dim() - 1 else (channel + 1, g.dim() - 1)
        return (first, last) if g.shape[first : last + 1].numel() > 1 else (0, 0)

    def grid(self, g, bits):
        (first, last), most = self.summed(g), torch.exp2(bits - 1) - 1
        scale, length = self.scales(g, most), g.shape[first : last + 1].numel()
        return GradGrid(scale.repeat_interleave(self.size, first).narrow(first, 0, length).view(g.shape), None, most)

    def scales(self, g: Tensor, most: Tensor) -> Tensor:
        """Of the blocks, which stand for the dimensions summed over; most: the largest code."""
        first, last = self.summed(g)
        values = g.float().abs().flatten(first, last)
        length = values.shape[first]
        blocks = -(-length // self.size)
        short = values.new_zeros([blocks * self.size - length if d == first else n for d, n in enumerate(values.shape)])
        largest = torch.cat([values, short], first).unflatten(first, (blocks, self.size)).amax(first + 1)
        return (largest / most).clamp_min(TINY)

    def codes(self, g, bits):
        return BlockCodes(*_block_codes(g, bits, self.form(g), self), self.summed(g), self.size)

    def form(self, g):
        return (kernels.BLOCKS, (*self.summed(g), self.size)) if type(self).grid is Blocks.grid else None

    def within_samples(self, g):
        return self.summed(g)[0] > 0


@with_kernel(kernels.block_codes)
def _block_codes(g: Tensor, bits: Tensor, form: kernels.Form | None, quantizer: Blocks) -> tuple[Tensor, Tensor]:
    """(codes of g rounded by the quantizer, scales of its blocks)."""
    grid = quantizer.grid(g, bits)
    values = round_stochastically_(_places(g, grid)).clamp_(-128, 127).to(torch.int8)
    return values, quantizer.scales(g, grid.most)


@dataclass
class _Placed(Blocks):
    """Blocks along these dimensions."""

    along: tuple[int, int] = (0, 0)

    def summed(self, g):
        return self.along


@register("grad_quantizer", "per_block")
@dataclass
class PerBlock(SymmetricStochastic):
    """Gradient quantizer with exact zero and one scale for each `size` values along what a product sums over.

    Those are the output channels for dL/dx and the positions of a sample for dL/dw (Rouhani et al. 2023, arXiv:2310.10537, have
    such blocks of 32). Products of two activations, and what is outside of layers, have a scale a sample.
    """

    size: int = 32

    def __post_init__(self):
        if type(self.size) is not int or self.size < 2:
            raise ValueError(f"size must be a number of values that share a scale, 2 at least; received {self.size!r}.")

    def axes(self, g):
        return PerSample().axes(g)

    def within_samples(self, g):
        return True

    def parts(self, channel_dim):
        return Blocks(self.size, channel_dim), Blocks(self.size, channel_dim, channels=False)
