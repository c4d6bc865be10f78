"""Costs: pure, differentiable functions of the layers' sizes and bits.

A product of a b1-bit by a b2-bit operand costs b1 * b2 bit operations per multiply-accumulate. Training runs three
products a layer: forward (w * x), input gradient (w * g) and weight gradient (x * g), each over the same MACs. What is never
computed costs nothing: the input gradient where nothing before is trained (the first layer of most networks), the weight
gradient of a frozen layer. The published accounting charges every layer all three. Looking rows up costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """Cost of a model at some bits. BitOPs are per sample; `relative*` are to the space's highest bits.

    mean_relative: the relative training cost averaged over the trajectory so far (by progress). left_out_bitops: training
    BitOPs, at 32 bits, of what is not quantized (attention's own products without attention=True); in none of the others,
    since no choice of bits changes it. latency_ms, relative_latency: as predicted by the space's table, None without one.
    """

    training_bitops: float
    inference_bitops: float
    relative: float
    relative_inference: float
    weight_mib: float
    mean_relative: float
    left_out_bitops: float = 0.0
    latency_ms: float | None = None
    relative_latency: float | None = None


def training_bitops(macs: Tensor, bits: Tensor, backward: Tensor | None = None) -> Tensor:
    """MACs * (b_w b_x + b_w b_g1 + b_x b_g2) of each layer.

    macs: (layers,) of the forward. bits: (..., layers, kinds): weight, input, gradient; of four kinds the last two are in
    dL/dx, in dL/dw. backward: (layers, 2) MACs of these two products; None: as many as of the forward.
    """
    w, x, g1, g2 = bits.unbind(-1) if bits.shape[-1] == 4 else (*bits.unbind(-1), bits[..., 2])
    of_input, of_weight = (macs, macs) if backward is None else backward.unbind(-1)
    return macs * w * x + of_input * w * g1 + of_weight * x * g2


def inference_bitops(macs: Tensor, bits: Tensor) -> Tensor:
    """MACs * b_w * b_x of each layer."""
    return macs * bits[..., 0] * bits[..., 1]


def training_bitops_gradient(macs: Tensor, bits: Tensor, backward: Tensor | None = None) -> Tensor:
    """d training_bitops / d bits, (layers, kinds): each bit costs the sum of those that it multiplies."""
    w, x, g1, g2 = bits.unbind(-1) if bits.shape[-1] == 4 else (*bits.unbind(-1), bits[..., 2])
    of_input, of_weight = (macs, macs) if backward is None else backward.unbind(-1)
    forward = [macs * x + of_input * g1, macs * w + of_weight * g2]
    in_input, in_weight = of_input * w, of_weight * x
    return torch.stack([*forward, in_input, in_weight] if bits.shape[-1] == 4 else [*forward, in_input + in_weight], -1)


def weight_mib(weight_numel: Tensor, bits: Tensor) -> Tensor:
    """Storage of each layer's weights in MiB."""
    return weight_numel * bits[..., 0] / 8 / 2**20
