"""Gradient quantizers: unbiased, exact zeros, a scale a tensor, a sample or a channel, kernels against formulas, variances."""

import contextlib
import copy
import math

import pytest
import torch
from breadth import breadth
from older import COMPILED
from torch import nn

import ldp_search
from ldp_search.core import native
from ldp_search.core.native import gradients as kernels
from ldp_search.core.native import sensing
from ldp_search.core.quantize.fake_quantize import quantize_gradient
from ldp_search.core.quantize.gradient_quantizers import (
    Blocks,
    PerBlock,
    PerChannel,
    PerSample,
    PerSampleChannel,
    Stochastic,
    round_stochastically_,
)
from ldp_search.core.registry import build, names

EACH = pytest.mark.parametrize("name", names("grad_quantizer"))
KERNELS = {"native": contextlib.nullcontext, "formulas": native.disabled}
EITHER = pytest.mark.parametrize("arithmetic", KERNELS)
FINE = ["per_sample", "per_sample_channel", "per_block"]
NATIVE = pytest.mark.skipif(native.status() != "on", reason=f"native kernels {native.status()}")


def of_bits(bits):
    return torch.tensor(float(bits))


def heavy_tailed(*shape):
    """Whose samples and channels differ in size by orders of magnitude, with a third of zeros, as behind a ReLU."""
    g = torch.randn(shape) ** 3 * torch.logspace(-3, 0, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return g.where(torch.rand(shape) > 1 / 3, 0.0)


# -- what all have in common ------------------------------------------------------------------------------------------


@EACH
@EITHER
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_unbiased(name, bits, arithmetic):
    torch.manual_seed(0)
    g, quantizer, draws = heavy_tailed(7, 3, 5), build("grad_quantizer", name), 400
    with KERNELS[arithmetic]():
        error = torch.stack([quantizer(g, of_bits(bits)) for _ in range(draws)]) - g
    step = quantizer.grid(g, of_bits(bits)).scale
    assert ((error / step).abs() <= 1.001).all()
    assert ((error.mean(0) / step).abs() < 5.5 * 0.5 / math.sqrt(draws)).all(), "each element by itself"
    assert abs(float((error / step).mean())) < 4 * 0.5 / math.sqrt(error.numel())


@EACH
@EITHER
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 5), (2, 3, 7), (2, 4, 3, 3), (1001,), (1, 6), (6, 1)])
def test_shape_type_and_grid_are_kept(name, shape, dtype, arithmetic):
    g, quantizer = torch.randn(shape).to(dtype), build("grad_quantizer", name)
    with KERNELS[arithmetic]():
        q = quantizer(g, of_bits(3))
    scale, offset, most = quantizer.grid(g, of_bits(3))
    codes = ((q.double() - (0 if offset is None else offset)) / scale).float()
    assert q.shape == g.shape and q.dtype == dtype and q.data_ptr() != g.data_ptr()
    tolerance = 0.03 if dtype == torch.bfloat16 else 1e-4
    assert ((codes - codes.round()).abs() <= tolerance * most).all()
    assert (codes.round() <= most).all() and (codes.round() >= (-most if offset is None else 0)).all()


@EACH
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-20])
def test_constant_gradients_stay(name, value):
    g = torch.full((7, 3), value)
    torch.testing.assert_close(build("grad_quantizer", name)(g, of_bits(8)), g, rtol=1e-6, atol=0)


@EACH
@EITHER
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codes_are_those_of_the_values(name, bits, part, arithmetic):
    g, quantizer = heavy_tailed(6, 5, 4, 3), build("grad_quantizer", name).parts(1)[part]
    with KERNELS[arithmetic]():
        torch.manual_seed(1)
        values = quantizer(g, of_bits(bits))
        torch.manual_seed(1)
        codes = quantizer.codes(g, of_bits(bits))
    assert codes.values.dtype == torch.int8 and codes.values.shape == g.shape
    if name == "per_block":
        assert torch.equal(codes.scale, quantizer.scales(g, quantizer.grid(g, of_bits(bits)).most))
    else:
        assert torch.equal(codes.scale, quantizer.grid(g, of_bits(bits)).scale)
    torch.testing.assert_close(codes.to_float(), values, rtol=1e-5, atol=float(2e-6 * g.abs().max()))


@EACH
@pytest.mark.parametrize("bits", [3, 8])
def test_the_variance_is_that_of_many_draws(name, bits):
    torch.manual_seed(0)
    g, quantizer, draws = heavy_tailed(5, 4, 6), build("grad_quantizer", name), 4000
    expected, scale = quantizer.variance(g, of_bits(bits)), quantizer.grid(g, of_bits(bits)).scale
    found = torch.stack([quantizer(g, of_bits(bits)) for _ in range(draws)]).sub(g).square().mean(0)
    assert expected.shape == g.shape and expected.dtype == torch.float32 and (expected >= 0).all()
    assert (((found - expected) / scale**2).abs() < 5 * 0.3 / math.sqrt(draws)).all()
    assert found.sum() == pytest.approx(float(expected.sum()), rel=0.05)


def test_noise_of_neighbours_is_independent():
    up = round_stochastically_(torch.full((4096,), 0.5)).view(-1, 4)
    assert (torch.corrcoef(up.T) - torch.eye(4)).abs().max() < 5 / math.sqrt(1024)
    assert round_stochastically_(torch.full((64, 3), 0.5).T).unique().tolist() == [0, 1]  # strided too


def test_the_range_of_half_precision_gradients_is_not_rounded():
    g = torch.tensor([-2.015625, 255.0]).repeat(50).bfloat16()  # the range, 257.015625, would become 258
    assert Stochastic()(g, of_bits(2)).unique().tolist() == [-2.015625, 255.0]


# -- scales -----------------------------------------------------------------------------------------------------------


@EITHER
@pytest.mark.parametrize("name", ["symmetric", "per_sample", "per_sample_channel", "per_block"])
def test_zeros_stay_zeros(name, arithmetic):
    g = heavy_tailed(9, 5, 4)
    g[2] = 0  # a whole sample
    with KERNELS[arithmetic]():
        for q in build("grad_quantizer", name).pair(g, of_bits(2), of_bits(4), 1):
            assert (q[g == 0] == 0).all() and (q[-1] != 0).any()


@EITHER
def test_scales_by_hand(arithmetic):
    g = torch.tensor([[[1.0, -6.0], [0.5, 0.0]], [[0.25, 0.1], [-3.0, 2.0]]])  # (samples, rows, channels)
    cases = [(PerSample(), [[[2.0]], [[1.0]]]), (PerSample(rows=True), [[[2.0], [0.5 / 3]], [[0.25 / 3], [1.0]]]),
             (PerChannel(-1), [[[1.0, 2.0]]]), (PerChannel(1), [[[2.0], [1.0]]])]  # fmt: skip
    for quantizer, expected in cases:
        with KERNELS[arithmetic]():
            found = quantizer.codes(g, of_bits(3)).scale
        assert torch.equal(found, torch.tensor(expected)) and torch.equal(quantizer.grid(g, of_bits(3)).scale, found)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_sample_is_quantized_as_if_alone(bits):
    g, whole, quantizer = heavy_tailed(4, 6, 5), build("grad_quantizer", "symmetric"), PerSample()
    found = quantizer.variance(g, of_bits(bits))
    alone = torch.stack([whole.variance(sample, of_bits(bits)) for sample in g])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-12)
    assert found[:3].sum() < whole.variance(g, of_bits(bits))[:3].sum() / 2, "the last one is the largest by far"


BLOCKS = {  # (quantizer, shape of g, first and last dimension that its blocks lie along)
    "channels of images": (Blocks(3, 1), (2, 7, 3, 2), (1, 1)),
    "places of images": (Blocks(4, 1, channels=False), (2, 7, 3, 2), (2, 3)),
    "images of one place": (Blocks(2, 1, channels=False), (5, 3, 1, 1), (0, 0)),
    "places of volumes": (Blocks(4, 1, channels=False), (2, 3, 2, 3, 2), (2, 4)),
    "channels of rows": (Blocks(3), (5, 7), (1, 1)),
    "rows": (Blocks(2, channels=False), (5, 7), (0, 0)),
    "places of sequences": (Blocks(2, channels=False), (3, 5, 4), (1, 1)),
    "channels of sequences": (Blocks(2), (3, 5, 4), (2, 2)),
    "sequences of one place": (Blocks(2, channels=False), (5, 1, 4), (0, 0)),
    "places of images, channels last": (Blocks(4, channels=False), (2, 3, 2, 7), (1, 2)),
    "a vector": (Blocks(2, channels=False), (7,), (0, 0)),
    "one block": (Blocks(32, 1), (2, 7, 3, 2), (1, 1)),
}


def largest_of_blocks(g, first, last, size):
    """The largest magnitude of each element's block."""
    lines = g.flatten(first, last).movedim(first, -1)
    out = torch.empty_like(lines).contiguous()
    for line, into in zip(lines.reshape(-1, lines.shape[-1]), out.view(-1, lines.shape[-1]), strict=True):
        for block, to in zip(line.split(size), into.split(size), strict=True):
            to.fill_(block.abs().max())
    return out.movedim(-1, first).reshape(g.shape)


@pytest.mark.parametrize("case", BLOCKS)
def test_scales_of_blocks_by_hand(case):
    quantizer, shape, along = BLOCKS[case]
    g = heavy_tailed(*shape)
    scale, offset, most = quantizer.grid(g, of_bits(4))
    expected = (largest_of_blocks(g, *along, quantizer.size) / 7).clamp_min(2.0**-126)
    assert torch.equal(scale, expected) and offset is None and most == 7


@pytest.mark.parametrize(("shape", "channel_dim"), [((4, 6, 3, 3), 1), ((4, 5, 6), -1), ((4, 6), -1)])
def test_blocks_lie_along_what_each_product_sums(shape, channel_dim):
    of_x, of_w = build("grad_quantizer", {"name": "per_block", "size": 16}).parts(channel_dim)
    assert of_x == Blocks(16, channel_dim) and of_w == Blocks(16, channel_dim, channels=False)
    g = heavy_tailed(*shape)
    assert of_x.within_samples(g) and of_w.within_samples(g) == (len(shape) > 2), "rows of a batch share their blocks"


@pytest.mark.parametrize("size", [1, 0, 2.5, True])
def test_a_block_has_two_values_at_least(size):
    with pytest.raises(ValueError, match=rf"number of values that share a scale, 2 at least; received {size!r}"):
        build("grad_quantizer", {"name": "per_block", "size": size})


@EITHER
def test_overflow_stays_in_its_sample(arithmetic):
    g = torch.randn(4, 50)
    g[1, 7], g[2, 9] = math.inf, math.nan
    with KERNELS[arithmetic]():
        q = PerSample()(g, of_bits(8))
    assert q[[0, 3]].isfinite().all() and not q[1].isfinite().all() and not q[2].isfinite().all()


# -- one gradient for each of the two products --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "calls"), [("stochastic", 1), ("symmetric", 1), ("per_sample", 1), ("per_sample_channel", 2), ("per_block", 2)]
)
def test_one_rounding_serves_both_products_where_it_can(name, calls):
    g, bits, quantizer = torch.randn(4, 6, 3), of_bits(4), build("grad_quantizer", name)
    for_x, for_w = quantizer.pair(g, bits, bits, -1)
    assert (for_x is for_w) == (calls == 1)
    for_x, for_w = quantizer.pair(g, bits, bits.clone(), -1)
    assert for_x is not for_w, "two tensors of bits are two roundings"


@pytest.mark.parametrize(("shape", "channel_dim"), [((4, 6, 3, 3), 1), ((4, 5, 6), -1), ((4, 6), -1)])
def test_the_products_get_scales_that_factor_out_of_them(shape, channel_dim):
    g = heavy_tailed(*shape)
    of_x, of_w = PerSampleChannel().pair_codes(g, of_bits(8), of_bits(4), channel_dim)
    samples, channels = [1] * len(shape), [1] * len(shape)
    samples[0], channels[channel_dim] = 4, 6
    others = [d for d in range(len(shape)) if d != channel_dim % len(shape)]
    assert list(of_x.scale.shape) == samples and list(of_w.scale.shape) == channels
    assert torch.equal(of_x.scale.flatten(), g.abs().flatten(1).amax(1) / 127)
    assert torch.equal(of_w.scale.flatten(), g.abs().amax(others) / 7)


@EACH
def test_bits_of_none_leave_the_gradient(name):
    g, quantizer = torch.randn(4, 6, 3), build("grad_quantizer", name)
    for_x, for_w = quantizer.pair(g, None, of_bits(2), 1)
    assert for_x is g and not torch.equal(for_w, g)
    for_x, for_w = quantizer.pair(g, of_bits(2), None, 1)
    assert for_w is g and not torch.equal(for_x, g)
    assert quantizer.pair_codes(g, None, None, 1) == (None, None)


@pytest.mark.parametrize("name", ["per_sample", "per_sample_channel"])
def test_places_of_a_convolution_are_no_rows(name):
    g, quantizer = torch.randn(3, 4, 5, 5), build("grad_quantizer", {"name": name, "rows": True})
    assert quantizer.parts(1)[0].grid(g, of_bits(4)).scale.shape == (3, 1, 1, 1)
    assert quantizer.parts(-1)[0].grid(g, of_bits(4)).scale.shape == (3, 4, 5, 1)


@pytest.mark.parametrize("quantizer", [PerSampleChannel(), PerBlock()], ids=lambda quantizer: quantizer.name)
def test_outside_of_layers_a_scale_a_sample_serves_both(quantizer):
    a, b = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 5, 6, requires_grad=True)
    g = heavy_tailed(3, 4, 6)
    torch.manual_seed(2)
    quantize_gradient(a @ b, of_bits(3), quantizer).backward(g)
    torch.manual_seed(2)
    g_q = PerSample()(g, of_bits(3))
    torch.testing.assert_close(a.grad, g_q @ b.detach().mT)
    torch.testing.assert_close(b.grad, a.detach().mT @ g_q)


# -- kernels ----------------------------------------------------------------------------------------------------------


def hashed(i: torch.Tensor, seed: int) -> torch.Tensor:
    """The kernels' random number of each position, in [0, 1): 32-bit arithmetic in int64."""
    a, b = seed & 0xFFFFFFFF, seed >> 32
    i = (i + a) & 0xFFFFFFFF
    i = ((i ^ (i >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    i = ((i ^ (i >> 15) ^ b) * 0x846CA68B) & 0xFFFFFFFF
    return ((i ^ (i >> 16)) >> 8).float() * 2.0**-24


def in_memory_order(g: torch.Tensor) -> torch.Tensor:
    """The position of each element of a dense tensor in memory."""
    positions = torch.empty_like(g, dtype=torch.int64)
    positions.as_strided((g.numel(),), (1,)).copy_(torch.arange(g.numel()))
    return positions


LAYOUTS = {  # name: (shape, how it lies in memory)
    "images": ((5, 6, 4, 3), lambda g: g),
    "images, channels last": ((5, 6, 4, 3), lambda g: g.to(memory_format=torch.channels_last)),
    "large images": ((3, 2, 50, 60), lambda g: g),
    "one image": ((1, 6, 40, 30), lambda g: g),
    "sequences": ((4, 7, 300), lambda g: g),
    "sequences, steps first": ((4, 7, 300), lambda g: g.transpose(0, 1).contiguous().transpose(0, 1)),
    "rows": ((33, 10), lambda g: g),
    "rows of more than a block": ((3, 5000), lambda g: g),
    "many rows of few channels": ((2000, 3), lambda g: g),
    "columns": ((33, 10), lambda g: g.t().contiguous().t()),
    "one channel": ((2000, 1), lambda g: g),
    "a vector": ((70,), lambda g: g),
}


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "quantizer",
    [Stochastic(), build("grad_quantizer", "symmetric"), PerSample(), PerSample(rows=True), PerChannel(1), PerChannel(-1)],
    ids=["affine", "symmetric", "sample", "row", "channel 1", "channel -1"],
)
def test_kernels_are_the_formula_with_random_numbers_of_their_own(quantizer, layout, dtype, monkeypatch):
    shape, arranged = LAYOUTS[layout]
    if quantizer == PerChannel(1) and len(shape) == 1:
        pytest.skip("a vector has no dimension 1")
    ran = []
    for kernel in ("affine", "symmetric"):
        f = getattr(kernels, kernel)
        monkeypatch.setattr(kernels, kernel, lambda *a, f=f: (ran.append(f), f(*a))[1])
    g = arranged(heavy_tailed(*shape)).to(dtype)
    torch.manual_seed(3)
    found = quantizer(g, of_bits(4))
    torch.manual_seed(3)
    seed = torch.empty((), dtype=torch.int64).random_().item()
    scale, offset, most = quantizer.grid(g, of_bits(4))
    places = (g.float() - (0 if offset is None else offset)) * (1 / scale)
    up = places - places.floor() > hashed(in_memory_order(g), seed)
    codes = (places.floor() + up).clamp(-most if offset is None else 0, most)
    expected = (codes * scale + (0 if offset is None else offset)).to(dtype)
    rows_of_strided = quantizer == PerSample(rows=True) and g.dim() > 2 and not g.is_contiguous()
    assert len(ran) == (0 if rows_of_strided else 1)
    assert rows_of_strided or (torch.equal(found, expected) and found.stride() == g.stride())


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [True, False], ids=["channels", "places"])
@breadth("size", [2, 5, 32, 5000], always=[5, 32])
def test_the_kernel_of_blocks_is_the_formula(size, channels, layout, dtype, monkeypatch):
    shape, arranged = LAYOUTS[layout]
    g, ran, blocks = arranged(heavy_tailed(*shape)).to(dtype), [], kernels.blocks
    monkeypatch.setattr(kernels, "blocks", lambda *a: (ran.append(a), blocks(*a))[1])
    quantizer = Blocks(size, 1 if len(shape) == 4 else -1, channels)
    torch.manual_seed(3)
    found = quantizer(g, of_bits(4))
    torch.manual_seed(3)
    seed = torch.empty((), dtype=torch.int64).random_().item()
    scale, _, most = quantizer.grid(g, of_bits(4))
    places = g.float() * (1 / scale)
    up = places - places.floor() > hashed(in_memory_order(g), seed)
    expected = ((places.floor() + up).clamp(-most, most) * scale).to(dtype)
    assert len(ran) == 1 and torch.equal(found, expected) and found.stride() == g.stride()


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@breadth("size", [2, 5, 32, 5000], always=[5])
def test_total_variances_by_the_kernel_are_the_formulas(size, layout, dtype, monkeypatch):
    shape, arranged = LAYOUTS[layout]
    g, ran, kernel = arranged(heavy_tailed(*shape)).to(dtype), [], sensing.total_variances
    monkeypatch.setattr(sensing, "total_variances", lambda *a: (ran.append(a), kernel(*a))[1])
    channel_dim, levels = 1 if len(shape) == 4 else -1, torch.arange(2.0, 10.0)
    for quantizer in (Blocks(size, channel_dim), Blocks(size, channel_dim, channels=False), PerSample()):
        found = quantizer.total_variances(g, levels)
        expected = torch.stack([quantizer.variance(g.double().float(), level).double().sum() for level in levels])
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    assert len(ran) >= 2, "blocks at least; slices where they are stretches of memory"


@NATIVE
def test_neighbours_and_draws_of_the_kernels_are_independent():
    torch.manual_seed(0)
    g, quantizer = torch.randn(64, 257), PerSample()
    error = torch.stack([quantizer(g, of_bits(3)) for _ in range(200)]).sub(g) / quantizer.grid(g, of_bits(3)).scale
    for neighbours in (error[:, :, 1:] * error[:, :, :-1], error[:, 1:] * error[:, :-1], error[1:] * error[:-1]):
        assert abs(float(neighbours.mean())) < 5 * 0.25 / math.sqrt(error.numel())


@NATIVE
def test_threads_do_not_change_values():
    before, results = torch.get_num_threads(), []
    images, rows = heavy_tailed(16, 8, 30, 30), heavy_tailed(9000, 12)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            of_images = [build("grad_quantizer", name).pair(images, of_bits(5), of_bits(5), 1) for name in FINE]
            of_images.append((Blocks(4, 1).total_variances(images, torch.arange(2.0, 9.0)),))
            results.append([*sum(of_images, ()), PerChannel()(rows, of_bits(5)), Blocks(4, channels=False)(rows, of_bits(5))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_grid_of_ones_own_is_not_replaced_by_a_kernel():
    class Halved(PerSample):
        def grid(self, g, bits):
            scale, offset, most = super().grid(g, bits)
            return super().grid(g, bits)._replace(scale=scale / 2, most=2 * most)

    g = torch.tensor([[1.0, 0.5], [8.0, -4.0]])
    assert torch.equal(Halved().codes(g, of_bits(3)).scale, torch.tensor([[1 / 6], [8 / 6]]))


# -- in a layer --------------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear on sequences": (lambda: nn.Linear(6, 5), (4, 7, 6)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, padding=1), (4, 3, 6, 5)),
    "one-dimensional convolution": (lambda: nn.Conv1d(3, 4, 3, groups=1), (4, 3, 9)),
}


def gradients(layer: nn.Module, x: torch.Tensor, g: torch.Tensor, wrap=lambda model: model, **space) -> dict:
    """{what: gradient} of one training step of a quantized copy of the layer."""
    model, x = nn.Sequential(copy.deepcopy(layer)), x.clone().requires_grad_()
    ldp_search.apply(model, {"policy": "static", "bits": 8, "grad_bits": 3} | space)
    y = wrap(model)(x)
    torch.manual_seed(7)
    y.backward(g)
    return {"x": x.grad} | {name: p.grad for name, p in model[0].named_parameters()}


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("layer", LAYERS)
def test_each_backward_product_takes_its_own_gradient(layer, name):
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    layer, x = make(), torch.randn(shape)
    g = heavy_tailed(*layer(x).shape)
    found = {b: gradients(layer, x, g, grad_quantizer=name, backend=b) for b in ("reference", "simulate")}
    full = gradients(layer, x, g, grad_bits=32)
    for key, value in found["simulate"].items():
        torch.testing.assert_close(value, found["reference"][key], rtol=1e-4, atol=1e-5)
        assert torch.allclose(value, full[key], rtol=1e-4, atol=1e-5) == (key == "bias"), "all but the bias sees the noise"


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_is_not_needed_is_not_rounded(frozen, monkeypatch):
    layer, rounded = nn.Linear(6, 5), []
    layer.weight.requires_grad_(frozen != "weight")
    call = PerSample.__call__
    for kind in (PerSampleChannel, PerChannel):
        monkeypatch.setattr(kind, "__call__", lambda self, g, bits: (rounded.append(type(self)), call(self, g, bits))[1])
    model, x = nn.Sequential(layer), torch.randn(4, 6, requires_grad=frozen != "x")
    ldp_search.apply(model, {"policy": "static", "bits": 8, "grad_bits": 3, "grad_quantizer": "per_sample_channel"})
    model(x).sum().backward()
    assert rounded == ([PerChannel] if frozen == "x" else [PerSampleChannel])


@COMPILED
@pytest.mark.parametrize("name", ["per_sample", "per_sample_channel"])
def test_compiled_layers_round_too(name):
    torch.manual_seed(0)
    layer, x, g = nn.Linear(6, 5), torch.randn(4, 6), heavy_tailed(4, 5)

    def compiled(model):
        return torch.compile(model, backend="aot_eager", fullgraph=True)

    found = gradients(layer, x, g, compiled, grad_quantizer=name)
    full = gradients(layer, x, g, grad_bits=32)
    step = PerSample().grid(g, of_bits(3)).scale
    assert ((found["x"] - full["x"]).abs() <= step * layer.weight.abs().sum(0) * 1.05).all()
    assert not torch.allclose(found["x"], full["x"], rtol=1e-2)
