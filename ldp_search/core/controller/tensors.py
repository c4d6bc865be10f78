"""The tensors that a controller adds to a model, stacked over all sites, and the views of them that the sites hold."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..model.site import Site
from ..model.sites import SiteSpec
from ..quantize.quantizers import Quantizer

CLIP_LR = 1e-3  # of the learned clips: a share of the range per step, since they are held as logarithms
NAMES = ("bits", "grads", "ranges", "clips", "clip_grads", "spent", "x_bounds", "w_bounds")
"""Of the tensors, here and on disk."""


class BitTensors:
    """The stacked tensors.

    bits, grads: (sites, kinds) in force, and dL/dbits since the last step.
    ranges: (call sites, 4) moving averages of each input's minimum, maximum and mean magnitude, and of 1 (their mass).
    clips, clip_grads: logarithms of the learned clips (of the inputs, then of the weights), and their gradients.
    spent: integral of the relative cost over progress (0-d, float64).
    x_bounds (call sites, 1 + levels), w_bounds (sites, 1 + levels): tables of `model.clipping`; empty where none is searched.
    """

    def __init__(
        self, specs: list[SiteSpec], kinds: int, levels: int, weight_quantizer: Quantizer, input_quantizer: Quantizer, device
    ):
        sites, zeros = len(specs), lambda *shape, **options: torch.zeros(*shape, dtype=torch.float32, device=device)
        self._calls = [spec.call_sites for spec in specs]
        self._channels = [spec.channels if weight_quantizer.learned_clip else 0 for spec in specs]
        self._input_clips = sites if input_quantizer.learned_clip else 0
        self.bits, self.grads = zeros(sites, kinds), zeros(sites, kinds)
        self.ranges = zeros(sum(self._calls), 4)
        self.clips = zeros(self._input_clips + sum(self._channels))
        self.clip_grads = torch.zeros_like(self.clips)
        self.spent = torch.zeros((), dtype=torch.float64, device=device)
        self.x_bounds = zeros(sum(self._calls) if input_quantizer.searches_clip else 0, 1 + levels)
        self.w_bounds = zeros(sites if weight_quantizer.searches_clip else 0, 1 + levels)
        self._optimizer = torch.optim.Adam([self.clips], lr=CLIP_LR)

    def resize_ranges(self, specs: list[SiteSpec]) -> None:
        """Begin the moving averages of inputs anew, with another number of call sites."""
        self._calls = [spec.call_sites for spec in specs]
        self.ranges = self.ranges.new_zeros(sum(self._calls), 4)
        if len(self.x_bounds):
            self.x_bounds = self.x_bounds.new_zeros(sum(self._calls), self.x_bounds.shape[1])

    def bind_views(self, sites: list[Site], learn: bool, frozen: bool) -> None:
        """Give every site its rows: leaves that share the stacked tensors' storage, with gradients that do so too.

        learn: the bits have gradients. frozen: the clips have none.
        """
        ranges = self.ranges.split(self._calls)
        x_bounds = self.x_bounds.split(self._calls) if len(self.x_bounds) else None
        start = self._input_clips
        for row, site in enumerate(sites):
            site.bits = leaf(self.bits[row], self.grads[row] if learn else None)
            site.grad_bits = self.bits[row, 2] if self.bits.shape[1] == 3 else self.bits[row, 2:]
            site.ranges, site.x_bounds = ranges[row], None if x_bounds is None else x_bounds[row]
            site.w_bounds = self.w_bounds[row] if len(self.w_bounds) else None
            site.x_clip = self._clip(row, row + 1, frozen) if self._input_clips else None
            stop = start + self._channels[row]
            site.w_clip = self._clip(start, stop, frozen) if stop > start else None
            start = stop

    def _clip(self, start: int, stop: int, frozen: bool) -> Tensor:
        return leaf(self.clips[start:stop], None if frozen else self.clip_grads[start:stop])

    def to(self, device) -> None:
        for name in NAMES:
            setattr(self, name, getattr(self, name).to(device))
        state = self._optimizer.state_dict()
        self._optimizer = torch.optim.Adam([self.clips], lr=CLIP_LR)
        self._optimizer.load_state_dict(state)

    def of_the_batch(self, sensed: bool) -> list[Tensor]:
        """What a forward and backward have left that depends on the batch; sensed: they searched the bounds of inputs too."""
        return [self.grads, self.ranges, self.clip_grads, *([self.x_bounds] if sensed else [])]

    def begin_ranges(self) -> None:
        """Forget what is known of ranges and bounds, to learn it anew."""
        for tensor in (self.ranges, self.x_bounds, self.w_bounds):
            tensor.zero_()

    def step_clips(self) -> None:
        if self.clips.numel():
            self.clips.grad = torch.nan_to_num(self.clip_grads, 0.0, 0.0, 0.0)
            self._optimizer.step()

    def finite_gradients(self) -> Tensor:
        """(layers, kinds) dL/dbits; zeros where one is not finite: a step that overflows tells nothing."""
        return torch.where(self.grads.isfinite().all(), self.grads, 0.0)

    def zero_gradients(self) -> None:
        self.grads.zero_()
        self.clip_grads.zero_()

    def all(self) -> list[Tensor]:
        return [getattr(self, name) for name in NAMES]

    def holders(self) -> list:
        """The objects whose attributes change with the tensors."""
        return [self, self._optimizer]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).detach().cpu().clone() for name in NAMES}

    def optimizer_state(self) -> dict:
        return copy.deepcopy(self._optimizer.state_dict())

    def load_state_dict(self, state: dict[str, Tensor], optimizer: dict | None = None) -> None:
        """Take over values of the same shapes; a name that begins with an underscore is that of an older file.

        Raises:
            ValueError: other shapes: another model, inputs, or search space.
        """
        state = {name.lstrip("_"): value for name, value in state.items()}
        if state["clips"].shape != self.clips.shape:
            raise ValueError("The state must be of the same search space: one of the two has learned clips, the other has not.")
        for name, value in state.items():
            if getattr(self, name).shape != value.shape:
                raise ValueError(
                    "The state must be of the same layers and space, counted on inputs that use them alike; "
                    f"{name} is of shape {tuple(value.shape)} there and {tuple(getattr(self, name).shape)} here."
                )
        for name, value in state.items():
            getattr(self, name).copy_(value)
        if optimizer is not None:
            self._optimizer.load_state_dict(copy.deepcopy(optimizer))  # it would keep the very tensors


def leaf(values: Tensor, grad: Tensor | None) -> Tensor:
    """A leaf on the same storage as `values`; with `grad`, one whose gradient accumulates there."""
    made = values.detach()
    if grad is not None:
        made.requires_grad_()
        made.grad = grad
    return made
