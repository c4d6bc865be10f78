"""The kernels of `gradients.c`: a gradient on its own grid, or on the grids of its slices, by stochastic rounding.

Each equals `GradQuantizer` formulas with noise of its own: a counter-based generator, seeded by torch's, so that a resumed run
draws the same. dtype int8: the codes instead of the values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .library import FLOATS, FP32, LONG, SEED, SHAPE, Kernel
from .memory import empty
from .passes import VALUES
from .shapes import Shape

_AFFINE = Kernel("ldp_gradient_affine", FLOATS, VALUES, LONG, FP32, SEED, FP32)
_SLICES = Kernel("ldp_gradient_slices", FLOATS, VALUES, SHAPE, FP32, SEED, FP32)
_BLOCKS = Kernel("ldp_gradient_blocks", FLOATS, VALUES, SHAPE, LONG, FP32, SEED, FP32)


def draw_seed(device: torch.device) -> int:
    """From torch's generator of the CPU: `torch.manual_seed` and a resumed run repeat what follows from it."""
    return int(torch.empty((), dtype=torch.int64, device=device).random_())


def affine(g: Tensor, bits: Tensor, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(g between its minimum and maximum on 2^bits levels, (scale, offset)); codes: moved by half of their range."""
    y, made = torch.empty_like(g, dtype=dtype), empty(2, torch.float32)
    _AFFINE(g.numel(), g, y, g.numel(), bits, seed, made)
    return y, made


def symmetric(g: Tensor, shape: Shape, bits: Tensor, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(g with one symmetric grid a channel of `shape`, the (channels,) scales)."""
    y, scales = torch.empty_like(g, dtype=dtype), empty(shape[1], torch.float32)
    _SLICES(g.numel(), g, y, shape, bits, seed, scales)
    return y, scales


def blocks(g: Tensor, shape: Shape, size: int, bits: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """g with one symmetric grid for each `size` values along the middle of `shape`, (outer, length, inner)."""
    y = torch.empty_like(g, dtype=dtype)
    _BLOCKS(g.numel(), g, y, shape, size, bits, seed, None)
    return y


def block_codes(g: Tensor, shape: Shape, size: int, bits: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(codes of the same, scales (outer, blocks, inner))."""
    (outer, length, inner), y = shape, torch.empty_like(g, dtype=torch.int8)
    scales = empty((outer, -(-length // size), inner), torch.float32)
    _BLOCKS(g.numel(), g, y, shape, size, bits, seed, scales)
    return y, scales
