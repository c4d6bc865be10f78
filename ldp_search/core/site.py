"""A site: one quantized layer as its forward sees it. Its tensors are views of the controller's stacked ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backends import Call, finish
from .fake_quantize import fake_quantize, quantize_gradient
from .functions import inside_an_owner, own_products
from .quantizers import Grid, Statistics, measure

MOMENTUM = 0.1  # of the ranges' moving averages (0.9 kept, as in the paper's code)


class Site:
    """State of one layer.

    bits: (3,) leaf, whose `.grad` is a row of the controller's. ranges: (4,) moving averages of min, max, mean|x| and of 1
    (their mass, for the bias correction). x_clip, w_clip: leaves with the logarithms of the learned clips, or None.
    """

    def __init__(self, controller, name: str, axis: int, quantize_grad: bool):
        self.controller, self.name, self.axis, self.quantize_grad = controller, name, axis, quantize_grad
        self.bits = self.ranges = self.x_clip = self.w_clip = None

    def __getstate__(self) -> dict:
        return self.__dict__ | dict.fromkeys(("bits", "ranges", "x_clip", "w_clip"))  # handed out anew by the controller

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state | {k: v for k, v in self.__dict__.items() if v is not None}

    @property
    def on(self) -> bool:
        return self.controller.enabled

    def product(self, layer: nn.Module, x: Tensor, product) -> Tensor:
        """Q(x) * Q(weight) + bias, with the gradient of the result quantized."""
        if inside_an_owner():
            with own_products():
                return self._product(layer, x, product)
        return self._product(layer, x, product)

    def _product(self, layer: nn.Module, x: Tensor, product) -> Tensor:
        c, w = self.controller, layer.weight
        if self.bits.device != x.device:
            c.to(x.device)
        stats = self._input_statistics(x, layer.training)
        x_grid = lambda bits: self._input_grid(stats, bits, layer.training)  # noqa: E731
        w_grid = self._weight_grid(w)
        grad_bits = self.bits[2].detach() if self.quantize_grad else None
        if c.relaxation.interpolates:  # a mixture of two grids lies on neither, so the backend gets none
            call = Call(x, w, layer.bias, None, None, product, grad_bits, c.grad_quantizer)
            return finish(call, _mix(x, self.bits[1], x_grid), _mix(w, self.bits[0], w_grid))
        return c.backend(
            Call(x, w, layer.bias, x_grid(self.bits[1]), w_grid(self.bits[0]), product, grad_bits, c.grad_quantizer)
        )

    def call(self, function, first: int, args: tuple, kwargs: dict, axis: int | None) -> Tensor:
        """`function(*args, **kwargs)`, a product met by the op-level way, of quantized operands.

        Their ranges are always their own: the calls of one owner need not come in the same number or order each time.

        Args:
            first: position of the first operand. axis: of the output channels in the second one, where it is a weight.
        """
        c, (x, w) = self.controller, args[first : first + 2]
        if self.bits.device != x.device:
            c.to(x.device)
        x = self._operand(x, c.input_quantizer, self.bits[1], None)
        w = self._operand(w, c.weight_quantizer if axis is not None else c.input_quantizer, self.bits[0], axis)
        y = function(*args[:first], x, w, *args[first + 2 :], **kwargs)
        return quantize_gradient(y, self.bits[2].detach(), c.grad_quantizer) if self.quantize_grad else y

    def _operand(self, x: Tensor, quantizer, bits: Tensor, axis: int | None) -> Tensor:
        stats = measure(x.detach(), axis, quantizer.learned_clip)
        grid = lambda bits: quantizer.grid(stats, bits, True)  # noqa: E731
        return _mix(x, bits, grid) if self.controller.relaxation.interpolates else fake_quantize(x, grid(bits))

    def rows(self, rows: Tensor) -> Tensor:
        """Rows of an embedding, each quantized by itself."""
        if self.bits.device != rows.device:
            self.controller.to(rows.device)
        flat = rows.reshape(-1, rows.shape[-1])
        grid = self._weight_grid(flat, learned=False)
        mix = self.controller.relaxation.interpolates
        return (_mix(flat, self.bits[0], grid) if mix else fake_quantize(flat, grid(self.bits[0]))).view(rows.shape)

    def _weight_grid(self, w: Tensor, learned: bool = True):
        """bits -> grid of the weights, one range a channel."""
        quantizer = self.controller.weight_quantizer
        stats = measure(w.detach(), self.axis, quantizer.learned_clip)
        clip = None
        if learned and self.w_clip is not None:
            clip = self.w_clip.exp().view([-1 if d == self.axis else 1 for d in range(w.dim())])
        return lambda bits: quantizer.grid(stats, bits, True, clip)

    def _input_grid(self, stats: Statistics, bits: Tensor, live: bool) -> Grid:
        clip = None if self.x_clip is None else self.x_clip.exp().view(())
        return self.controller.input_quantizer.grid(stats, bits, live, clip)

    @torch.no_grad()
    def _input_statistics(self, x: Tensor, training: bool) -> Statistics:
        """The batch's own statistics in training, their moving averages in evaluation."""
        batch = measure(x.detach(), None, self.controller.input_quantizer.learned_clip)
        if training:
            self.ranges.lerp_(torch.stack([*batch, torch.ones_like(batch.low)]).to(self.ranges.dtype), MOMENTUM)
            return batch
        known = self.ranges[3] > 0  # before any training there is no average: the batch's own range serves
        average = (self.ranges[:3] / self.ranges[3].clamp_min(1e-12)).to(batch.low.dtype)
        return Statistics(*torch.where(known, average, torch.stack(list(batch))).unbind())


def _mix(x: Tensor, bits: Tensor, grid) -> Tensor:
    """(1 - f) Q_k(x) + f Q_{k+1}(x) with k = floor(bits), f its fraction: dx/dbits is the difference of the two."""
    lower = torch.floor(bits.detach())
    return torch.lerp(fake_quantize(x, grid(lower)), fake_quantize(x, grid(lower + 1)), (bits - lower).to(x.dtype))
