"""The kernels of `convolution.c` and `convolution_weight.c`: products of a convolution's codes without columns, by VNNI.

Each takes the arguments of the formula of its name in backends/int8/convolution.py, and returns None for a call that it does
not serve.
"""

from __future__ import annotations

import ctypes
from functools import cache
from math import prod

import torch
from torch import Tensor

from . import amx
from .int8 import window
from .library import FP32, INT, INT8, INT32, LONG, POINTER, Kernel, serves
from .memory import empty

_HAS_VNNI = Kernel("ldp8_has_vnni", INT32, threads=False)
_CONVOLVE = Kernel("ldp8_convolve", INT8, POINTER, POINTER, LONG, INT32, INT32, INT32)
_CONVOLVE_WEIGHT = Kernel("ldp8_convolve_weight", INT8, INT8, POINTER, LONG, *[(torch.float64,)] * 3, FP32)
LONGEST = 65536
"""Places of a sample whose products with an unsigned byte 32 bits hold the sum of."""
LEAST_CHANNELS, LEAST_PLACES = 12, 4
"""Of dL/dw; below, most of what is multiplied would be zeros."""
FEW = 64
"""Channels up to which a processor that has tiles too is not given columns."""


@cache
def has_vnni() -> bool:
    """Whether the processor multiplies bytes in vectors of 512 bits, and the compiler knows how."""
    found = empty((), torch.int32)
    _HAS_VNNI(1, found)
    return bool(found.item())


def _serves(values: Tensor, kernel, stride) -> bool:
    """Where columns would be no larger than the input, they cost too little to be worth another layout of it."""
    if prod(kernel) <= prod(stride) or values.dtype != torch.int8 or not values.is_contiguous():
        return False
    return serves(values) and has_vnni() and (values.shape[-1] <= FEW or not amx.has_tiles())


class Weight(ctypes.Structure):
    """weight_t of lines.h."""

    _fields_ = [
        ("codes", POINTER),
        ("end", POINTER),
        ("by_tap", LONG),
        ("by_channel", LONG),
        ("by_output", LONG),
        ("turned", INT),
    ]


def products(
    values: Tensor, w: Tensor, kernel, stride, padding, dilation, places, sums: bool, turned: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(sums of products; where asked for of the codes under the kernel, and of the weight over its channels), int32."""
    if not _serves(values, kernel, stride) or w.dtype != torch.int8 or not serves(w):
        return None
    (taps, _, outputs), rows = w.shape, len(values) * prod(places)
    out = empty((rows, outputs), torch.int32)
    row_sums, tap_sums = empty(rows * sums, torch.int32), empty((outputs * sums, taps), torch.int32)
    seen, first = window(values.shape, kernel, stride, padding, dilation, places), w.data_ptr()
    last = first + 1 + sum((size - 1) * step for size, step in zip(w.shape, w.stride(), strict=True))
    weight = Weight(first, last, *w.stride(), turned)
    _CONVOLVE(
        out.numel() * w[..., 0].numel(), values, ctypes.addressof(seen), ctypes.addressof(weight), outputs, out,
        row_sums if sums else None, tap_sums if sums else None,
    )  # fmt: skip
    return out, row_sums, tap_sums


def weight_products(
    g: Tensor, values: Tensor, kernel, stride, padding, dilation, by: Tensor, of_column: Tensor, rest: Tensor
) -> Tensor | None:
    """(g^T @ columns) * by[:, None] + of_column * (sums of the columns) + rest, (outputs, channels, taps), fp32."""
    places = g.shape[1:3]
    if not _serves(values, kernel, stride) or prod(places) > LONGEST:
        return None
    if values.shape[-1] < LEAST_CHANNELS or places[1] < LEAST_PLACES:  # sixteen channels and four places lie together
        return None
    if g.dtype != torch.int8 or not g.is_contiguous() or not serves(g):
        return None
    gw = empty((g.shape[-1], values.shape[-1], prod(kernel)), torch.float32)
    seen = window(values.shape, kernel, stride, padding, dilation, places)
    factors = by.expand(len(gw)).contiguous(), of_column.contiguous(), rest.contiguous()
    _CONVOLVE_WEIGHT(g.numel() * gw[0].numel(), g, values, ctypes.addressof(seen), len(gw), *factors, gw)
    return gw
