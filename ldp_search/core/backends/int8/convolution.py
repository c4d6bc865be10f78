"""Two-dimensional convolutions on 8-bit integers, as products of matrices: a row for each place of the output.

The codes of the inputs under a kernel, channels last, make a row of `columns`. Zero padding is an exact zero, which the grid of
an input in general does not hold: it stands as code 0, which the grid's scale multiplies to nothing, and the grid's offset is
added for the taps that lie inside alone (`inside`), in a term that depends on the place but not on the sample.

dL/dx of a stride of 1 is such a convolution too, of the gradient with the kernel turned around; with another stride it is
computed in floating point. Columns are made for a few samples at a time, so that they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ...native import int8 as kernels
from ...native import with_kernel
from ...native.memory import intercepted
from ...quantize.gradient_quantizers import GradCodes
from . import matmul as integers
from .matmul import Codes, InputGradient

CHUNK = 1 << 21
"""Bytes of columns at a time."""


def output_size(size, kernel, stride, padding, dilation) -> tuple[int, int]:
    """Of the output, for an input (height, width)."""
    sides = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)


def columns(values: Tensor, kernel, stride, padding, dilation) -> Tensor:
    """(samples * places, taps * channels) from codes (samples, height, width, channels)."""
    if tuple(kernel) == (1, 1) and tuple(stride) == (1, 1) and not any(padding):
        return values.reshape(-1, values.shape[-1])
    return _columns(
        values, kernel, stride, padding, dilation, output_size(values.shape[1:3], kernel, stride, padding, dilation)
    )


@with_kernel(kernels.columns)
def _columns(values: Tensor, kernel, stride, padding, dilation, places: tuple[int, int]) -> Tensor:
    if any(padding):
        values = F.pad(values, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    n, _, _, channels = values.shape
    s, r, c, _ = values.stride()
    shape = (n, *places, *kernel, channels)
    strides = (s, r * stride[0], c * stride[1], r * dilation[0], c * dilation[1], 1)
    return values.as_strided(shape, strides).reshape(n * places[0] * places[1], -1)


def chunks(values: Tensor, rows: int, width: int) -> Iterator[slice]:
    """Slices of samples, of which each makes `rows` rows of `width` bytes."""
    most = max(1, CHUNK // (rows * width))
    return (slice(first, first + most) for first in range(0, len(values), most))


def inside(size, kernel, stride, padding, dilation) -> Tensor:
    """(places, taps): 1 where a tap lies inside of the input, 0 where in its padding; fp32, on the CPU."""
    # A mode's tensors are of use to it alone, and others' may be of none to it.
    make = _inside.__wrapped__ if intercepted() else _inside
    return make(size, kernel, stride, padding, dilation)


@lru_cache(256)
def _inside(size, *where) -> Tensor:
    with torch.inference_mode(False):  # a later training takes it too
        return columns(torch.ones(1, *size, 1, dtype=torch.float32, device="cpu"), *where)


def products(values: Tensor, w: Tensor, kernel, stride, padding, dilation, row_sums: bool) -> tuple[Tensor, Tensor]:
    """(columns @ w in int32, sums of the columns' rows or nothing) for codes (samples, height, width, channels)."""
    places = prod(output_size(values.shape[1:3], kernel, stride, padding, dilation))
    out = torch.empty(len(values) * places, w.shape[1], dtype=torch.int32, device=values.device)
    sums = []
    for some in chunks(values, places, w.shape[0]):
        rows = columns(values[some], kernel, stride, padding, dilation)
        integers.product(rows, w, out[some.start * places : some.start * places + len(rows)])
        if row_sums:
            sums.append(integers.code_sums(rows, 1))
    return out, torch.cat(sums) if row_sums else out.new_empty(0)


def forward(x: Codes, w: Codes, bias: Tensor | None, product, kernel, dtype: torch.dtype) -> Tensor:
    """Q(x) * Q(w) + bias (samples, height, width, outputs) from codes of x, channels last, and w (outputs, taps * inputs)."""
    where = kernel, product.stride, product.padding, product.dilation
    accumulators, rows = products(x.values, w.values.t(), *where, True)
    size, outputs = tuple(x.values.shape[1:3]), len(w.values)
    w_scale, w_offset, taps = w.scale.view(-1), w.offset.view(-1), kernel[0] * kernel[1]
    of_taps = w.values.view(outputs, taps, -1).sum(2, dtype=torch.int32) * w_scale[:, None] + (
        w.values.shape[1] // taps * w_offset[:, None]
    )
    column = x.offset * (inside(size, *where).to(w_scale.device) @ of_taps.t())
    column = column if bias is None else column + bias.float()
    y = integers.to_values(accumulators, x.scale * w_scale, x.scale * rows, w_offset, column, dtype)
    return y.view(len(x.values), *output_size(size, *where), outputs)


def channels_last(g: GradCodes) -> Codes:
    """A gradient in codes, (samples, height, width, channels); scale: of all (0-d), a sample or a channel, broadcastable."""
    scale = g.scale.view(()) if g.scale.numel() == 1 else g.scale.permute(0, 2, 3, 1)
    return Codes(g.values.permute(0, 2, 3, 1), scale, g.offset)


def weight_gradient(g: Codes, x: Codes, product, kernel) -> Tensor:
    """dL/dw (outputs, taps, inputs), fp32, from codes of the gradient (one scale, or one a channel) and of the input."""
    where = kernel, product.stride, product.padding, product.dilation
    samples, places, outputs = len(g.values), g.values[0, :, :, 0].numel(), g.values.shape[-1]
    valid = inside(tuple(x.values.shape[1:3]), *where).to(x.scale.device)
    total = column = torch.zeros((), dtype=torch.float64, device=x.scale.device)
    for some in chunks(x.values, places, valid.shape[1] * x.values.shape[-1]):
        rows, of_rows = columns(x.values[some], *where), g.values[some].reshape(-1, outputs)
        # One sample alone may have more places than 32 bits hold the sum over.
        for part, of_part in zip(rows.split(integers.LONGEST_SUM), of_rows.split(integers.LONGEST_SUM), strict=True):
            total = total + integers.product(of_part.t(), part).double()
            column = column + Codes(part, x.scale, x.offset).sum(0).double()
    g_scale, x_scale = g.scale.double().view(-1, 1), x.scale.double()
    gw = total.mul_(g_scale * x_scale).add_(column * (g.offset * x_scale)).view(outputs, valid.shape[1], -1)
    of_places = Codes(g.values.reshape(samples, -1), x.scale, x.offset).sum(0).view(places, outputs).double()
    of_taps = g_scale * (of_places.t() @ valid.double()) + g.offset * samples * valid.sum(0)
    return gw.add_((x.offset * of_taps)[:, :, None]).float()


def input_gradient(g: Codes, w_q: Tensor, product, number: int) -> InputGradient:
    """dL/dx (samples * places, inputs) of a stride of 1, from a gradient with one scale, or one a sample.

    w_q: (outputs, inputs, height, width), on its grid.
    """
    kernel = tuple(w_q.shape[2:])
    padding = tuple(d * (k - 1) - p for d, k, p in zip(product.dilation, kernel, product.padding, strict=True))
    where = kernel, (1, 1), padding, product.dilation
    turned = w_q.flip(2, 3).permute(2, 3, 0, 1)  # (height, width, outputs, inputs)
    values, scale = integers.planes(turned.reshape(-1, w_q.shape[1]), number)
    accumulators, _ = products(g.values, values, *where, False)
    valid = inside(tuple(g.values.shape[1:3]), *where).to(scale.device)
    column = g.offset * (valid @ turned.sum(2).view(valid.shape[1], -1))
    scale = scale * g.scale
    if scale.dim():  # one a sample
        scale = scale.view(-1, 1).expand(-1, len(valid)).flatten()
    return InputGradient(accumulators, number, scale, column)


def turns(product, kernel) -> bool:
    """Whether dL/dx is such a convolution."""
    within = all(p <= d * (k - 1) for p, d, k in zip(product.padding, product.dilation, kernel, strict=True))
    return tuple(product.stride) == (1, 1) and within
