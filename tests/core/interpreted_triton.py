"""The Triton kernels, interpreted on the CPU, against the formulas: what `test_triton.py` runs in a process of its own.

No device takes part. TRITON_INTERPRET=1 makes triton run each program of a kernel with numpy, one after the other: it shows
that indices, masks and arithmetic are right, and nothing about speed or about what a compiler makes of the kernels.
"""

import itertools
import os

import layouts
import numpy as np
import pytest
import torch
import triton.language as tl
from torch import nn
from triton.runtime import interpreter

import ldp_search
from ldp_search.core import native
from ldp_search.core.native import cuda
from ldp_search.core.native import kernels as seam
from ldp_search.core.native import triton_passes as passes
from ldp_search.core.native.library import switched_off
from ldp_search.core.native.shapes import shape_along
from ldp_search.core.quantize import fake_quantize as fq
from ldp_search.core.quantize.gradient_quantizers import Blocks, GradGrid, GradQuantizer
from ldp_search.core.quantize.grid import Grid, measure
from ldp_search.core.quantize.quantizers import MinMax, Symmetric, form
from ldp_search.core.registry import build as component
from ldp_search.core.registry import names

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("These tests interpret the kernels: run them with TRITON_INTERPRET=1, as test_triton.py does.")

LAYOUTS = layouts.LAYOUTS | {  # name: (tensor, axis of its channels or None)
    "blocks and a bit": (lambda: torch.randn(1030), None),
    "long channels": (lambda: torch.randn(2, 515), 0),
    "channels innermost": (lambda: torch.randn(11, 70), 1),
}
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
DTYPE = pytest.mark.parametrize("dtype", passes.FLOATS, ids=["fp32", "bf16", "fp16"])
HALVES = [(layout, dtype) for layout in ("whole", "channels last") for dtype in passes.FLOATS[1:]]
LAYOUT_AND_DTYPE = pytest.mark.parametrize(("layout", "dtype"), [*((name, torch.float32) for name in LAYOUTS), *HALVES])


@pytest.fixture(autouse=True)
def bf16_rounds_as_a_device_does(monkeypatch):
    """The interpreter cuts bits off where a device, asked by the same operation, rounds half to even (cvt.rn.bf16)."""
    convert = interpreter._convert_float

    def converted(data, source, target, mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", converted)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small tensors then take many programs, and a reduction its second launch."""
    with monkeypatch.context() as patch:
        for name, value in {"TILE": 256, "SUM_TILE": 64, "ALONE": 2, "SPLITS": 7}.items():
            patch.setattr(passes, name, value)
        yield patch


@pytest.fixture
def chosen(monkeypatch):
    """The seam hands every tensor to the Triton passes; returns the names of those that ran."""
    ran = []

    def by_name(name):
        f = getattr(passes, name)
        return lambda *arguments: (ran.append(name), f(*arguments))[1]

    for name in ("measure", "rounded", "stochastic", "grid_gradients", "grid", "blocks"):
        monkeypatch.setattr(passes, name, by_name(name))
    monkeypatch.setattr(cuda, "passes", lambda *tensors, parameters=(): None if switched_off() else passes)
    monkeypatch.setattr(seam, "takes", lambda *tensors: False)
    return ran


def tensor(layout: str, dtype=torch.float32):
    """(x, axes of its channels, shape as the kernels see it)."""
    make, axis = LAYOUTS[layout]
    torch.manual_seed(0)
    x, axes = make().to(dtype), () if axis is None else (axis,)
    return x, axes, shape_along(x, axes)


def formula(f):
    with native.disabled():
        return f()


def grids(x, axes, shrink: float):
    """Every form of grid of x: with and without offset, with and without a range that clips at `shrink` of x's own."""
    stats = formula(lambda: measure(x, axes))
    for offset, clip in itertools.product((False, True), repeat=2):
        low, high = (stats.low * shrink, stats.high * shrink) if clip else (stats.low, stats.high)
        scale = ((high - low) / 15).clamp_min(1e-30)
        yield Grid(scale, low.clone() if offset else None, *((low, high) if clip else (None, None)))


@LAYOUT_AND_DTYPE
def test_ranges_are_those_of_the_formula(layout, dtype):
    x, axes, shape = tensor(layout, dtype)
    low, high, mean = passes.measure(x, shape, True)
    want = formula(lambda: measure(x, axes, True))
    assert torch.equal(low, want.low.flatten()) and torch.equal(high, want.high.flatten())
    torch.testing.assert_close(mean, want.spread.flatten(), rtol=1e-5, atol=1e-7)
    assert torch.equal(passes.measure(x, shape, False), torch.stack([low, high]))


@pytest.mark.parametrize("value", layouts.ODD_VALUES)
def test_ranges_of_odd_values(value):
    x = torch.linspace(-1, 1, 700)
    x[577] = value
    found, want = passes.measure(x, (1, 1, 700), False), torch.stack(formula(lambda: measure(x))[:2])
    assert torch.equal(found.flatten().nan_to_num(7.0), want.nan_to_num(7.0))


@LAYOUT_AND_DTYPE
def test_rounding_is_bitwise_the_formula(layout, dtype):
    x, axes, shape = tensor(layout, dtype)
    for grid in grids(x, axes, 0.6):
        y = passes.rounded(x, grid, shape, dtype)
        assert torch.equal(y, fq._rounded(x.float(), grid).to(dtype)) and y.stride() == x.stride()


@LAYOUT
def test_tiles_as_they_are(layout, small_tiles):
    small_tiles.undo()
    x, axes, shape = tensor(layout)
    stats, grid = formula(lambda: measure(x, axes, True)), list(grids(x, axes, 0.6))[-1]
    torch.testing.assert_close(passes.measure(x, shape, True), torch.stack([s.flatten() for s in stats]), rtol=1e-5, atol=1e-7)
    assert torch.equal(passes.rounded(x, grid, shape, x.dtype), fq._rounded(x, grid))
    g = x.clone()
    found = passes.grid_gradients(g, x, grid, shape)
    want_g, want = formula(lambda: fq._backward(x.clone(), x, grid, True, None))
    assert torch.equal(g, want_g)
    torch.testing.assert_close(found, torch.stack(want), rtol=1e-4, atol=1e-4)
    scale = torch.full_like(grid.scale, 0.4)
    y = passes.stochastic(x, scale, None, torch.tensor(99.0), torch.tensor(7), x.dtype, shape)
    assert ((y - x).abs() <= 1.001 * scale).all() and not torch.equal(y, x)


def test_rounding_gives_the_type_that_is_asked_for():
    x, axes, shape = tensor("channels outermost", torch.bfloat16)
    for grid in grids(x, axes, 0.6):
        assert torch.equal(passes.rounded(x, grid, shape, torch.float32), fq._rounded(x.float(), grid))


def test_rounding_of_odd_values():
    halves = torch.arange(-40, 41) / 2
    x = torch.cat(
        [halves, torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 3e38, 1e-45, 2.0**23 + 1, -(2.0**24)])]
    )
    for grid in (Grid(torch.tensor(1.0)), Grid(torch.tensor(1.0), None, torch.tensor(-3.0), torch.tensor(4.0))):
        found, want = passes.rounded(x, grid, (1, 1, x.numel()), torch.float32), fq._rounded(x, grid)
        assert torch.equal(found.nan_to_num(77.0), want.nan_to_num(77.0))
        assert torch.equal(found.signbit(), want.signbit()), "zeros keep their sign"


@LAYOUT_AND_DTYPE
def test_gradients_of_the_grid(layout, dtype):
    x, axes, shape = tensor(layout, dtype)
    g = torch.randn(x.shape).to(dtype).as_strided(x.shape, x.stride())
    for grid in grids(x, axes, 0.6):
        fast_x, slow_x = g.clone(), g.clone()
        fast = passes.grid_gradients(fast_x, x, grid, shape)
        slow_x, slow = formula(lambda grid=grid, slow_x=slow_x: fq._backward(slow_x.float(), x.float(), grid, True, None))
        assert torch.equal(fast_x.float(), slow_x)
        for one, other in zip(fast.unbind() if grid.low is not None else [fast], slow, strict=False):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def philox(lane: torch.Tensor, program: torch.Tensor, seed: int) -> torch.Tensor:
    """(4, *shape): seven rounds of Philox 4x32 (Salmon et al. 2011), 32-bit arithmetic in Python's integers."""
    low, found = 0xFFFFFFFF, []
    for c0, c1 in zip(lane.tolist(), program.tolist(), strict=True):
        c, key = [c0, c1, 0, 0], [seed & low, seed >> 32]
        for _ in range(7):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(b >> 32) ^ c[1] ^ key[0], b & low, (a >> 32) ^ c[3] ^ key[1], a & low]
            key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
        found.append(c)
    return torch.tensor(found).t()


@DTYPE
@pytest.mark.parametrize("with_offset", [True, False])
def test_stochastic_rounding_is_that_of_its_random_numbers(dtype, with_offset):
    torch.manual_seed(3)
    x, seed = torch.randn(5, 413).to(dtype), passes.draw_seed(torch.device("cpu"))
    scale, offset, most = torch.tensor(0.3), torch.tensor(-2.0) if with_offset else None, torch.tensor(9.0)
    i, tile = torch.arange(x.numel()), passes.TILE // 4
    noise = philox(i % tile, i // passes.TILE, seed.item()).gather(0, (i // tile % 4)[None]).view(x.shape)
    v = (x.float() - offset if with_offset else x.float()) / scale
    up = v - v.floor() > (noise >> 8) * 2.0**-24
    want = (v.floor() + up).clamp(0 if with_offset else -most, most) * scale + (offset if with_offset else 0)
    assert torch.equal(passes.stochastic(x, scale, offset, most, seed, dtype), want.to(dtype))


@LAYOUT
@pytest.mark.parametrize("with_offset", [True, False])
def test_stochastic_rounding_with_a_scale_a_slice(layout, with_offset):
    x, axes, shape = tensor(layout)
    stats = formula(lambda: measure(x, axes))
    low, scale = stats.low, (stats.high - stats.low).clamp_min(1) / 15
    offset, most = (low if with_offset else None), torch.tensor(15.0 if with_offset else 100.0)
    y, variance = passes.stochastic(x, scale, offset, most, passes.draw_seed(x.device), torch.float32, shape, variance=True)
    v = (x - low if with_offset else x) / scale
    f = v - v.floor()
    up = (y - low if with_offset else y) / scale - v.floor()
    assert torch.minimum(up.abs(), (up - 1).abs()).max() < 1e-4, "either of the two codes next to it"
    others = [d for d in range(x.dim()) if d not in axes]
    want = (scale * scale * f * (1 - f)).sum(others) if others else scale * scale * f * (1 - f)
    assert y.stride() == x.stride() and variance.shape == (shape[1],)
    torch.testing.assert_close(variance, want.flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", ["blocks and a bit", "channels outermost"])
def test_stochastic_rounding_has_no_bias_and_no_pattern(layout):
    x, _, shape = tensor(layout)
    x, one, most = torch.full_like(x, 0.3), torch.ones(shape[1]), torch.tensor(7.0)
    seeds = torch.arange(16)
    draws = torch.stack([passes.stochastic(x, one, None, most, seed, torch.float32, shape) for seed in seeds])
    error, deviation = draws.flatten(1) - x.flatten(), 0.21**0.5
    assert abs(float(error.mean())) < 5 * deviation / error.numel() ** 0.5
    assert (error.mean(0).abs() < 5 * deviation / len(seeds) ** 0.5).all(), "each element by itself"
    assert abs(float((error[1:] * error[:-1]).mean())) < 5 * 0.21 / error.numel() ** 0.5, "the next seed has nothing of it"
    for step in (1, 16, 64):
        neighbours = (error[:, step:] * error[:, :-step]).mean()
        assert abs(float(neighbours)) < 5 * 0.21 / error.numel() ** 0.5, "elements are independent"


BLOCKED = {  # name: (memory, blocks of the channels)
    "along, places": (torch.contiguous_format, False), "across, channels": (torch.contiguous_format, True),
    "along, channels": (torch.channels_last, True), "across, places": (torch.channels_last, False),
}  # fmt: skip


@pytest.mark.parametrize("size", [5, 32])
@pytest.mark.parametrize("layout", BLOCKED)
def test_blocks_are_rounded_on_the_grids_of_the_formula(layout, size, chosen):
    """To either of the two codes next to each value; what lies on its grid stays, so do zeros; the next draw is another."""
    memory, channels = BLOCKED[layout]
    torch.manual_seed(0)
    shape = (2, 37, 3, 11) if size == 32 else (2, 12, 2, 6)  # whole blocks and a part of one, either way
    x = (torch.randn(shape) * torch.randn(shape).exp()).to(memory_format=memory)
    x[1, 3:-1] = 0
    for dtype in passes.FLOATS if size == 5 else passes.FLOATS[:1]:
        g, quantizer, bits = x.to(dtype), Blocks(size, 1, channels), torch.tensor(3.0)
        y, again = quantizer(g, bits), quantizer(g, bits)
        assert chosen[-2:] == ["blocks"] * 2 and y.stride() == g.stride() and not torch.equal(y, again)
        scale, _, most = formula(lambda quantizer=quantizer, g=g, bits=bits: quantizer.grid(g, bits))
        codes, place = (y.float() / scale).round(), g.float() / scale
        assert torch.equal((codes * scale).to(dtype), y) and codes.abs().max() == most
        assert ((codes - place).abs() < 1 + 1e-5).all() and (y[g == 0] == 0).all()
        fixed = (codes * scale)[(codes - place).abs() < 1e-6]
        assert len(fixed), "the largest of each block lies on its grid"


def test_rounding_in_blocks_has_no_bias(chosen):
    x, quantizer = torch.full((64, 64), 0.3), Blocks(32)
    x[:, ::32] = 7.0  # the scale of a block is 1
    draws = torch.stack([quantizer(x, torch.tensor(4.0)) for _ in range(8)])
    error = (draws - x).flatten()
    assert set(draws.unique().tolist()) == {0.0, 1.0, 7.0} and abs(float(error.mean())) < 5 * 0.46 / error.numel() ** 0.5


def test_seeds_follow_torchs_generator():
    x, one = torch.full((300,), 0.5), torch.tensor(1.0)
    torch.manual_seed(5)
    first, second = (passes.stochastic(x, one, None, one, passes.draw_seed(x.device), x.dtype) for _ in range(2))
    torch.manual_seed(5)
    again = passes.stochastic(x, one, None, one, passes.draw_seed(x.device), x.dtype)
    assert torch.equal(first, again) and not torch.equal(first, second)


@LAYOUT
@pytest.mark.parametrize("quantizer", [MinMax(), Symmetric()], ids=["minmax", "symmetric"])
def test_grids_in_closed_form_are_the_quantizers(layout, quantizer):
    drawn, axes, shape = tensor(layout)
    each = [n if d in axes else 1 for d, n in enumerate(drawn.shape)] if axes else []
    for x, number in ((drawn, 3.0), (drawn.abs(), 4.5), (torch.zeros_like(drawn), 8.0)):
        bits = torch.tensor(number, requires_grad=True)
        scale, offset, slope = passes.grid(x, shape, each, form(quantizer), bits.detach(), 0)
        want = formula(lambda x=x, bits=bits: quantizer.grid(measure(x, axes), bits, True))
        torch.testing.assert_close(scale, want.scale.detach(), rtol=1e-6 if number % 1 else 0, atol=0)
        assert (offset is None) == (want.offset is None) and (offset is None or torch.equal(offset, want.offset))
        torch.testing.assert_close(slope.sum(), torch.autograd.grad(want.scale.sum(), bits)[0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_range_that_is_not_finite_shows_in_the_grid(value):
    x = torch.randn(200)
    x[77] = value
    for number in (0, 1):
        assert not passes.grid(x, (1, 1, 200), [], number, torch.tensor([0.0, 4.0]), 1).scale.isfinite()


def test_moving_averages_by_hand():
    ranges, x = torch.tensor([-1.0, 1.0, 1.0, 1.0]), torch.tensor([[-3.0, 5.0]]).repeat(1, 100)
    passes.grid(x, (1, 1, 200), [], 0, torch.tensor(4.0), 0, ranges, 0.1)
    torch.testing.assert_close(ranges, torch.tensor([-1.2, 1.4, 1.4, 1.0]))


@pytest.mark.parametrize("channels", [1, 5, 1500])
def test_the_gradient_of_bits_is_summed_over_channels(channels):
    w, w_slope, x, x_slope = torch.randn(channels, 1), torch.randn(channels), torch.tensor(3.0), torch.tensor([0.5])
    both, without_w = passes.bits_gradient(w, w_slope, x, x_slope), passes.bits_gradient(None, w_slope, x, x_slope)
    torch.testing.assert_close(both, torch.stack([(w.flatten() * w_slope).sum(), torch.tensor(1.5), torch.tensor(0.0)]))
    assert without_w.tolist() == [0, 1.5, 0] and passes.bits_gradient(w, w_slope, None, x_slope)[1:].tolist() == [0, 0]


@pytest.mark.parametrize("name", names("grad_quantizer"))
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_gradient_quantizers_come_through_the_seam(name, memory, chosen):
    x = torch.randn(3, 5, 4, 7).to(memory_format=memory)
    quantizer, bits = component("grad_quantizer", name), torch.tensor(4.0)
    for part in quantizer.parts(1):
        y = part(x, bits)
        assert chosen.pop() == ("blocks" if name == "per_block" else "stochastic")
        assert y.stride() == x.stride()
        scale, offset, _ = formula(lambda part=part: part.grid(x, bits))
        codes = (y if offset is None else y - offset) / scale
        assert (codes - codes.round()).abs().max() < 1e-4 and ((y - x).abs() / scale).max() < 1.001


def test_a_gradient_quantizer_of_ones_own_comes_through_the_seam(chosen):
    class Fixed(GradQuantizer):
        def grid(self, g, bits):
            return GradGrid(torch.tensor(0.25), None, torch.tensor(100.0))

    y = Fixed()(torch.randn(9, 9), torch.tensor(4.0))
    assert chosen == ["stochastic"] and torch.equal(y * 4, (y * 4).round())


@pytest.mark.parametrize("quantizer", names("quantizer"))
def test_the_seam_gives_the_formulas_values(quantizer, chosen):
    x, axes, _ = tensor("channels outermost")
    stats = measure(x, axes, spread=True)
    grid = component("quantizer", quantizer).grid(stats, torch.tensor(3.0), False, torch.full_like(stats.low, 0.7))
    y = fq.rounded(x, grid)
    g, (scale, *_) = fq.backward(torch.ones_like(x), x, grid, True)
    assert chosen == ["measure", "rounded", "grid_gradients"]
    assert torch.equal(y, fq._rounded(x, grid))
    want_g, want = formula(lambda: fq._backward(torch.ones_like(x), x, grid, True, None))
    assert torch.equal(g, want_g)
    torch.testing.assert_close(scale, want[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantizer", names("quantizer"))
def test_a_training_step_is_that_of_the_formulas(quantizer, chosen):
    """Outputs, gradients of weights and of bits, and moving averages; gradients themselves are not rounded, so all is exact."""
    results = []
    for by in (lambda f: f(), formula):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
        x, options = torch.randn(2, 3, 6, 6), {"weight_quantizer": quantizer, "input_quantizer": quantizer}
        space = ldp_search.SearchSpace(policy="bit_gradient", bits=(3, 8), grad_bits=32, target_cost=0.5, **options)
        ldp = ldp_search.controller(formula(lambda model=model, space=space, x=x: ldp_search.apply(model, space, x[:1])))
        y = by(lambda model=model, x=x: model(x))
        by(lambda y=y: y.square().sum().backward())
        results.append([y, *(p.grad for p in model.parameters()), ldp.tensors.grads, ldp.tensors.ranges])
    assert {"rounded", "grid_gradients", "measure" if quantizer in ("clip", "mse") else "grid"} <= set(chosen)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
