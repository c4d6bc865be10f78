"""The kernels of `gradients.c`: a gradient on its own grid, or on the grids of its slices, by stochastic rounding.

Each equals `GradQuantizer` formulas with noise of its own: a counter-based generator, seeded by torch's, so that a resumed run
draws the same. dtype int8: the codes instead of the values.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from .library import _TYPES, FLOATS, _library_of_kernels, _Shape, _threads
from .memory import address, empty

_P, _I, _L, _U = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_uint64
_SIGNATURES = {
    "ldp_gradient_affine": (_P, _I, _P, _I, _L, _P, _U, _P, _I),
    "ldp_gradient_slices": (_P, _I, _P, _I, _Shape, _P, _U, _P, _I),
}


@cache
def _kernel(name: str):
    function = getattr(_library_of_kernels(), name)
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def draw_seed(device: torch.device) -> int:
    """From torch's generator of the CPU: `torch.manual_seed` and a resumed run repeat what follows from it."""
    return int(torch.empty((), dtype=torch.int64, device=device).random_())


def affine(g: Tensor, bits: Tensor, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(g between its minimum and maximum on 2^bits levels, (scale, offset)); codes: moved by half of their range."""
    y, made = torch.empty_like(g, dtype=dtype), empty(2, torch.float32)
    _kernel("ldp_gradient_affine")(
        address(g, *FLOATS), _TYPES[g.dtype], y.data_ptr(), _TYPES[dtype], g.numel(), address(bits, torch.float32), seed,
        made.data_ptr(), _threads(g.numel()),
    )  # fmt: skip
    return y, made


def symmetric(g: Tensor, shape: tuple, bits: Tensor, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(g with one symmetric grid a channel of `shape` = (outer, channels, inner), the (channels,) scales)."""
    y, scales = torch.empty_like(g, dtype=dtype), empty(shape[1], torch.float32)
    _kernel("ldp_gradient_slices")(
        address(g, *FLOATS), _TYPES[g.dtype], y.data_ptr(), _TYPES[dtype], _Shape(*shape), address(bits, torch.float32), seed,
        scales.data_ptr(), _threads(g.numel()),
    )  # fmt: skip
    return y, scales
