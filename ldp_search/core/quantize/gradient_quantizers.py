"""Quantizers of gradients: stochastic rounding, which keeps the mean of what it rounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import native
from ..native import grids as kernels
from ..registry import register
from .grid import measure


def round_stochastically_(x: Tensor) -> Tensor:
    """In place: up with the probability of the fraction, else down, so that E[result] = x (to 2^-17).

    On a CPU the noise is sixteen random bits an element, four elements a draw: a fifth of the time of `torch.rand`.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.add_(torch.rand_like(x)).floor_()
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    noise = draws.view(torch.int16)[: x.numel()].view(x.shape)
    return x.add_(0.5 + 2**-17).add_(noise, alpha=2**-16).floor_()


class GradQuantizer:
    """Base of the gradient quantizers: stochastic rounding, unbiased (E[g_q] = g), to the grid that `grid` says."""

    def grid(self, g: Tensor, bits: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(scale, offset, largest code), 0-d and fp32; offset None: symmetric about an exact zero."""
        raise TypeError(f"{type(self).__name__} must define grid(g, bits).")

    def __call__(self, g: Tensor, bits: Tensor) -> Tensor:
        """g on its grid, a fresh tensor."""
        if (known := gradient_form(self)) is not None and native.takes(g) and kernels.reads(bits):
            return kernels.gradient(g, known, bits, draw_seed(), g.dtype)[0]
        scale, offset, most = self.grid(g, bits)
        if native.takes(g):
            return native.stochastic(g, scale, offset, most, draw_seed(), g.dtype)
        codes = round_stochastically_(g.float() / scale if offset is None else torch.sub(g.float(), offset).div_(scale))
        codes = codes.mul_(scale)
        return (codes if offset is None else codes.add_(offset)).to(g.dtype)


def draw_seed() -> int:
    """From torch's generator: `torch.manual_seed` and a resumed run repeat what follows from it."""
    return torch.empty((), dtype=torch.int64, device="cpu").random_().item()


@register("grad_quantizer", "stochastic")
@dataclass
class Stochastic(GradQuantizer):
    """Gradient quantizer: affine min/max (method of CPT, FracTrain and LDP)."""

    def grid(self, g, bits):
        low, high, _ = measure(g)  # in fp32, so that half precision does not round the range
        most = torch.exp2(bits) - 1
        return ((high - low) / most).clamp_min(torch.finfo(torch.float32).tiny), low, most


@register("grad_quantizer", "symmetric")
@dataclass
class SymmetricStochastic(GradQuantizer):
    """Gradient quantizer with exact zero (a dead ReLU's gradient stays zero) and a symmetric range."""

    def grid(self, g, bits):
        low, high, _ = measure(g)
        most = torch.exp2(bits - 1) - 1
        return (torch.maximum(-low, high) / most).clamp_min(torch.finfo(torch.float32).tiny), None, most


_FORMS = {Stochastic: kernels.MINMAX, SymmetricStochastic: kernels.SYMMETRIC}


def gradient_form(quantizer: GradQuantizer) -> int | None:
    """Which closed form of the kernels equals `quantizer.grid`; None: none does. By exact type: a subclass has its own grid."""
    return _FORMS.get(type(quantizer))
