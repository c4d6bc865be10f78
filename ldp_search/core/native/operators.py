"""The kernels as operators of torch, which torch.compile takes whole: its code calls them, and fuses what stands between.

While it traces, tensors have no memory, so that no kernel can be asked whether it serves them. An operation that has an
operator calls that one instead; when it runs, it is the operation as it is without torch.compile, kernel or formula. Outside of
compiled code nothing calls them: passing torch's dispatcher would cost as much as a kernel on a small layer.

Results are fresh tensors, none of which is another's view, and no argument changes, as torch asks of operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import kernels
from .library import FLOATS, ready, switched_off
from .shapes import along

NAMESPACE = "ldp_search"
_library = torch.library.Library(NAMESPACE, "DEF")
DRAWS = (torch.Tag.nondeterministic_seeded,)


class _Grid(NamedTuple):
    """As quantize's."""

    scale: Tensor
    offset: Tensor | None
    low: Tensor | None
    high: Tensor | None


GRID = "Tensor {0}scale, Tensor? {0}offset, Tensor? {0}low, Tensor? {0}high"
_GRID = GRID.format("")


def _there_are_kernels() -> bool:
    return ready()


_there_are_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]  # `assume_constant_result` loads the compiler


def exporting() -> bool:
    """Whether torch.export traces, rather than torch.compile.

    As torch's own flags say: torch.compiler.is_exporting() came with torch 2.7, and until 2.9 torch.compile takes it for true.
    In 2.6 what exports (with strict=False) sets the other flag, which torch.compile does not.
    """
    if hasattr(torch.compiler, "_is_exporting_flag"):
        return torch.compiler._is_exporting_flag
    return torch.compiler.is_exporting() if hasattr(torch.compiler, "is_exporting") else torch.compiler._is_compiling_flag


def _serve(*tensors: Tensor) -> bool:
    """Whether the kernels of a CPU may serve these, as far as can be told without their memory. An exported program gets none:
    who loads it may not have them.
    """
    if exporting() or switched_off() or not _there_are_kernels():
        return False
    return all(x.device.type == "cpu" and x.dtype in FLOATS for x in tensors)


def define(schema: str, run: Callable, fake: Callable, tags: tuple = ()) -> None:
    """An operator of CPUs. run: what it does. fake: takes the same, gives tensors like its results, of no values."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=(*tags, torch.Tag.needs_fixed_stride_order))
    _library.impl(name, run, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def _define(schema: str, run: Callable, fake: Callable, operation: Callable, tags: tuple = ()) -> None:
    """The same where `run` takes the operation first."""
    define(schema, partial(run, operation), fake, tags)


# -- ranges -------------------------------------------------------------------------------------------------------------


def _measure(x: Tensor, axes: tuple[int, ...], spread: bool):
    if not _serve(x):
        return None
    low, high, *mean = torch.ops.ldp_search.measure(x, axes, spread).unbind()
    return low, high, mean[0] if spread else high


def _define_measure(operation: Callable) -> None:
    def run(operation, x, axes, spread):
        return torch.stack(operation(x, tuple(axes), spread)[: 2 + spread])

    def fake(x, axes, spread):
        return x.new_empty([2 + spread, *along(x, axes)], dtype=torch.float32)

    _define("measure(Tensor x, int[] axes, bool spread) -> Tensor", run, fake, operation)


# -- rounding -----------------------------------------------------------------------------------------------------------


def _rounded(x: Tensor, grid, dtype: torch.dtype | None = None, after: Tensor | None = None):
    if not _serve(x) or (dtype is not None and dtype not in FLOATS):
        return None
    return torch.ops.ldp_search.rounded(x, *grid, dtype or torch.float32, after)


def _define_rounded(operation: Callable) -> None:
    def run(operation, x, scale, offset, low, high, dtype, after):
        return operation(x, _Grid(scale, offset, low, high), dtype)

    def fake(x, scale, offset, low, high, dtype, after):
        return torch.empty_like(x, dtype=dtype)

    _define(f"rounded(Tensor x, {_GRID}, ScalarType dtype, Tensor? after) -> Tensor", run, fake, operation)


def _grid_gradients(g: Tensor, x: Tensor, grid, need_grid: bool, x_q: Tensor | None):
    if not _serve(g, x):
        return None
    if grid.low is None:
        return g, (torch.ops.ldp_search.scale_gradient(g, x, grid.scale, grid.offset), None, None)
    g, found = torch.ops.ldp_search.grid_gradients(g, x, *grid, need_grid)
    return g, tuple(found.unbind()) if need_grid else (None, None, None)


def _define_grid_gradients(operation: Callable) -> None:
    def of_scale(operation, g, x, scale, offset):
        return operation(g, x, _Grid(scale, offset, None, None), True, None)[1][0]

    def of_all(operation, g, x, scale, offset, low, high, need_grid):
        g, found = operation(g.clone(), x, _Grid(scale, offset, low, high), need_grid, None)
        return g, torch.stack(found) if need_grid else scale.new_empty(0)

    def fake_of_all(g, x, scale, offset, low, high, need_grid):
        return torch.empty_like(g), scale.new_empty([3, *scale.shape] if need_grid else 0)

    _define(
        "scale_gradient(Tensor g, Tensor x, Tensor scale, Tensor? offset) -> Tensor",
        of_scale, lambda g, x, scale, offset: scale.new_empty(scale.shape), operation,
    )  # fmt: skip
    _define(f"grid_gradients(Tensor g, Tensor x, {_GRID}, bool need_grid) -> (Tensor, Tensor)", of_all, fake_of_all, operation)


# -- stochastic rounding ------------------------------------------------------------------------------------------------


def _gradient_values(g: Tensor, bits: Tensor, form: kernels.Form | None, quantizer):
    if form is None or not _serve(g) or bits.dtype != torch.float32:
        return None
    # Of its own, so that two roundings of one gradient are not taken for the same: each draws its noise.
    draw = torch.empty((), dtype=torch.int64, device=g.device)
    return torch.ops.ldp_search.gradient_values(g, bits, *form, draw)


def _define_gradient_values(operation: Callable) -> None:
    def run(operation, g, bits, kind, axes, draw):
        return operation(g, bits, (kind, tuple(axes)), None)

    def fake(g, bits, kind, axes, draw):
        return torch.empty_like(g)

    schema = "gradient_values(Tensor g, Tensor bits, int kind, int[] axes, Tensor draw) -> Tensor"
    _define(schema, run, fake, operation, DRAWS)


def _total_variances(g: Tensor, levels: Tensor, form: kernels.Form | None, quantizer):
    return None if form is None or not _serve(g) else torch.ops.ldp_search.total_variances(g, levels, *form)


def _define_total_variances(operation: Callable) -> None:
    def run(operation, g, levels, kind, axes):
        return operation(g, levels, (kind, tuple(axes)), None)

    def fake(g, levels, kind, axes):
        return torch.empty_like(levels)

    _define("total_variances(Tensor g, Tensor levels, int kind, int[] axes) -> Tensor", run, fake, operation)


_OF: dict[Callable, tuple[Callable, Callable]] = {
    kernels.measure: (_measure, _define_measure),
    kernels.rounded: (_rounded, _define_rounded),
    kernels.grid_gradients: (_grid_gradients, _define_grid_gradients),
    kernels.gradient_values: (_gradient_values, _define_gradient_values),
    kernels.total_variances: (_total_variances, _define_total_variances),
}
"""{kernel: (what is called in its place while compiling, the definition of its operator)}."""


def operator_of(kernel: Callable, operation: Callable) -> Callable[..., Any]:
    """What takes the kernel's arguments and calls the operator of this operation; None comes of what it does not serve."""
    if kernel not in _OF:
        return lambda *args, **kwargs: None
    call, define = _OF[kernel]
    define(operation)
    return call
