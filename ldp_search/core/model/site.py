"""A site: one row of the search as the products that belong to it see it. Its tensors are views of the controller's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..backends import Call, Simulate, finish
from ..backends.reference import under_transform
from ..backends.sensing import Given, Sense
from ..bits.space import FULL_PRECISION, BitsOfKinds
from ..native import with_kernel
from ..native.memory import recomputing, transformed
from ..products.bilinear import Product
from ..products.torch_functions import TorchProduct
from ..quantize.fake_quantize import fake_quantize, quantize_gradient
from ..quantize.fused_grids import fused_grids
from ..quantize.gradient_quantizers import GradQuantizer
from ..quantize.grid import Grid, Statistics, measure
from . import clipping
from .guard import not_intercepted
from .interception import copy_with_model
from .layers import has_no_range

if TYPE_CHECKING:
    from ..controller.controller import Controller
    from ..controller.damage_sensor import DamageSensor

GridAt = Callable[[Tensor], Grid]
"""From bits (0-d) to a grid."""
Pair = tuple[Tensor, Tensor]
"""Two operands, in the order of the call."""
Errors = tuple[Tensor, Tensor]
"""(levels,) mean squared errors of x and of w at each number of bits."""
MOMENTUM = 0.1  # of the ranges' moving averages (0.9 kept, as in the paper's code)


class _Met(NamedTuple):
    """`function(*args, **kwargs)`, a product of x and w met outside of layers.

    weight: which operand w is in the call (0 or 1); None: neither is a weight, and x comes first. axes: of the output channels
    in w.
    """

    product: TorchProduct
    function: Callable
    args: tuple
    kwargs: dict
    weight: int | None
    axes: tuple[int, ...]

    def run(self, x: Tensor, w: Tensor) -> Tensor:
        """The function of other operands."""
        args, kwargs = self.product.with_operands(self.args, self.kwargs, (x, w) if self.weight != 0 else (w, x))
        return self.function(*args, **kwargs)


class Site:
    """State of one row.

    bits: (kinds,) leaf, whose `.grad` is a row of the controller's. grad_bits: the gradient's, without gradient. ranges: (call
    sites, 4) moving averages of min, max, mean|x| and of 1 (their mass, for the bias correction) of the input; a module
    that runs twice in a forward has two call sites.
    x_clip, w_clip: leaves with the logarithms of the learned clips, or None. x_bounds (call sites, 1 + levels), w_bounds (1 +
    levels,): tables of `clipping`, or None. row: place of the site among all. axis: of a layer's output channels.
    highest: weight, input and gradient bits that are never exceeded.
    """

    bits: Tensor
    grad_bits: Tensor
    ranges: Tensor
    x_clip: Tensor | None
    w_clip: Tensor | None
    x_bounds: Tensor | None
    w_bounds: Tensor | None

    def __init__(self, controller: Controller, row: int, name: str, axis: int, highest: BitsOfKinds):
        self.controller, self.row, self.name, self.axis, self.highest = controller, row, name, axis, highest
        self.quantize_grad = highest[2] < FULL_PRECISION
        self.call_site = 0  # of the next call in this forward
        self._ends: Tensor | None = None  # (call sites, 2) smallest and largest input of each call, for recomputations
        self.seen = False  # whether a forward with quantization on has come here

    def __deepcopy__(self, memo: dict):
        """A copy of the whole model has its own sites; a copy of one layer (an adapter's) shares them: one decision."""
        return copy_with_model(self, self.controller, memo)

    def __getstate__(self) -> dict:
        handed_out_anew = "bits", "grad_bits", "ranges", "x_clip", "w_clip", "x_bounds", "w_bounds", "_ends"
        return {name: value for name, value in self.__dict__.items() if name not in handed_out_anew}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state | self.__dict__  # the controller that it belongs to may have handed out its tensors already

    @property
    def on(self) -> bool:
        return self.controller.enabled

    # -- products -----------------------------------------------------------------------------------------------------

    def layer(self, layer: Any, x: Tensor, product: Product) -> Tensor:
        """Q(x) * Q(weight) + bias of a layer, with the gradient of the result quantized."""
        with not_intercepted():
            return self.product(x, layer.weight, layer.bias, product, layer.training, (self.axis,))

    def product(
        self, x: Tensor, w: Tensor, bias: Tensor | None, product: Product, training: bool, axes: tuple[int, ...]
    ) -> Tensor:
        """The same of a product of `products/bilinear.py`; axes: of the output channels in the weight."""
        self._on_device_of(x)
        errors = self._look(x, w, axes) if self._looks(training) else None
        return self._multiply(x, w, bias, product, training, axes, errors)

    def _multiply(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        product: Product,
        training: bool,
        axes: tuple[int, ...],
        errors: Errors | None,
    ) -> Tensor:
        """errors: what `_look` found; None: it did not look."""
        c = self.controller
        grad_bits = self.grad_bits if self.quantize_grad else None
        sensor = c.sensor if errors is not None and self._senses(training) else None
        if c.relaxation.interpolates and sensor is None:  # a mixture of two grids lies on neither, so the backend gets none
            none: Any = None
            call = Call(x, w, bias, none, none, product, grad_bits, c.grad_quantizer, self)
            grids = self._input_grid(x, training), self._weight_grid(w, axes)
            weight_bits, input_bits, *_ = self.bits.unbind()  # at once: one node of the graph
            return finish(call, _mix(x, input_bits, grids[0], c.straight[0]), _mix(w, weight_bits, grids[1], c.straight[1]))
        of_batch = (training or c.calibrating) and errors is None
        x_grid, w_grid = (self._grids_of_batch if of_batch else self._grids)(x, w, axes, training)
        call = Call(x, w, bias, x_grid, w_grid, product, grad_bits, c.grad_quantizer, self, c.straight)
        if transformed():
            return under_transform(call)
        if errors is None or sensor is None:
            return c.backend(call)
        forward = lambda a, b: product.forward(a, b, None)  # noqa: E731
        sense = Sense(forward, axes, product.channel_dim), self._given(sensor, errors)
        return sensor.watched(self.row, x, Simulate()(call._replace(sense=sense)))  # in floating point, whatever the backend

    def _given(self, sensor: DamageSensor, errors: Errors) -> Given:
        return Given(*errors, self.bits.detach(), self.controller.levels, *sensor.record.leaves[self.row])

    def call(
        self, product: TorchProduct, function: Callable, args: tuple, kwargs: dict, weight: int | None, training: bool
    ) -> Tensor:
        """`function(*args, **kwargs)`, a product met outside of layers, of quantized operands.

        Args:
            weight: which operand is the weight (0 or 1). None: neither is; both then have their own ranges in evaluation too,
                and the second one takes the weight bits.
        """
        pair = product.operands(args, kwargs)
        if pair is None or any(has_no_range(x) for x in pair):
            return function(*args, **kwargs)
        self._on_device_of(pair[0])
        axes = () if weight is None else product.channel_axes(weight, pair[weight], args)
        layer = product.as_layer_call(args, kwargs) if weight == 1 else None
        if layer is not None:
            operand, held, bias, of_layer = layer
            return self.product(operand, held, bias, of_layer, training, axes)
        met = _Met(product, function, args, kwargs, weight, axes)
        x, w = pair if weight != 0 else pair[::-1]
        errors = self._look(x, w, axes, own=weight is None) if self._looks(training) else None
        return self._call(met, x, w, training, errors)

    def _call(self, met: _Met, x: Tensor, w: Tensor, training: bool, errors: Errors | None) -> Tensor:
        c = self.controller
        if met.weight is None:
            x_grid, w_grid = self._own_grid(x), self._own_grid(w)
        else:
            x_grid, w_grid = self._input_grid(x, training), self._weight_grid(w, met.axes)
        x_q = self._rounded(x, self.bits[1], x_grid, c.straight[0])
        w_q = self._rounded(w, self.bits[0], w_grid, c.straight[1])
        sensor = c.sensor if errors is not None and self._senses(training) else None
        quantizer = c.grad_quantizer if self.quantize_grad else None
        if errors is None or sensor is None:
            return self._with_gradient(met.run(x_q, w_q), quantizer)
        added = lambda a, b: met.run(a, b) - met.run(torch.zeros_like(a), b)  # noqa: E731  (less what `addmm` adds)
        sense, given = Sense(added, met.axes, -1, weight=met.weight is not None, part=1, once=True), self._given(sensor, errors)
        x_q, w_q = sense.watch(given, x, x_q, w, w_q)
        y = self._with_gradient(met.run(x_q, w_q), quantizer)
        return sensor.watched(self.row, x, sense.watch_gradient(given, y, x_q, w_q, quantizer))  # g before it is rounded

    def _with_gradient(self, y: Tensor, quantizer: GradQuantizer | None) -> Tensor:
        return y if quantizer is None else quantize_gradient(y, self.grad_bits.amax(), quantizer)

    def rows(self, rows: Tensor) -> Tensor:
        """Rows of an embedding, each quantized by itself."""
        self._on_device_of(rows)
        flat = rows.reshape(-1, rows.shape[-1])
        grid = self._weight_grid(flat, (0,), learned=False)
        return self._rounded(flat, self.bits[0], grid, self.controller.straight[1]).view(rows.shape)

    def _rounded(self, x: Tensor, bits: Tensor, grid: GridAt, straight: bool) -> Tensor:
        if self.controller.relaxation.interpolates:
            return _mix(x, bits, grid, straight)
        return fake_quantize(x, grid(bits), straight)

    def _on_device_of(self, x: Tensor) -> Controller:
        self.seen = True
        if self.bits.device != x.device:
            self.controller.to(x.device)
        return self.controller

    # -- measuring ----------------------------------------------------------------------------------------------------

    def _looks(self, training: bool) -> bool:
        """Whether this call looks at samples of its operands: for the best bounds, or for what rounding costs."""
        c = self.controller
        return ((training and c.sensing) or (c.calibrating and c.searches_clips)) and not transformed()

    def _senses(self, training: bool) -> bool:
        c = self.controller
        return training and c.sensing and c.sensor is not None and torch.is_grad_enabled()

    def _look(self, x: Tensor, w: Tensor, axes: tuple, own: bool = False) -> tuple[Tensor, Tensor]:
        """(levels,) squared errors of both operands at each number of bits; bounds move. own: the operands have none."""
        c, move = self.controller, not recomputing()
        if move and c.sensor is not None:  # the order of the forward, which a recomputation need not keep
            c.sensor.record.met(self.row)
        x_stats, w_stats = measure(x.detach(), (), True), measure(w.detach(), axes, True)
        x_table = None if own else self._x_table(x_stats)
        w_table = None if own else self.w_bounds
        return (
            clipping.look(c.input_quantizer, x, x_stats, (), c.levels, x_table, move),
            clipping.look(c.weight_quantizer, w, w_stats, axes, c.levels, w_table, move),
        )

    # -- grids ------------------------------------------------------------------------------------------------------

    def _grids(self, x: Tensor, w: Tensor, axes: tuple[int, ...], training: bool) -> tuple[Grid, Grid]:
        """Of input and weight at the bits in force, differentiable in these."""
        x_grid_at, w_grid_at = self._input_grid(x, training), self._weight_grid(w, axes)
        weight_bits, input_bits, *_ = self.bits.unbind()  # at once: one node of the graph
        return x_grid_at(input_bits), w_grid_at(weight_bits)

    def _in_one_call(self, x: Tensor, w: Tensor, axes: tuple[int, ...], training: bool) -> tuple[Grid, Grid] | None:
        c = self.controller
        quantizers = c.weight_quantizer, c.input_quantizer
        return fused_grids(x, w, axes, self.bits, quantizers, self._next_ranges, MOMENTUM)

    _grids_of_batch = with_kernel(_in_one_call)(_grids)

    # -- and as functions of bits ---------------------------------------------------------------------------------

    def weight_grid(self, w: Tensor, *axes: int) -> Grid:
        """The grid of a weight at the bits in force; axes: of its output channels, where they are not a layer's."""
        return self._weight_grid(w, axes or (self.axis,))(self.bits[0].detach())

    def weight_bound(self) -> Tensor | None:
        """What the weight's quantizer takes as `clip` at the bits in force, of a weight that is no layer's."""
        return None if self.w_bounds is None else self._bound(self.w_bounds, self.bits[0].detach())

    def input_grid(self, call_site: int = 0) -> Grid:
        """The grid of the input at the bits in force, in evaluation; call_site: which call of the forward."""
        stats = Statistics(*(self.ranges[call_site, :3] / self.ranges[call_site, 3]).unbind())
        bits = self.bits[1].detach()
        clip = self._input_clip(bits, None if self.x_bounds is None else self.x_bounds[call_site])
        return self.controller.input_quantizer.grid(stats, bits, False, clip)

    def _weight_grid(self, w: Tensor, axes: tuple[int, ...], learned: bool = True) -> GridAt:
        quantizer = self.controller.weight_quantizer
        stats = measure(w.detach(), axes, quantizer.needs_spread)
        if learned and (table := self.w_bounds) is not None:
            return lambda bits: quantizer.grid(stats, bits, True, self._bound(table, bits))
        clip = None
        if learned and self.w_clip is not None:
            clip = self.w_clip.exp().view([-1 if d in axes else 1 for d in range(w.dim())])
        return lambda bits: quantizer.grid(stats, bits, True, clip)

    def _bound(self, table: Tensor, bits: Tensor) -> Tensor:
        return clipping.bound_at(table, bits, self.controller.levels)

    def _input_clip(self, bits: Tensor, table: Tensor | None) -> Tensor | None:
        if table is not None:
            return self._bound(table, bits)
        return None if self.x_clip is None else self.x_clip.exp().view(())

    @torch.no_grad()
    def _x_table(self, batch: Statistics) -> Tensor | None:
        """The bounds of the call whose turn it is; in a recomputation, of the call that had an input of the same range."""
        if self.x_bounds is None or len(self.x_bounds) == 1:
            return None if self.x_bounds is None else self.x_bounds[0]
        if self._ends is None or self._ends.device != batch.low.device:
            self._ends = torch.full((len(self.x_bounds), 2), torch.nan, dtype=torch.float32, device=batch.low.device)
        ends = torch.stack([batch.low, batch.high]).view(2).float()
        if not recomputing():
            self._ends[self.call_site] = ends
            return self.x_bounds[self.call_site]
        which = (self._ends == ends).all(1).int().argmax(0, keepdim=True)
        return self.x_bounds.index_select(0, which).squeeze(0)

    def _input_grid(self, x: Tensor, training: bool) -> GridAt:
        batch = measure(x.detach(), None, self.controller.input_quantizer.needs_spread)
        table = self._x_table(batch)
        stats = self._input_statistics(batch, training)
        live = training or self.controller.calibrating
        return lambda bits: self.controller.input_quantizer.grid(stats, bits, live, self._input_clip(bits, table))

    def _own_grid(self, x: Tensor) -> GridAt:
        quantizer = self.controller.input_quantizer
        stats = measure(x.detach(), None, quantizer.needs_spread)
        return lambda bits: quantizer.grid(stats, bits, True)

    @torch.no_grad()
    def _input_statistics(self, batch: Statistics, training: bool) -> Statistics:
        """The batch's own statistics in training, their moving averages in evaluation."""
        ranges = self._next_ranges()
        if ranges is None:
            return batch
        if training or self.controller.calibrating:
            clipping.moved_by_finite(ranges, torch.stack([*batch, torch.ones_like(batch.low)]).to(ranges.dtype), MOMENTUM)
            return batch
        known = ranges[3] > 0  # before any training there is no average: the batch's own range serves
        average = (ranges[:3] / ranges[3].clamp_min(1e-12)).to(batch.low.dtype)
        return Statistics(*torch.where(known, average, torch.stack(list(batch))).unbind())

    def _next_ranges(self) -> Tensor | None:
        """The moving averages (4,) of the call site whose turn it is; None: they are not to be touched."""
        if recomputing():  # a checkpointed forward runs again, perhaps in another order: it was recorded the first time
            return None
        ranges = self.ranges[self.call_site]
        if len(self.ranges) > 1:
            self.call_site = (self.call_site + 1) % len(self.ranges)
        return ranges


def _mix(x: Tensor, bits: Tensor, grid: GridAt, straight: bool) -> Tensor:
    """(1 - f) Q_k(x) + f Q_{k+1}(x) with k = floor(bits), f its fraction: dx/dbits is the difference of the two."""
    lower = torch.floor(bits.detach())
    below, above = (fake_quantize(x, grid(k), straight) for k in (lower, lower + 1))
    return torch.lerp(below, above, (bits - lower).to(x.dtype))
