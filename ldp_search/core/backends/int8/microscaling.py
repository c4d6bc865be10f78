"""Products of a gradient that has a scale for each block of values along what they sum over, as in microscaling formats.

The codes of a block are multiplied and added up as integers, exactly; its scale multiplies that sum, and the sums of all blocks
are added up in fp32. In dL/dx = g w_q blocks lie along the output channels of g, in dL/dw = g^T x_q along the places of a
sample. Everything else is as in `matmul` and `convolution`: the weight in planes of 8 bits with one scale, zero padding as the
code 0, and what the offset of the input adds to dL/dw apart, as sums of the gradient over the places where a tap lies inside.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from ...native import microscaling as kernels
from ...native import with_kernel
from ...quantize.gradient_codes import BlockCodes
from . import matmul as integers
from .convolution import inside
from .matmul import Codes, InputGradient


def channels_last(g: BlockCodes, channel_dim: int) -> BlockCodes:
    """A gradient of a layer of rows (channel_dim -1) or of a convolution (1) with its channels last, dense.

    Scales are (..., blocks) along channels; (samples, blocks, channels) along places; of a convolution with one place (blocks,
    1, 1, channels) along samples. Samples of single rows are the places of one sample.
    """
    values, scale, (first, last) = g.values, g.scale, g.summed
    channels = first == channel_dim % values.dim()
    if channel_dim == 1:
        values = values.permute(0, 2, 3, 1)
        scale = scale.transpose(1, 2) if first == 2 else scale.permute(0, 2, 3, 1)
        first, last = (3, 3) if channels else (first - (first > 0), last - (last > 0))
    elif first == 0 and not channels:
        values, scale = (t.reshape(1, -1, t.shape[-1]) for t in (values, scale))
        first, last = 1, 1
    return BlockCodes(values.contiguous(), scale.contiguous(), (first, last), g.size)


def over_places(g: Codes | BlockCodes | None) -> bool:
    """Whether the gradient has blocks of a sample's places, as the weight gradients here take it."""
    return isinstance(g, BlockCodes) and g.summed[0] == 1


def input_gradient(g: BlockCodes, w_q: Tensor, number: int) -> InputGradient:
    """dL/dx of a layer of rows, from a weight on its grid (outputs, inputs) in `number` planes."""
    planes, scale = integers.planes(w_q, number)
    rows = g.values.view(-1, g.values.shape[-1]), g.scale.view(-1, g.scale.shape[-1]), g.size
    return integers.as_it_is(_input_products(*rows, planes[None], number, scale, None))


def input_gradient_of_convolution(g: BlockCodes, w_q: Tensor, product, number: int) -> InputGradient:
    """dL/dx (samples * places, inputs) of a convolution with a stride of 1: one of the gradient, with the kernel turned around.

    w_q: (outputs, inputs, height, width), on its grid.
    """
    kernel = tuple(w_q.shape[2:])
    padding = tuple(d * (k - 1) - p for d, k, p in zip(product.dilation, kernel, product.padding, strict=True))
    planes, scale = integers.planes(w_q.reshape(len(w_q), -1), number)
    taps = planes.view(len(w_q), number * w_q.shape[1], -1).permute(2, 0, 1)
    sizes = zip(g.values.shape[1:3], kernel, padding, product.dilation, strict=True)
    places = tuple(n + 2 * p - d * (k - 1) for n, k, p, d in sizes)
    return integers.as_it_is(
        _input_products(g.values, g.scale, g.size, taps, number, scale, (kernel, padding, product.dilation, places))
    )


@with_kernel(kernels.input_products)
def _input_products(values: Tensor, scales: Tensor, size: int, planes: Tensor, number: int, by: Tensor, where) -> Tensor:
    """(samples * places, inputs): the gradient times (taps, outputs, planes * inputs) of a weight, and `by`.

    where: (kernel, padding, dilation, places) of a convolution whose kernel is turned around; None: of rows.
    """
    last = values.dim() - 1
    g = BlockCodes(values, scales, (last, last), size).to_float()
    weight = _whole(planes, number) * by
    if where is None:
        return g @ weight[0]
    kernel, padding, dilation, _ = where
    turned = weight.flip(0).permute(2, 1, 0).unflatten(2, kernel)
    y = F.conv2d(g.permute(0, 3, 1, 2), turned.contiguous(), None, (1, 1), padding, dilation)
    return y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])


def _whole(planes: Tensor, number: int) -> Tensor:
    """The integers that planes side by side stand for, fp32."""
    if number == 1:
        return planes.float()
    high, low = planes.float().chunk(2, -1)
    return low.add(high, alpha=256)


def weight_gradient(g: BlockCodes, x: Codes, transposed: bool) -> Tensor:
    """dL/dw (outputs, inputs) of a layer of rows, or its transpose, fp32."""
    samples, outputs = len(g.values), g.values.shape[-1]
    flat = g.values.reshape(samples, 1, -1, outputs)
    values = x.values.reshape(samples, 1, -1, x.values.shape[-1]).contiguous()
    of_outputs = _sums(flat[:, 0], g.scale, g.size).sum(0)
    gw = _weight_products(
        flat, g.scale, g.size, values, kernels.POINT, x.scale.view(()), (x.offset.view(()) * of_outputs)[:, None]
    )[..., 0]
    return gw.t().contiguous() if transposed else gw


def weight_gradient_of_convolution(g: BlockCodes, x: Codes, product, kernel) -> Tensor:
    """dL/dw (outputs, inputs, taps), fp32."""
    where, outputs = (kernel, product.stride, product.padding, product.dilation), g.values.shape[-1]
    valid = inside(tuple(x.values.shape[1:3]), *where).to(x.scale.device)
    of_places = _sums(g.values.view(len(g.values), -1, outputs), g.scale, g.size)
    return _weight_products(
        g.values, g.scale, g.size, x.values, where, x.scale.view(()), (x.offset.view(()) * (of_places.t() @ valid))
    )


@with_kernel(kernels.sums)
def _sums(g: Tensor, scales: Tensor, size: int) -> Tensor:
    """The gradient (samples, places, outputs) added up over samples."""
    return BlockCodes(g, scales, (1, 1), size).to_float().sum(0)


@with_kernel(kernels.weight_products)
def _weight_products(g: Tensor, scales: Tensor, size: int, values: Tensor, where, by: Tensor, rest: Tensor) -> Tensor:
    """(outputs, channels, taps): the gradient (samples, height, width, outputs) times what lies under the kernel of codes
    (samples, height, width, channels), and `by`; with `rest` (outputs, taps).
    """
    kernel, stride, padding, dilation = where
    g = BlockCodes(g, scales, (1, 2), size).to_float().permute(0, 3, 1, 2)
    x = values.float().permute(0, 3, 1, 2)
    shape = g.shape[1], x.shape[1], *kernel
    gw = conv2d_weight(x, shape, g, stride, padding, dilation)
    return gw.flatten(2).mul_(by).add_(rest[:, None])
