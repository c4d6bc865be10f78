"""Quantizers: values by hand, levels, channels, constants, precision of the arithmetic."""

import pytest
import torch

from ldp_search.core.quantize.fake_quantize import fake_quantize, reference, rounded
from ldp_search.core.quantize.grid import measure
from ldp_search.core.quantize.quantizers import clip_ratio
from ldp_search.core.registry import build, names

OUTLIER = [0.1, -0.1] * 7 + [0.1, 2.0]  # mean magnitude 0.21875; at 4 bits, codes to 7, it is clipped well below 2
STEP = float(clip_ratio(torch.tensor(4.0, dtype=torch.float64))) * 0.21875 / 7


def quantize(name, x, bits, live=True, axis=None, clip=None, f=rounded):
    quantizer = build("quantizer", name)
    stats = measure(x, axis, quantizer.learned_clip)
    return f(x, quantizer.grid(stats, torch.tensor(float(bits), dtype=stats.low.dtype), live, clip))


@pytest.mark.parametrize(
    ("name", "bits", "x", "expected"),
    [
        ("minmax", 2, [-1, 0, 0.6, 2], [-1, 0, 1, 2]),
        ("minmax", 3, [0.5, 0.94, 4], [0.5, 1, 4]),
        ("minmax", 2, [-7, -1, -4], [-7, -1, -3]),  # halfway goes to the even code, 2
        ("symmetric", 3, [-2, -0.6, 0, 1], [-2, -2 / 3, 0, 4 / 3]),
        ("symmetric", 2, [0, 0.4, 1.1, 3], [0, 0, 1, 3]),
        ("symmetric", 2, [-3, 1, 2], [-3, 0, 3]),
        ("clip", 4, OUTLIER, [STEP, -STEP] * 7 + [STEP, 7 * STEP]),
        ("clip", 2, [-1, 1, 0.4, 0], [-1, 1, 0, 0]),  # the largest magnitude bounds the clip
    ],
)
def test_values_by_hand(name, bits, x, expected):
    x = torch.tensor(x, dtype=torch.float64)
    for f in (rounded, reference, fake_quantize):
        torch.testing.assert_close(quantize(name, x, bits, f=f), torch.tensor(expected, dtype=torch.float64))


def test_learned_clip_scales_the_range():
    x = torch.tensor(OUTLIER, dtype=torch.float64)
    halved = quantize("clip", x, 4, clip=torch.tensor(0.5, dtype=torch.float64))
    assert halved.max() == pytest.approx(3.5 * STEP)
    assert quantize("clip", x, 4, clip=torch.tensor(100.0, dtype=torch.float64)).max() == 2


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("data", ["normal", "laplace", "rectified"])
def test_the_analytic_clip_is_near_the_best_one(data, bits):
    x = (torch.distributions.Laplace if data == "laplace" else torch.distributions.Normal)(0.0, 1.0).sample((20_000,)).double()
    x = x.relu() if data == "rectified" else x
    multiples = torch.linspace(0.5, 2, 31, dtype=torch.float64)  # of the analytic one; the 11th is 1
    errors = [float((quantize("clip", x, bits, clip=m) - x).square().mean()) for m in multiples]
    assert errors[10] < 2 * min(errors)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize(
    ("name", "low", "levels"), [("minmax", -0.7, 0), ("symmetric", -1, -1), ("symmetric", 0, 0), ("clip", -1, -1)]
)
def test_number_of_levels(name, low, levels, bits):
    x = torch.linspace(low, 1, 2 ** (bits + 2) + 1)
    assert quantize(name, x, bits).unique().numel() == 2**bits + levels


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", names("quantizer"))
def test_a_channel_is_quantized_as_if_alone(name, axis, live):
    x = torch.randn(4, 5, 6) * torch.tensor([1, 10, 100, 0.1]).view(4, 1, 1)
    together = quantize(name, x, 4, live, axis)
    alone = torch.stack([quantize(name, part, 4, live) for part in x.unbind(axis)], axis)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)
    assert not torch.allclose(together, quantize(name, x, 4, live))


@pytest.mark.parametrize("value", [0.0, 3.7, -3.7, 1e-12, 1e20])
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("name", names("quantizer"))
def test_constant_tensors_stay(name, axis, value):
    x = torch.full((3, 4), value)
    assert torch.allclose(quantize(name, x, 3, axis=axis), x, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("name", ["symmetric", "clip"])
def test_zero_is_exact(name, bits):
    for x in (torch.randn(100), torch.rand(100), -torch.rand(100)):
        x[::3] = 0
        assert (quantize(name, x, bits)[::3] == 0).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_is_idempotent(bits):
    once = quantize("minmax", torch.randn(1000), bits)
    torch.testing.assert_close(quantize("minmax", once, bits), once, rtol=0, atol=2e-6)


@pytest.mark.parametrize("f", [rounded, reference, fake_quantize])
@pytest.mark.parametrize("name", names("quantizer"))
def test_arithmetic_is_fp32_under_autocast_and_for_half_precision(name, f):
    x = torch.randn(8, 64) + 3
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantize(name, x, 8, axis=0, f=f), quantize(name, x, 8, axis=0))
        half = quantize(name, x.bfloat16(), 8, axis=0, f=f)
    assert torch.equal(half.bfloat16(), quantize(name, x.bfloat16().float(), 8, axis=0).bfloat16())
    assert all(s.dtype == torch.float32 for s in measure(x.bfloat16(), 0, True))
