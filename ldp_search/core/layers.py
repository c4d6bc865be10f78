"""Quantized layers. The class of a layer changes in place, by exact type; names, tensors, hooks and ties stay.

A quantized class is made from the original one by one mixin, whose forward asks the layer's `Site` for a quantized product
and falls back to the original forward, exactly, where quantization is off.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import ConvolutionProduct, LinearProduct

ATTRIBUTE = "_ldp_site"  # in the layer's __dict__: neither parameter, buffer nor submodule


class Swapped:
    """Base of the mixins that stand before the original class."""

    def __reduce_ex__(self, protocol):
        # Made classes have no importable name: pickle and copy remake them from the original class.
        return _remake, (original_class(type(self)), type(self).__mro__[1]), self.__dict__


class QuantizedLayer(Swapped):
    """Mixin of a quantized layer. `_ldp_site` is the controller's record of it."""

    def forward(self, input, *args, **kwargs):
        site = self.__dict__[ATTRIBUTE]
        if not site.on or input.numel() == 0:  # an empty batch (an expert without tokens) has no range
            return super().forward(input, *args, **kwargs)
        return _FORWARDS[kind_of(type(self))](self, site, input, *args, **kwargs)


class OrdinaryPath(Swapped):
    """Mixin of torch's own transformer encoder. Its fused path for evaluation reads the weights past the layers' forwards, so
    it is closed while they are quantized.
    """

    def forward(self, *args, **kwargs):
        fused = torch.backends.mha.get_fastpath_enabled()
        if self.training or not fused or not self.__dict__[ATTRIBUTE].on:
            return super().forward(*args, **kwargs)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return super().forward(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer)


def _remake(cls: type, mixin: type):
    made = quantized_class(cls, mixin)
    return made.__new__(made)


@cache
def quantized_class(cls: type, mixin: type = QuantizedLayer) -> type:
    """The quantized class of a supported one: QuantLinear of Linear, ..."""
    return type(f"Quant{cls.__name__}", (mixin, cls), {"__module__": __name__, "__doc__": cls.__doc__})


def original_class(quantized: type) -> type:
    """The class that a quantized one was made from."""
    return next(cls for cls in quantized.__mro__[1:] if not issubclass(cls, Swapped))


def kind_of(cls: type) -> str | None:
    """The kind of layer that a class is, by exact type (a subclass may compute anything); None: not supported here."""
    cls = original_class(cls) if issubclass(cls, QuantizedLayer) else cls
    if cls.__module__ == "transformers.pytorch_utils" and cls.__name__ == "Conv1D":
        return "Conv1D"  # by name, so that transformers is not imported
    return cls.__name__ if cls in _SUPPORTED else None


class Entry(NamedTuple):
    """What the controller needs to know of a module that becomes quantized.

    axis: of its weight, along which output channels run; channels: how many learned clips its weight has (0 without one
    weight of its own). weights: the parameters that are stored in its bits.
    """

    kind: str
    axis: int
    channels: int
    weights: list[Tensor]


def describe(layer: nn.Module) -> Entry:
    """The entry of a layer of a supported kind."""
    axis = channel_axis(layer)
    return Entry(kind_of(type(layer)), axis, layer.weight.shape[axis], [layer.weight])


def channel_axis(layer: nn.Module) -> int:
    """The axis of the weight along which output channels run."""
    transposed = getattr(layer, "transposed", False) or kind_of(type(layer)) == "Conv1D"
    return 1 if transposed else 0


def _linear(layer, site, x):
    return site.product(layer, x, LinearProduct())


def _conv1d_of_transformers(layer, site, x):
    return site.product(layer, x, LinearProduct(transposed=True))


def _convolution(layer, site, x):
    x, unbatched = _batched(layer, x)
    padding = _even_padding(layer)
    if layer.padding_mode != "zeros" or padding is None:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(layer.stride)
    product = ConvolutionProduct(layer.stride, padding, layer.dilation, layer.groups)
    y = site.product(layer, x, product)
    return y.squeeze(0) if unbatched else y


def _even_padding(layer) -> tuple | None:
    """Zeros on each side, for the product to add after quantization, where they stay exact; None: 'same' with an odd total."""
    if not isinstance(layer.padding, str):
        return layer.padding
    both = layer._reversed_padding_repeated_twice[::-1]  # right, left of each dimension in order
    return tuple(both[::2]) if both[::2] == both[1::2] else None


def _transposed_convolution(layer, site, x, output_size=None):
    dims = len(layer.stride)
    output_padding = layer._output_padding(x, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation)
    x, unbatched = _batched(layer, x)
    product = ConvolutionProduct(layer.stride, layer.padding, layer.dilation, layer.groups, True, tuple(output_padding))
    y = site.product(layer, x, product)
    return y.squeeze(0) if unbatched else y


def _batched(layer, x):
    """A convolution also takes one sample without a batch dimension."""
    unbatched = x.dim() == len(layer.stride) + 1
    return (x.unsqueeze(0) if unbatched else x), unbatched


def _embedding(layer, site, index):
    options = layer.padding_idx, layer.max_norm, layer.norm_type, layer.scale_grad_by_freq, layer.sparse
    rows = F.embedding(index, layer.weight, *options)
    return site.rows(rows)


_SUPPORTED = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.Embedding: _embedding,
}
_FORWARDS = {cls.__name__: f for cls, f in _SUPPORTED.items()} | {"Conv1D": _conv1d_of_transformers}

QuantLinear = quantized_class(nn.Linear)
QuantConv1d, QuantConv2d, QuantConv3d = map(quantized_class, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
QuantConvTranspose1d, QuantConvTranspose2d, QuantConvTranspose3d = map(
    quantized_class, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
)
QuantEmbedding = quantized_class(nn.Embedding)


def swap(layer: nn.Module, site, mixin: type = QuantizedLayer) -> None:
    """Put `mixin` before the class of `layer`, in place."""
    layer.__class__ = quantized_class(type(layer), mixin)
    layer.__dict__[ATTRIBUTE] = site


def unswap(layer: nn.Module) -> None:
    """Undo `swap`, exactly."""
    layer.__class__ = original_class(type(layer))
    del layer.__dict__[ATTRIBUTE]
