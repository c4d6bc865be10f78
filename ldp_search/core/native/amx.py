"""The kernel of `amx.c`: products of int8 matrices on the tiles of processors that have AMX, whatever their strides.

`torch._int_mm` asks oneDNN, whose 32-bit results cost it five times as much where they are many (docs/int8.md).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .library import INT32, LONG, POINTER, Kernel, serves
from .memory import empty

_HAS_TILES = Kernel("ldp8_has_tiles", INT32, threads=False)
_MULTIPLY = Kernel("ldp8_multiply", POINTER, LONG, LONG, POINTER, LONG, LONG, LONG, LONG, LONG, INT32)


@cache
def has_tiles() -> bool:
    """Whether the processor has them, the compiler knows them, and the system lets this process use them."""
    found = empty((), torch.int32)
    _HAS_TILES(1, found)
    return bool(found.item())


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor | None:
    """Kernel of `int8.matmul.product`: a @ b in int32. Sums over more than there are rows are faster by oneDNN."""
    if a.shape[1] > a.shape[0] or not (a.dtype == b.dtype == torch.int8 and serves(a) and serves(b) and has_tiles()):
        return None
    return multiply(a, b, out)


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a (rows, depth) @ b (depth, columns) of int8 on tiles, whatever their strides: (rows, columns) int32, in `out`."""
    (rows, depth), columns = a.shape, b.shape[1]
    out = empty((rows, columns), torch.int32) if out is None else out
    _MULTIPLY(rows * columns, a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride(), rows, depth, columns, out)
    return out
