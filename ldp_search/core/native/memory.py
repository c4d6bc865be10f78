"""The memory that C may see: real, whole, on the CPU. Buffers for it are made here, and addresses are handed out here alone.

A tensor's class, device and type say little about its memory: a wrapped or fake one has none, a sharded one may have lost it,
a lazily negated one holds other values than it shows. And a buffer made without a type and a device follows the process's
defaults, not the kernel that writes to it. So `empty` names both, and `address` refuses what a kernel would take for
something else: a mistake is an error, never memory overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
PLAIN = (Tensor, nn.Parameter)
T = TypeVar("T")


def recomputing() -> bool:
    """Whether this forward runs within a backward, as activation checkpointing does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, ...) is under way, whose tensors have no memory of their own."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def intercepted() -> bool:
    """Whether what is computed now may be something else than it seems: compiled, traced, transformed by torch.func, or seen by
    a mode that may put tensors of its own in the place of fresh ones (fake tensors, counters).
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def apart(function: Callable[..., T], *args: Any) -> T:
    """The result of a function that finds out what holds for the whole process: run in a thread of its own, which no mode,
    transform or trace of the caller's reaches.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()


def is_real(x: Tensor) -> bool:
    """Whether the values that a tensor shows are those that lie in CPU memory at its address; outside of transforms."""
    return (
        type(x) in PLAIN and x.is_cpu and x.layout is torch.strided and not x.is_nested and not x.is_neg() and x.data_ptr() != 0
    )


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, in whatever order of the dimensions."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def empty(shape, dtype: torch.dtype) -> Tensor:
    """A buffer for a kernel to write to, whatever the defaults of the process are."""
    return torch.empty(shape, dtype=dtype, device=CPU)


def address(x: Tensor | None, *dtypes: torch.dtype) -> int | None:
    """Where a dense tensor of one of these types lies; None for None.

    Raises:
        TypeError: its memory is not what a kernel would take it for.
    """
    if x is None:
        return None
    if x.dtype not in dtypes or not is_real(x) or not is_dense(x):
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(
            f"A kernel takes dense CPU memory of {wanted}; received {type(x).__name__} of {x.dtype} on {x.device} with layout "
            f"{x.layout}. Make it with an explicit dtype and device, or let the formulas serve "
            "(ldp_search.core.native.disabled())."
        )
    return x.data_ptr()
