"""Quantized layers. The class of a layer changes in place, by exact type; names, tensors, hooks and ties stay.

A quantized class is made from the original one by one mixin, whose forward asks the layer's `Site` for a quantized product
and falls back to the original forward, exactly, where quantization is off.
"""

from __future__ import annotations

from functools import cache

import torch.nn.functional as F
from torch import nn

from .products import ConvolutionProduct, LinearProduct

ATTRIBUTE = "_ldp_site"  # in the layer's __dict__: neither parameter, buffer nor submodule


class QuantizedLayer:
    """Mixin before the original class. `_ldp_site` is the controller's record of this layer."""

    def forward(self, input, *args, **kwargs):
        site = self.__dict__[ATTRIBUTE]
        if not site.on:
            return super().forward(input, *args, **kwargs)
        return _FORWARDS[kind_of(type(self))](self, site, input, *args, **kwargs)

    def __reduce_ex__(self, protocol):
        # Made classes have no importable name: pickle and copy remake them from the original class.
        return _remake, (original_class(type(self)),), self.__dict__


def _remake(cls: type):
    quantized = quantized_class(cls)
    return quantized.__new__(quantized)


@cache
def quantized_class(cls: type) -> type:
    """The quantized class of a supported one: QuantLinear of Linear, ..."""
    return type(f"Quant{cls.__name__}", (QuantizedLayer, cls), {"__module__": __name__, "__doc__": cls.__doc__})


def original_class(quantized: type) -> type:
    """The class that a quantized one was made from."""
    return quantized.__mro__[2]


def kind_of(cls: type) -> str | None:
    """The kind of layer that a class is, by exact type (a subclass may compute anything); None: not supported here."""
    cls = original_class(cls) if issubclass(cls, QuantizedLayer) else cls
    if cls.__module__ == "transformers.pytorch_utils" and cls.__name__ == "Conv1D":
        return "Conv1D"  # by name, so that transformers is not imported
    return cls.__name__ if cls in _SUPPORTED else None


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
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(layer.stride)
    product = ConvolutionProduct(layer.stride, padding, layer.dilation, layer.groups)
    y = site.product(layer, x, product)
    return y.squeeze(0) if unbatched else y


def _transposed_convolution(layer, site, x, output_size=None):
    x, unbatched = _batched(layer, x)
    dims = len(layer.stride)
    output_padding = layer._output_padding(x, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation)
    product = ConvolutionProduct(layer.stride, layer.padding, layer.dilation, layer.groups, True, tuple(output_padding))
    y = site.product(layer, x, product)
    return y.squeeze(0) if unbatched else y


def _batched(layer, x):
    """A convolution also takes one sample without a batch dimension."""
    unbatched = x.dim() == len(layer.stride) + 1
    return (x.unsqueeze(0) if unbatched else x), unbatched


def _embedding(layer, site, index):
    rows = F.embedding(index, layer.weight, layer.padding_idx, layer.max_norm, layer.norm_type, layer.scale_grad_by_freq)
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


def swap(layer: nn.Module, site) -> None:
    """Make `layer` a quantized one, in place."""
    layer.__class__ = quantized_class(type(layer))
    layer.__dict__[ATTRIBUTE] = site


def unswap(layer: nn.Module) -> None:
    """Undo `swap`, exactly."""
    layer.__class__ = original_class(type(layer))
    del layer.__dict__[ATTRIBUTE]
