"""Two-dimensional convolutions on 8-bit integers, as products of matrices: a row for each place of the output.

The codes of the inputs under a kernel, channels last, make a row of `columns`. Zero padding is an exact zero, which the grid of
an input in general does not hold: it stands as code 0, which the grid's scale multiplies to nothing, and the grid's offset is
added for the taps that lie inside alone (`inside`), in a term that depends on the place but not on the sample.

dL/dx of a stride of 1 is such a convolution too, of the gradient with the kernel turned around; of another it is computed in
floating point. Columns are made for a few samples at a time, so that they stay in the cache; where a kernel convolves
(`native/convolution.py`) there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ...native import convolution as whole
from ...native import int8 as kernels
from ...native import with_kernel
from ...native.memory import intercepted
from ...quantize.gradient_codes import GradCodes
from . import matmul as integers
from .matmul import Codes, InputGradient

CHUNK = 1 << 21
"""Bytes of columns at a time."""


def output_size(size, kernel, stride, padding, dilation) -> tuple[int, int]:
    """Of the output, for an input (height, width).

    Raises:
        RuntimeError: as of torch, where the kernel is larger than the padded input.
    """
    sides = zip(size, kernel, stride, padding, dilation, strict=True)
    found = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
    if min(found) < 1:
        raise RuntimeError(
            f"A kernel of {tuple(kernel)} with dilation {tuple(dilation)} can't be greater than the input, {tuple(size)} with "
            f"a padding of {tuple(padding)}: give larger inputs."
        )
    return found


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
    # Rows of one sample may lie over one another, of which oneDNN makes garbage without an error.
    return values.as_strided(shape, strides).reshape(n * places[0] * places[1], -1).contiguous()


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


def products(
    values: Tensor, w: Tensor, kernel, stride, padding, dilation, sums: bool, turned: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of products (samples * places, outputs), int32, of codes (samples, height, width, channels) and a weight (taps,
    channels, outputs); where `sums` are asked for, of the codes under the kernel at each place, and of the weight over its
    channels (outputs, taps). turned: the weight's taps in the other order.
    """
    places = output_size(values.shape[1:3], kernel, stride, padding, dilation)
    return _products(values, w, kernel, stride, padding, dilation, places, sums, turned)


@with_kernel(whole.products)
def _products(
    values: Tensor, w: Tensor, kernel, stride, padding, dilation, places, sums: bool, turned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    per_sample, outputs = prod(places), w.shape[2]
    matrix = (w.flip(0) if turned else w).reshape(-1, outputs)
    out = torch.empty(len(values) * per_sample, outputs, dtype=torch.int32, device=values.device)
    row_sums = []
    for some in chunks(values, per_sample, len(matrix)):
        rows = columns(values[some], kernel, stride, padding, dilation)
        integers.product(rows, matrix, out[some.start * per_sample : some.start * per_sample + len(rows)])
        if sums:
            row_sums.append(integers.code_sums(rows, 1))
    if not sums:
        return out, out.new_empty(0), out.new_empty(0, len(w))
    return out, torch.cat(row_sums), w.sum(1, dtype=torch.int32).t()


def forward(x: Codes, w: Codes, bias: Tensor | None, product, kernel, dtype: torch.dtype) -> Tensor:
    """Q(x) * Q(w) + bias (samples, height, width, outputs) from codes of x, channels last, and w (outputs, inputs * taps)."""
    where = kernel, product.stride, product.padding, product.dilation
    size, inputs, outputs = tuple(x.values.shape[1:3]), x.values.shape[3], len(w.values)
    codes = w.values.view(outputs, inputs, -1).permute(2, 1, 0)
    accumulators, rows, of_taps = products(x.values, codes, *where, True)
    w_scale, w_offset = w.scale.view(-1), w.offset.view(-1)
    of_taps = of_taps * w_scale[:, None] + inputs * w_offset[:, None]
    column = x.offset * (inside(size, *where).to(w_scale.device) @ of_taps.t())
    column = column if bias is None else column + bias.float()
    y = integers.to_values(accumulators, x.scale * w_scale, x.scale * rows, w_offset, column, dtype)
    return y.view(len(x.values), *output_size(size, *where), outputs)


def channels_last(g: GradCodes) -> Codes:
    """A gradient in codes, (samples, height, width, channels); scale: of all (0-d), a sample or a channel, broadcastable."""
    scale = g.scale.view(()) if g.scale.numel() == 1 else g.scale.permute(0, 2, 3, 1)
    return Codes(g.values.permute(0, 2, 3, 1), scale, g.offset)


def weight_gradient(g: Codes, x: Codes, product, kernel) -> Tensor:
    """dL/dw (outputs, inputs, taps), fp32, from codes of the gradient (one scale, or one a channel) and of the input."""
    where = kernel, product.stride, product.padding, product.dilation
    samples, places, outputs = len(g.values), g.values[0, :, :, 0].numel(), g.values.shape[-1]
    valid = inside(tuple(x.values.shape[1:3]), *where).to(x.scale.device)
    g_scale, x_scale = g.scale.double().view(-1, 1), x.scale.double()
    of_places = Codes(g.values.reshape(samples, -1), x.scale, x.offset).sum(0).view(places, outputs).double()
    of_taps = g_scale * (of_places.t() @ valid.double()) + g.offset * samples * valid.sum(0)
    factors = (g_scale * x_scale).view(-1), (g.offset * x_scale).double(), x.offset * of_taps
    return _weight_products(g.values.contiguous(), x.values, *where, *factors)


@with_kernel(whole.weight_products)
def _weight_products(
    g: Tensor, values: Tensor, kernel, stride, padding, dilation, by: Tensor, of_column: Tensor, rest: Tensor
) -> Tensor:
    """(g^T @ columns) * by[:, None] + of_column * (sums of the columns) + rest, (outputs, channels, taps), fp32; of codes
    (samples, height, width, outputs) and (samples, height, width, channels). by, of_column, rest (outputs, taps): float64.
    """
    places, outputs = g[0, :, :, 0].numel(), g.shape[-1]
    total = sums = torch.zeros((), dtype=torch.float64, device=values.device)
    for some in chunks(values, places, kernel[0] * kernel[1] * values.shape[-1]):
        rows, of_rows = columns(values[some], kernel, stride, padding, dilation), g[some].reshape(-1, outputs)
        # One sample alone may have more places than 32 bits hold the sum over.
        for part, of_part in zip(rows.split(integers.LONGEST_SUM), of_rows.split(integers.LONGEST_SUM), strict=True):
            total = total + integers.product(of_part.t(), part).double()
            sums = sums + integers.code_sums(part, 0).double()
    gw = total.mul_(by.view(-1, 1)).add_(sums * of_column).view(outputs, kernel[0] * kernel[1], -1)
    return gw.add_(rest[:, :, None]).permute(0, 2, 1).float().contiguous()


def input_gradient(g: Codes, w_q: Tensor, product, size: tuple[int, int], number: int) -> InputGradient:
    """dL/dx (samples * places, inputs) of an input (height, width), from a gradient with one scale, or one a sample.

    w_q: (outputs, inputs, height, width), on its grid. It is the convolution of the gradient with the kernel turned around; a
    pointwise one with a stride has zeros between its places.
    """
    kernel = tuple(w_q.shape[2:])
    padding = tuple(d * (k - 1) - p for d, k, p in zip(product.dilation, kernel, product.padding, strict=True))
    where = kernel, (1, 1), padding, product.dilation
    values, scale = integers.planes(w_q.reshape(len(w_q), -1), number)  # (outputs, planes * inputs * taps)
    taps = values.view(len(w_q), number * w_q.shape[1], -1).permute(2, 0, 1)
    accumulators, _, _ = products(g.values, taps, *where, False, True)
    places = tuple(g.values.shape[1:3])
    column = g.offset * (inside(places, *where).to(scale.device) @ w_q.sum(0).flip(1, 2).flatten(1).t())
    if max(product.stride) > 1:
        accumulators = _apart(accumulators, len(g.values), places, size, product.stride)
        column = _apart(column, 1, places, size, product.stride)
    scale = scale * g.scale
    if scale.dim():  # one a sample
        scale = scale.view(-1, 1).expand(-1, size[0] * size[1]).flatten()
    return InputGradient(accumulators, number, scale, column)


def _apart(rows: Tensor, samples: int, places, size, stride) -> Tensor:
    """Rows of samples' places as those of an image of `size` (height, width): `stride` apart, zeros between them."""
    out = rows.new_zeros(samples, *size, rows.shape[1])
    out[:, :: stride[0], :: stride[1]] = rows.view(samples, *places, -1)
    return out.view(-1, rows.shape[1])


def turns(product, kernel) -> bool:
    """Whether dL/dx is such a convolution. With a stride most of it would be products with zeros, but of a pointwise kernel."""
    if max(product.stride) > 1:
        return tuple(kernel) == (1, 1) and not any(product.padding)
    return all(p <= d * (k - 1) for p, d, k in zip(product.padding, product.dilation, kernel, strict=True))
