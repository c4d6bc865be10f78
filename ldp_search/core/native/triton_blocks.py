"""The kernel of gradients with a scale for each block of neighbours, in Triton: range, grid and rounding in one read.

A block lies whole in a program's tile, so that its largest magnitude is found where its values are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import ROUNDS, TINY, _power_of_two, _uniform


@triton.jit(do_not_specialize=["bits", "outer", "length", "inner", "size", "blocks", "wide"])
def blocks_kernel(
    x, y, seed, bits, outer, length, inner, size, blocks, wide, ACROSS: tl.constexpr, P: tl.constexpr, S: tl.constexpr
):  # fmt: skip
    """y = x, (outer, length, inner), on symmetric grids of `size` values along `length`, `blocks` of them.

    ACROSS: a tile is one block of P neighbours of the inner dimension, of `wide` tiles; else inner is 1 and it is P blocks.
    """
    program, within = tl.program_id(0), tl.arange(0, S)
    if ACROSS:
        unit, col = program // wide, (program % wide) * P + tl.arange(0, P)
        first = (unit % blocks) * size
        mask = ((within < size) & (first + within < length))[:, None] & (col < inner)[None, :]
        at = ((unit // blocks) * length + first + within)[:, None] * inner + col[None, :]
        lane = within[:, None] * P + tl.arange(0, P)[None, :]
    else:
        unit = program * P + tl.arange(0, P)
        first = (unit % blocks) * size
        mask = (within < size)[None, :] & (first[:, None] + within[None, :] < length) & (unit < outer * blocks)[:, None]
        at = ((unit // blocks) * length + first)[:, None] + within[None, :]
        lane = tl.arange(0, P)[:, None] * S + within[None, :]
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    # Bits of a magnitude are integers of the same order, a NaN above them all.
    size_of = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest = tl.max(size_of, axis=0 if ACROSS else 1).to(tl.float32, bitcast=True)
    top = 0.5 * _power_of_two(tl.load(bits)) - 1.0
    scale = tl.maximum(tl.div_rn(largest, top + tl.zeros_like(largest)), TINY, propagate_nan=tl.PropagateNan.ALL)
    scale = scale[None, :] if ACROSS else scale[:, None]
    zero = lane * 0
    noise, _, _, _ = tl.philox(tl.load(seed), lane, zero + program, zero, zero, ROUNDS)
    v = tl.div_rn(v, scale)
    whole = tl.floor(v)
    code = tl.where(v - whole > _uniform(noise), whole + 1.0, whole)
    code = tl.minimum(code, top, propagate_nan=tl.PropagateNan.ALL)
    code = tl.maximum(code, -top, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + at, (code * scale).to(y.dtype.element_ty), mask=mask)
