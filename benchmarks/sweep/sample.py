"""One small instance of a model, with inputs for its forward; and noise that lets its gradients be seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Sample:
    """A model, and keyword or positional arguments of its forward."""

    name: str  # "timm:resnet", "hf:bert"
    model: nn.Module
    inputs: Any
    class_name: str
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def wake(model: nn.Module, seed: int = 1) -> None:
    """Give every constant parameter some noise, and every undefined one values.

    A gamma of 0 at the end of a residual branch, a zeroed head or a layer scale of 1e-6 would hide what lies behind it:
    its gradients would be 0, and so would errors be.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.is_floating_point() or parameter.numel() == 0:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if not torch.isfinite(parameter).all() or parameter.abs().max() > 1e4:
            parameter.copy_(noise * 0.05)
        elif parameter.dim() == 0:
            parameter.add_(noise * 0.02)
        elif (parameter == parameter.flatten()[0]).all():
            scale = 0.1 if parameter.abs().max() > 0.5 else 0.05
            parameter.add_(noise * scale)
