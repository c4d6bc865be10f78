"""Other ways to train with quantization, for `step.py`: torch's own fake-quantize, torchao and Brevitas where installed."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn
from torch.ao import quantization as ao


def peers() -> dict:
    """{name: function that turns a model into the peer's quantized one, or returns None for a model that it does not take}."""
    found = {"torch fake-quantize 8/8, dynamic ranges": fake_quantized}
    if importlib.util.find_spec("torchao"):
        found["torchao QAT (int8 activations, int4 weights; linear layers)"] = torchao
    if importlib.util.find_spec("brevitas"):
        found["Brevitas 8 bit"] = lambda model: brevitas(model, learned=False)
        found["Brevitas, learned bit-width"] = lambda model: brevitas(model, learned=True)
    return found


def replace(model: nn.Module, make: dict) -> nn.Module:
    """Every module whose exact class is a key of `make` becomes what that function makes of it."""
    for name, module in list(model.named_modules()):
        if type(module) in make and name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make[type(module)](module))
    return model


class _FakeQuantized(nn.Module):
    """A layer behind torch's FusedMovingAvgObsFakeQuantize for its input and (per channel) its weight."""

    def __init__(self, layer: nn.Module, axis: int):
        super().__init__()
        self.layer = layer
        self.input = ao.FusedMovingAvgObsFakeQuantize(ao.MovingAverageMinMaxObserver, 0, 255, averaging_constant=1.0)
        self.weight = ao.FusedMovingAvgObsFakeQuantize(
            ao.MovingAveragePerChannelMinMaxObserver, -128, 127, dtype=torch.qint8, qscheme=torch.per_channel_symmetric,
            ch_axis=axis, averaging_constant=1.0,
        )  # fmt: skip

    def forward(self, x):
        w = self.weight(self.layer.weight)
        return torch.func.functional_call(self.layer, {"weight": w}, (self.input(x),))


def fake_quantized(model: nn.Module) -> nn.Module:
    import transformers

    made = {nn.Linear: 0, nn.Conv2d: 0, transformers.pytorch_utils.Conv1D: 1}
    return replace(model, {cls: lambda layer, axis=axis: _FakeQuantized(layer, axis) for cls, axis in made.items()})


def torchao(model: nn.Module) -> nn.Module | None:
    from torchao.quantization.qat import Int8DynActInt4WeightQATQuantizer

    if not any(type(m) is nn.Linear and m.in_features % 32 == 0 for m in model.modules()):
        return None
    if sum(type(m) is nn.Linear for m in model.modules()) < 5:  # the classifier of a convolutional network says nothing
        return None
    return Int8DynActInt4WeightQATQuantizer(groupsize=32).prepare(model)


def brevitas(model: nn.Module, learned: bool) -> nn.Module | None:
    """QuantLinear and QuantConv2d with 8 bits, or with a bit-width that is a parameter of each layer."""
    import brevitas.nn as qnn
    from brevitas.inject.enum import BitWidthImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    extra = {"bit_width_impl_type": BitWidthImplType.PARAMETER} if learned else {}
    weight = type("Weight", (Int8WeightPerChannelFloat,), dict(extra))
    act = type("Act", (Int8ActPerTensorFloat,), dict(extra))

    def linear(m):
        made = qnn.QuantLinear(m.in_features, m.out_features, m.bias is not None, weight_quant=weight, input_quant=act)
        return _with_tensors_of(made, m)

    def convolution(m):
        options = (m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups)
        return _with_tensors_of(qnn.QuantConv2d(*options, bias=m.bias is not None, weight_quant=weight, input_quant=act), m)

    return replace(model, {nn.Linear: linear, nn.Conv2d: convolution})


def _with_tensors_of(made: nn.Module, layer: nn.Module) -> nn.Module:
    made.load_state_dict(layer.state_dict(), strict=False)
    return made.train(layer.training)
