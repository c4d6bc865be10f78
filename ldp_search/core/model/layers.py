"""Quantized layers. The class of a layer changes in place, by exact type; names, tensors, hooks and ties stay.

A quantized class is made from the original one by one mixin, whose forward asks the layer's `Site` for a quantized product
and falls back to the original forward, exactly, where quantization is off.
"""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..products.bilinear import ConvolutionProduct, LinearProduct, padded
from .guard import not_intercepted
from .interception import InterceptionPlan
from .swap import ATTRIBUTE, Swapped, original_class


class QuantizedLayer(Swapped):
    """Mixin of a quantized layer. `_ldp_site` is the controller's record of it."""

    _ldp_kind: str
    _ldp_parameters: tuple[str, ...]

    @classmethod
    def made_from(cls, original):
        """QuantLinear of Linear, ..."""
        parameters = tuple(inspect.signature(original.forward).parameters)[1:]
        own = {"_ldp_kind": kind_of(original), "_ldp_parameters": parameters, "__module__": __name__}
        return f"Quant{original.__name__}", own

    def run(self, forward, args, kwargs):
        site = self.__dict__.get(ATTRIBUTE)  # none in a layer that somebody made of this class, as adapters do
        if isinstance(site, InterceptionPlan):  # parametrized since: its owner's plan sees to it
            return forward(self, *args, **kwargs)
        bound = in_order(self._ldp_parameters, args, kwargs)
        if site is None or not site.on or bound is None or has_no_range(bound[0]):
            with not_intercepted():
                return forward(self, *args, **kwargs)
        return _FORWARDS[self._ldp_kind](self, site, *bound)


def in_order(names: tuple[str, ...], args: tuple, kwargs: dict) -> tuple | None:
    """The arguments by position, up to the last one given; None where the call is not one of the signature's."""
    if not kwargs:
        return args if 0 < len(args) <= len(names) else None
    given = dict(zip(names, args, strict=False)) | kwargs
    if len(given) < len(args) + len(kwargs) or names[0] not in given or not set(given) <= set(names):
        return None  # the original forward then says what is wrong
    last = max(names.index(name) for name in given)
    return tuple(given.get(name) for name in names[: last + 1])


def has_no_range(x: Tensor) -> bool:
    """An empty tensor (an expert without tokens), or one of the meta device."""
    return x.numel() == 0 or x.is_meta


class OrdinaryPath(Swapped):
    """Mixin of torch's own transformer encoder. Its fused path for evaluation reads the weights past the layers' forwards, so
    it is closed while they are quantized.
    """

    training: bool

    def run(self, forward, args, kwargs):
        fused = torch.backends.mha.get_fastpath_enabled()
        if self.training or not fused or not self.__dict__[ATTRIBUTE].on:
            return forward(self, *args, **kwargs)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return forward(self, *args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer)


def kind_of(cls: type) -> str | None:
    """The kind of layer that a class is, by exact type (a subclass may compute anything); None: not supported here."""
    cls = original_class(cls)
    if cls not in _SUPPORTED and cls.__bases__[0].__name__ == "FSDPModule":
        cls = cls.__bases__[-1]  # FSDP2 puts its class before that of a module, whose forward stays
    if cls.__module__ == "transformers.pytorch_utils" and cls.__name__ == "Conv1D":
        return "Conv1D"  # by name, so that transformers is not imported
    return cls.__name__ if cls in _SUPPORTED else None


def channel_axis(layer: nn.Module) -> int:
    """The axis of the weight along which output channels run."""
    transposed = getattr(layer, "transposed", False) or kind_of(type(layer)) == "Conv1D"
    return 1 if transposed else 0


def _linear(layer, site, x):
    """Also of one vector without a batch dimension: dimension 0 tells the samples apart wherever gradients are rounded."""
    y = site.layer(layer, x.unsqueeze(0) if x.dim() == 1 else x, LinearProduct())
    return y.squeeze(0) if x.dim() == 1 else y


def _conv1d_of_transformers(layer, site, x):
    return site.layer(layer, x, LinearProduct(transposed=True))


def _convolution(layer, site, x):
    x, unbatched = _batched(layer, x)
    if layer.padding_mode == "zeros":
        x, padding = padded(x, layer.padding, layer.kernel_size, layer.dilation)
    else:
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0,) * len(layer.stride)
    y = site.layer(layer, x, ConvolutionProduct(layer.stride, padding, layer.dilation, layer.groups))
    return y.squeeze(0) if unbatched else y


def _transposed_convolution(layer, site, x, output_size=None):
    dims = len(layer.stride)
    output_padding = layer._output_padding(x, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation)
    x, unbatched = _batched(layer, x)
    product = ConvolutionProduct(layer.stride, layer.padding, layer.dilation, layer.groups, True, tuple(output_padding))
    y = site.layer(layer, x, product)
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
