"""The kernels of `microscaling.c` and `microscaling_weight.c`: products of codes with a scale a block along their sum, by VNNI.

Each takes the arguments of the formula of its name in backends/int8/microscaling.py, and returns None for a call that it does
not serve.
"""

from __future__ import annotations

import ctypes
from math import prod

import torch
from torch import Tensor

from .convolution import Weight, has_vnni
from .int8 import window
from .library import FP32, INT8, LONG, POINTER, Kernel, serves, takes
from .memory import empty

_PRODUCTS = Kernel("ldp8_scaled_products", INT8, FP32, POINTER, POINTER, LONG, LONG, LONG, LONG, FP32, FP32)
_WEIGHT = Kernel("ldp8_scaled_weight", INT8, FP32, LONG, INT8, POINTER, LONG, FP32, FP32, FP32)
_SUMS = Kernel("ldp8_scaled_sums", INT8, FP32, LONG, LONG, LONG, LONG, FP32)
POINT = (1, 1), (1, 1), (0, 0), (1, 1)
"""Kernel, stride, padding and dilation of a layer of rows."""
ROWS = 64
"""Of a matrix that are laid out together."""
LONGEST_BLOCK = 512
"""Products of a code and of an integer of 16 bits that 32 bits hold the sum of."""
LEAST_PLACES = 4
"""Of dL/dw; below, most of what is multiplied would be zeros."""


def input_products(values: Tensor, scales: Tensor, size: int, planes: Tensor, number: int, by: Tensor, where) -> Tensor | None:
    """(samples * places, inputs), fp32."""
    taps, channels, columns = planes.shape
    size = min(size, -(-channels // 4) * 4)
    if size % 4 or size > LONGEST_BLOCK or not _codes(values) or not _floats(scales, by) or not has_vnni():
        return None
    if planes.dtype != torch.int8 or not serves(planes):
        return None
    inputs = columns // number
    if where is None:
        rows, width = len(values), min(ROWS, len(values))
        samples = -(-rows // width)
        seen, last_width = window((samples, 1, width, channels), *POINT, (1, width)), rows - (samples - 1) * width
    else:
        kernel, padding, dilation, places = where
        seen, last_width = window(values.shape, kernel, (1, 1), padding, dilation, places), values.shape[2]
        rows = len(values) * prod(places)
    step, end = planes.stride(), planes.data_ptr() + planes.numel()
    first = [planes.data_ptr() + plane * inputs * step[2] for plane in reversed(range(number))]
    weights = (Weight * number)(*(Weight(at, end, *step, where is not None) for at in first))
    out = empty((rows, inputs), torch.float32)
    _PRODUCTS(
        out.numel() * taps * channels, values, scales, ctypes.addressof(seen), ctypes.addressof(weights), number, size,
        last_width, inputs, by, out,
    )  # fmt: skip
    return out


def weight_products(g: Tensor, scales: Tensor, size: int, values: Tensor, where, by: Tensor, rest: Tensor) -> Tensor | None:
    """(outputs, channels, taps), fp32."""
    if where == POINT:  # one row, whatever shape the places have
        g, values = (t.flatten(1, 2)[:, None] for t in (g, values))
    places = g.shape[1:3]
    size = min(size, prod(places))
    if size > LONGEST_BLOCK or not _codes(g, values) or not _floats(scales, by, rest) or not has_vnni():
        return None
    if prod(places) < LEAST_PLACES:
        return None
    if where == POINT and len(g) < torch.get_num_threads() and places[1] % size == 0:  # threads share samples
        g, values = (t.view(-1, 1, size, t.shape[-1]) for t in (g, values))
        places = g.shape[1:3]
    kernel, stride, padding, dilation = where
    gw = empty((g.shape[-1], values.shape[-1], prod(kernel)), torch.float32)
    seen = window(values.shape, kernel, stride, padding, dilation, places)
    _WEIGHT(
        g.numel() * gw[0].numel(), g, scales, size, values, ctypes.addressof(seen), len(gw), by, rest, gw
    )  # fmt: skip
    return gw


def sums(g: Tensor, scales: Tensor, size: int) -> Tensor | None:
    """(places, outputs), fp32."""
    if not _codes(g) or not _floats(scales) or not has_vnni():
        return None
    samples, places, outputs = g.shape
    out = empty((places, outputs), torch.float32)
    _SUMS(g.numel(), g, scales, size, samples, places, outputs, out)
    return out


def _codes(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.int8 and serves(t) and t.is_contiguous() for t in tensors)


def _floats(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.float32 and takes(t) and t.is_contiguous() for t in tensors)
