"""The kernels of `triton_passes.py`, in Triton: what one program does to its tile of a tensor.

A tensor is rows of `length` elements in tiles of (R, C), or, to be reduced, (outer, channels, inner) in tiles of (A, B); EACH
says what of a tile has a grid of its own. Values pass through fp32.

* Rounding is bit for bit the formula: true division, half to even, and no product fused with a sum (`enable_fp_fusion`).
* Minimum and maximum are taken over the bits of the floats, mapped to integers of the same order: exact in any order, and a
  NaN shows as the largest or smallest integer, which the result tells.
* Sums are of partial sums, one a program, added in a second launch: no atomics, so a result repeats.
* Noise is Philox of 7 rounds (Salmon et al. 2011: the fewest that pass every test) from a seed in device memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

ONE, ROW, COLUMN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # what of a tile has a grid of its own
# What is made of a range: nothing, a quantizer's grid, or that of a gradient; the odd ones are affine.
RANGE, MINMAX, SYMMETRIC, GRAD_AFFINE, GRAD_SYMMETRIC = (tl.constexpr(n) for n in range(5))
LOWEST, HIGHEST = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)
INFINITY_KEY = tl.constexpr(0x7F800000)
ROUNDS = tl.constexpr(7)
LN2 = tl.constexpr(0.6931471805599453)
SMALLEST, TINY = tl.constexpr(1e-30), tl.constexpr(1.1754943508222875e-38)  # scales: SMALLEST_SCALE, and that of gradients


# -- arithmetic of one tile ---------------------------------------------------------------------------------------------------


@triton.jit
def _key(v):
    """An int32 of the same order as the float."""
    bits = v.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(low, high, key):
    """The float of `key`; NaN where the range (low, high) of keys holds one."""
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    nan = (low < -INFINITY_KEY - 1) | (high > INFINITY_KEY)
    return tl.where(nan, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def _round_half_even(v):
    """By adding 2^23, after which nothing is left below the point; the sign of zero stays. NaN and infinity pass."""
    size = tl.abs(v)
    size = tl.where(size < 8388608.0, (size + 8388608.0) - 8388608.0, size)
    sign = v.to(tl.int32, bitcast=True) & LOWEST
    return (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _of(pointer, row, col, row_mask, col_mask, channels, EACH: tl.constexpr):
    """A parameter of the grid, broadcastable over the tile of these rows and columns."""
    if EACH == ONE:
        return tl.load(pointer)
    elif EACH == ROW:
        return tl.load(pointer + row % channels, mask=row_mask, other=1.0)[:, None]
    else:
        return tl.load(pointer + col, mask=col_mask, other=1.0)[None, :]


# -- rounding -----------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["scale", "offset", "low", "high", "rows", "channels", "blocks"])
def round_kernel(
    x, y, scale, offset, low, high, rows, length, channels, blocks, EACH: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """y = the values of the grid next to x: rows of `length` elements, in tiles of (R, C), `blocks` of them a row."""
    row = (tl.program_id(0) // blocks) * R + tl.arange(0, R)
    col = (tl.program_id(0) % blocks) * C + tl.arange(0, C)
    row_mask, col_mask = row < rows, col < length
    mask = row_mask[:, None] & col_mask[None, :]
    at = row[:, None] * length + col[None, :]
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if low is not None:
        v = tl.minimum(v, _of(high, row, col, row_mask, col_mask, channels, EACH), propagate_nan=tl.PropagateNan.ALL)
        v = tl.maximum(v, _of(low, row, col, row_mask, col_mask, channels, EACH), propagate_nan=tl.PropagateNan.ALL)
    s = _of(scale, row, col, row_mask, col_mask, channels, EACH)
    if offset is None:
        v = _round_half_even(tl.div_rn(v, s)) * s
    else:
        o = _of(offset, row, col, row_mask, col_mask, channels, EACH)
        v = _round_half_even(tl.div_rn(v - o, s)) * s + o
    tl.store(y + at, v.to(y.dtype.element_ty), mask=mask)


# -- stochastic rounding ------------------------------------------------------------------------------------------------------


@triton.jit
def _uniform(bits):
    """In [0, 1), of the upper 24 bits."""
    return (bits >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _up_or_down(x, y, noise, scale, offset, top, row, col, rows, length, channels, EACH: tl.constexpr):
    """Rounds one tile; returns s^2 f (1 - f) of its elements, the variance of what is drawn."""
    row_mask, col_mask = row < rows, col < length
    mask = row_mask[:, None] & col_mask[None, :]
    at = row[:, None] * length + col[None, :]
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    s = _of(scale, row, col, row_mask, col_mask, channels, EACH)
    if offset is not None:
        o = _of(offset, row, col, row_mask, col_mask, channels, EACH)
        v = v - o
    v = tl.div_rn(v, s)
    whole = tl.floor(v)
    f = v - whole
    code = tl.minimum(tl.where(f > noise, whole + 1.0, whole), top, propagate_nan=tl.PropagateNan.ALL)
    if offset is None:
        v = tl.maximum(code, -top, propagate_nan=tl.PropagateNan.ALL) * s
    else:
        v = tl.maximum(code, 0.0, propagate_nan=tl.PropagateNan.ALL) * s + o
    tl.store(y + at, v.to(y.dtype.element_ty), mask=mask)
    return tl.where(mask, s * s * (f * (1.0 - f)), 0.0)


@triton.jit(do_not_specialize=["scale", "offset", "most", "rows", "channels", "blocks"])
def stochastic_kernel(
    x, y, seed, scale, offset, most, variance, rows, length, channels, blocks, EACH: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """y = x on the grid, up with the probability of the fraction: four tiles a program, since one draw is four numbers.

    They lie side by side, or one below the other where each column has its grid. variance: sums over what a program sees,
    (rows, blocks) or (programs down, length); None: not asked for.
    """
    program = tl.program_id(0)
    down, right = program // blocks, program % blocks
    lane = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    zero = lane * 0
    na, nb, nc, nd = tl.philox(tl.load(seed), lane, zero + program, zero, zero, ROUNDS)
    top = tl.load(most)
    if EACH == COLUMN:
        row, col = down * (4 * R) + tl.arange(0, R), right * C + tl.arange(0, C)
    else:
        row, col = down * R + tl.arange(0, R), right * (4 * C) + tl.arange(0, C)
    step_down: tl.constexpr = R if EACH == COLUMN else 0
    step_right: tl.constexpr = 0 if EACH == COLUMN else C
    spread = _up_or_down(x, y, _uniform(na), scale, offset, top, row, col, rows, length, channels, EACH)
    row, col = row + step_down, col + step_right
    spread += _up_or_down(x, y, _uniform(nb), scale, offset, top, row, col, rows, length, channels, EACH)
    row, col = row + step_down, col + step_right
    spread += _up_or_down(x, y, _uniform(nc), scale, offset, top, row, col, rows, length, channels, EACH)
    row, col = row + step_down, col + step_right
    spread += _up_or_down(x, y, _uniform(nd), scale, offset, top, row, col, rows, length, channels, EACH)
    if variance is not None:
        if EACH == COLUMN:
            tl.store(variance + down * length + col, tl.sum(spread, axis=0), mask=col < length)
        else:
            tl.store(variance + row * blocks + right, tl.sum(spread, axis=1), mask=row < rows)


# -- reductions: a program reads one channel, or B channels that run along the elements, or each `splits`th tile of it -------


@triton.jit
def _power_of_two(b):
    """2^b, exact where b is whole."""
    whole = tl.floor(b)
    return ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True) * tl.exp2(b - whole)


@triton.jit
def _write_grid(out, at, mask, channels, low, high, bits, FORM: tl.constexpr):
    """(3, channels) of scale, minimum, and dscale/dbits, or of a gradient the largest code: the quantizers in closed form."""
    levels = _power_of_two(bits) + tl.zeros_like(low)
    if FORM == SYMMETRIC:
        levels = tl.where(low < 0.0, 0.5 * levels, levels)
    if FORM == GRAD_SYMMETRIC:
        levels = 0.5 * levels
    span = tl.maximum(-low, high, propagate_nan=tl.PropagateNan.ALL)
    if FORM % 2 == 1:
        span = high - low
    value = tl.div_rn(span, levels - 1.0)
    third, smallest = levels - 1.0, TINY
    if FORM < GRAD_AFFINE:
        third, smallest = -LN2 * tl.div_rn(levels, levels - 1.0) * value, SMALLEST
        third = tl.where(value < SMALLEST, 0.0, third)
    tl.store(out + at, tl.maximum(value, smallest, propagate_nan=tl.PropagateNan.ALL), mask=mask)
    tl.store(out + channels + at, low, mask=mask)
    tl.store(out + 2 * channels + at, third, mask=mask)


@triton.jit
def _move(average, now, momentum, mask):
    before = tl.load(average, mask=mask)
    tl.store(average, before + momentum * (now - before), mask=mask)


@triton.jit
def _finish(
    out, at, mask, channels, low, high, total, count, bits, which, averages, momentum, SPREAD: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """What is made of channels' ranges, given as keys."""
    lowest, highest = _value(low, high, low), _value(low, high, high)
    if FORM == RANGE:
        tl.store(out + at, lowest, mask=mask)
        tl.store(out + channels + at, highest, mask=mask)
        if SPREAD:
            tl.store(out + 2 * channels + at, tl.div_rn(total, count), mask=mask)
    else:
        _write_grid(out, at, mask, channels, lowest, highest, tl.load(bits + which), FORM)
        if averages is not None:
            mask = mask & (tl.abs(lowest) + tl.abs(highest) < float("inf"))  # one broken batch must not stay in an average
            _move(averages + at, lowest, momentum, mask)
            _move(averages + 1 + at, highest, momentum, mask)
            _move(averages + 2 + at, highest, momentum, mask)
            _move(averages + 3 + at, tl.zeros_like(highest) + 1.0, momentum, mask)


@triton.jit(do_not_specialize=["outer", "channels", "splits", "tiles", "wide", "bits", "which"])
def range_kernel(
    x, out, parts, outer, channels, inner, splits, tiles, wide, count, bits, which, averages, momentum, SPREAD: tl.constexpr,
    FORM: tl.constexpr, EACH: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """out: (2 or 3, channels) of minimum, maximum, mean magnitude, or what `_write_grid` makes of them.

    parts: (3, splits, channels) instead, to be folded. tiles: (A, B) each, of A outer positions, `wide` of them next to each
    other. count: elements of a channel, a float. bits[which]: of the grid. averages: (4,) of minimum, maximum (twice) and mass,
    moved by `momentum`.
    """
    unit, split = tl.program_id(0), tl.program_id(1)
    first = unit * B if EACH == COLUMN else unit * inner
    limit = channels - first if EACH == COLUMN else inner
    low, high = tl.full([A, B], HIGHEST, tl.int32), tl.full([A, B], LOWEST, tl.int32)
    total = tl.zeros([A, B], tl.float32)
    for tile in range(split, tiles, splits):
        row, col = (tile // wide) * A + tl.arange(0, A), (tile % wide) * B + tl.arange(0, B)
        mask = (row < outer)[:, None] & (col < limit)[None, :]
        v = tl.load(x + (first + row[:, None] * (channels * inner) + col[None, :]), mask=mask, other=0.0).to(tl.float32)
        low = tl.minimum(low, tl.where(mask, _key(v), HIGHEST))
        high = tl.maximum(high, tl.where(mask, _key(v), LOWEST))
        if SPREAD:
            total += tl.abs(v)
    low, high, total = tl.min(low, axis=0), tl.max(high, axis=0), tl.sum(total, axis=0)
    at = first + tl.arange(0, B)
    if EACH != COLUMN:
        low, high, total = tl.min(low, axis=0), tl.max(high, axis=0), tl.sum(total, axis=0)
        at = unit
    mask = at < channels
    if parts is None:
        _finish(out, at, mask, channels, low, high, total, count, bits, which, averages, momentum, SPREAD, FORM)
    else:
        at = split * channels + at
        tl.store(parts + at, low, mask=mask)
        tl.store(parts + splits * channels + at, high, mask=mask)
        if SPREAD:
            tl.store(parts + 2 * splits * channels + at, total.to(tl.int32, bitcast=True), mask=mask)


@triton.jit(do_not_specialize=["channels", "splits", "bits", "which"])
def fold_range_kernel(
    parts, out, channels, splits, count, bits, which, averages, momentum, SPREAD: tl.constexpr, FORM: tl.constexpr,
    S: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """`out` of range_kernel from its parts."""
    split, col = tl.arange(0, S), tl.program_id(0) * C + tl.arange(0, C)
    mask = (split < splits)[:, None] & (col < channels)[None, :]
    at = split[:, None] * channels + col[None, :]
    low = tl.min(tl.load(parts + at, mask=mask, other=HIGHEST), axis=0)
    high = tl.max(tl.load(parts + splits * channels + at, mask=mask, other=LOWEST), axis=0)
    total = tl.zeros([C], tl.float32)
    if SPREAD:
        sums = tl.load(parts + 2 * splits * channels + at, mask=mask, other=0)
        total = tl.sum(sums.to(tl.float32, bitcast=True), axis=0)
    _finish(out, col, col < channels, channels, low, high, total, count, bits, which, averages, momentum, SPREAD, FORM)


@triton.jit
def _of_unit(pointer, unit, col, limit, EACH: tl.constexpr):
    """A parameter of the grid for what a reducing program reads: one value, or one a column."""
    if EACH == COLUMN:
        return tl.load(pointer + col, mask=limit, other=1.0)[None, :]
    else:
        return tl.load(pointer + unit)


@triton.jit(do_not_specialize=["scale", "offset", "low", "high", "outer", "channels", "splits", "tiles", "wide"])
def grid_gradients_kernel(
    x, g, scale, offset, low, high, out, outer, channels, inner, splits, tiles, wide, EACH: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """out: (3, splits, channels) of dL/dscale, dL/dlow, dL/dhigh, the first alone where low is None; else g is 0 outside."""
    unit, split = tl.program_id(0), tl.program_id(1)
    first = unit * B if EACH == COLUMN else unit * inner
    limit = channels - first if EACH == COLUMN else inner
    at = first + tl.arange(0, B)
    s = _of_unit(scale, unit, at, at < channels, EACH)
    total = tl.zeros([A, B], tl.float32)
    below, above = total, total
    for tile in range(split, tiles, splits):
        row, col = (tile // wide) * A + tl.arange(0, A), (tile % wide) * B + tl.arange(0, B)
        mask = (row < outer)[:, None] & (col < limit)[None, :]
        place = first + row[:, None] * (channels * inner) + col[None, :]
        v = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(g + place, mask=mask, other=0.0).to(tl.float32)
        if low is not None:
            too_low = v < _of_unit(low, unit, at, at < channels, EACH)
            too_high = v > _of_unit(high, unit, at, at < channels, EACH)
            below += tl.where(too_low, d, 0.0)
            above += tl.where(too_high, d, 0.0)
            d = tl.where(too_low | too_high, 0.0, d)
            tl.store(g + place, d.to(g.dtype.element_ty), mask=mask)
        if offset is None:
            q = _round_half_even(tl.div_rn(v, s)) * s
        else:
            o = _of_unit(offset, unit, at, at < channels, EACH)
            q = _round_half_even(tl.div_rn(v - o, s)) * s + o
        total += d * (q - v)
    total = tl.sum(tl.div_rn(total, s), axis=0)
    below, above = tl.sum(below, axis=0), tl.sum(above, axis=0)
    if EACH != COLUMN:
        total, below, above, at = tl.sum(total, axis=0), tl.sum(below, axis=0), tl.sum(above, axis=0), unit
    mask, part = at < channels, split * channels + at
    tl.store(out + part, total, mask=mask)
    if low is not None:
        tl.store(out + splits * channels + part, below, mask=mask)
        tl.store(out + 2 * splits * channels + part, above, mask=mask)


@triton.jit(do_not_specialize=["w", "w_slope", "x", "x_slope", "channels"])
def bits_gradient_kernel(w, w_slope, x, x_slope, out, channels, C: tl.constexpr):
    """out: dL/dbits (weight, input, gradient) from dL/dscale and dscale/dbits of both operands; None: zero."""
    of_w, of_x = 0.0, 0.0
    if w is not None:
        total = tl.zeros([C], tl.float32)
        for start in range(0, channels, C):
            at = start + tl.arange(0, C)
            total += tl.load(w + at, mask=at < channels, other=0.0) * tl.load(w_slope + at, mask=at < channels, other=0.0)
        of_w = tl.sum(total, axis=0)
    if x is not None:
        of_x = tl.load(x) * tl.load(x_slope)
    tl.store(out, of_w)
    tl.store(out + 1, of_x)
    tl.store(out + 2, 0.0)
