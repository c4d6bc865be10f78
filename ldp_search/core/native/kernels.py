"""The kernels of what runs on CPUs and on CUDA: for each formula the one that serves a call, C or Triton; None: none does.

Each takes the arguments of its formula, and is named after it, as `with_kernel` wants.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cuda
from . import gradients as gradients_on_cpu
from . import grids as grids_on_cpu
from . import passes as passes_on_cpu
from . import sensing as sensing_on_cpu
from .library import takes
from .shapes import along, axes_of, grid_shape, in_order_of, shape_along, shape_of_blocks, shape_of_slices

AFFINE, SYMMETRIC, BLOCKS = 0, 1, 2
"""Forms of a gradient's grid: from the minimum to the maximum of the tensor; symmetric, with a scale a slice, or a block."""
Form = tuple[int, tuple[int, ...]]
"""One of these; the dimensions along which the scale differs. Of blocks: their first and last dimension, and their size."""


def _serving(on_cpu: ModuleType, *tensors: Tensor, parameters=()) -> Any:
    """Of a CPU's and CUDA's, the module of kernels that serves these tensors (of the same memory layout)."""
    return on_cpu if takes(*tensors) else cuda.passes(*tensors, parameters=parameters)


def measure(x: Tensor, axes: tuple[int, ...], spread: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """Kernel of `grid._measured`."""
    passes = _serving(passes_on_cpu, x)
    if passes is None or (shape := shape_along(x, axes)) is None:
        return None
    low, high, *mean = passes.measure(x, shape, spread).view(-1, *along(x, axes)).unbind()
    return low, high, mean[0] if spread else high


def rounded(x: Tensor, grid, dtype: torch.dtype | None = None, after: Tensor | None = None) -> Tensor | None:
    """Kernel of `fake_quantize.rounded`."""
    passes, dtype = _serving(passes_on_cpu, x, parameters=grid), dtype or torch.float32
    if passes is None or dtype not in passes.FLOATS:
        return None
    shape = grid_shape(x, grid)
    return None if shape is None else passes.rounded(x, grid, shape, dtype)


def grid_gradients(g: Tensor, x: Tensor, grid, need_grid: bool, x_q: Tensor | None) -> tuple[Tensor, tuple] | None:
    """Kernel of `fake_quantize._backward`."""
    passes = _serving(passes_on_cpu, x, g, parameters=grid)
    if passes is None or (shape := grid_shape(x, grid)) is None:
        return None
    found = passes.grid_gradients(g, x, grid, shape)
    return g, (None, None, None) if not need_grid else (found, None, None) if grid.low is None else tuple(found.unbind())


def grids(x: Tensor, w: Tensor, axes: tuple[int, ...], bits: Tensor) -> tuple | None:
    """(`grid` and `bits_gradient` that serve both operands, shape of w with its channels along `axes`)."""
    if takes(x) and takes(w):
        serving: Any = grids_on_cpu if grids_on_cpu.reads(bits) else None
    else:
        serving = cuda.passes(x, parameters=(bits,)) and cuda.passes(w, parameters=(bits,))
    if serving is None or (shape := shape_along(w, axes)) is None:
        return None
    return serving.grid, serving.bits_gradient, shape


# -- stochastic rounding ------------------------------------------------------------------------------------------------


def gradient_values(g: Tensor, bits: Tensor, form: Form | None, quantizer) -> Tensor | None:
    """Kernel of `gradient_quantizers._values`: on a grid that the kernel finds itself."""
    if form is not None and form[0] == BLOCKS:
        return _in_blocks(g, bits, g.dtype, *form[1])
    found = _on_own_grid(g, bits, form, g.dtype)
    return None if found is None else found[0]


def gradient_codes(g: Tensor, bits: Tensor, form: Form | None, quantizer) -> tuple[Tensor, Tensor, Tensor] | None:
    """Kernel of `gradient_quantizers._codes`."""
    return _on_own_grid(g, bits, form, torch.int8)


def block_codes(g: Tensor, bits: Tensor, form: Form | None, quantizer) -> tuple[Tensor, Tensor] | None:
    """Kernel of `gradient_quantizers._block_codes`: of the CPU alone."""
    if form is None or not (takes(g) and grids_on_cpu.reads(bits)):
        return None
    first, last, size = form[1]
    if (shape := shape_of_blocks(g, first, last)) is None:
        return None
    values, scales = gradients_on_cpu.block_codes(g, shape, size, bits, gradients_on_cpu.draw_seed(g.device))
    return values, in_order_of(g.flatten(first, last), scales, first)


def total_variances(g: Tensor, levels: Tensor, form: Form | None, quantizer) -> Tensor | None:
    """Kernel of `gradient_quantizers._total_variances`: of symmetric grids whose slices or blocks lie in order, on the CPU."""
    if form is None or form[0] == AFFINE or not (takes(g) and grids_on_cpu.reads(levels) and levels.is_contiguous()):
        return None
    if len(levels) > sensing_on_cpu.LEVELS:
        return None
    if form[0] == BLOCKS:
        first, last, size = form[1]
        shape = shape_of_blocks(g, first, last)
    else:  # a slice of consecutive values is one block of them all
        shape = shape_of_slices(g, form[1])
        shape = None if shape is None or shape[0] > 1 or shape[1] == g.numel() > 1 else (shape[1], shape[2], 1)
        size = 0 if shape is None else shape[1]
    return None if shape is None else sensing_on_cpu.total_variances(g, shape, size, levels)


def _on_own_grid(g: Tensor, bits: Tensor, form: Form | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
    """(rounded g, scale, offset)."""
    if form is None or form[0] == BLOCKS:
        return None
    kernels = _serving(gradients_on_cpu, g, parameters=(bits,))
    if not _knows(kernels, bits, dtype):
        return None
    kind, axes = form
    if kind == AFFINE:
        values, grid = kernels.affine(g, bits, kernels.draw_seed(g.device), dtype)
        return values, *grid.unbind()
    if (shape := shape_of_slices(g, axes)) is None:
        return None
    values, scales = kernels.symmetric(g, shape, bits, kernels.draw_seed(g.device), dtype)
    scale = scales.view(along(g, axes))
    return values, scale, scale.new_zeros(())


def _in_blocks(g: Tensor, bits: Tensor, dtype: torch.dtype, first: int, last: int, size: int) -> Tensor | None:
    """g with a scale for each `size` values along its dimensions from `first` to `last`."""
    kernels = _serving(gradients_on_cpu, g, parameters=(bits,))
    if not _knows(kernels, bits, dtype) or (shape := shape_of_blocks(g, first, last)) is None:
        return None
    return kernels.blocks(g, shape, size, bits, kernels.draw_seed(g.device), dtype)


def _knows(kernels: Any, bits: Tensor, dtype: torch.dtype) -> bool:
    """Whether these kernels of gradients read such bits and give such results: those of CUDA give values, no codes."""
    if kernels is gradients_on_cpu:
        return grids_on_cpu.reads(bits)
    return kernels is not None and dtype in kernels.FLOATS and bits.dtype == torch.float32


def on_grid(g: Tensor, grid) -> Tensor | None:
    """Kernel of `gradient_quantizers._on_grid`: on CUDA alone."""
    passes = cuda.passes(g, parameters=grid)
    if passes is None or (shape := _slices_of(g, grid)) is None:
        return None
    return passes.stochastic(g, *grid, passes.draw_seed(g.device), g.dtype, shape)


def _slices_of(g: Tensor, grid) -> tuple[int, int, int] | None:
    """The shape of a gradient with this grid."""
    plain = all(p is None or (p.dtype == torch.float32 and p.is_contiguous()) for p in grid)
    if not plain or (grid.offset is not None and grid.offset.shape != grid.scale.shape):
        return None
    axes = axes_of(grid.scale, g)
    return None if axes is None else shape_of_slices(g, axes)
