"""Fake quantization and its gradients: closed forms in float64, and the few-pass version against the formula."""

import math

import pytest
import torch
from torch import nn

import ldp_search
from ldp_search.core.quantize.fake_quantize import fake_quantize, quantize_gradient, reference, round_ste
from ldp_search.core.quantize.grid import Grid, measure
from ldp_search.core.registry import build, names

DOUBLE = {"dtype": torch.float64}


def test_round_ste():
    x = torch.tensor([0.5, 1.5, -0.6, 2.2], **DOUBLE, requires_grad=True)
    y = round_ste(x)
    y.backward(torch.arange(4.0, **DOUBLE))
    assert y.tolist() == [0, 2, -1, 2] and x.grad.tolist() == [0, 1, 2, 3]


def closed_form(bits: float, g, e) -> float:
    """dL/db of minmax: -ln 2 * 2^b / (2^b - 1) * sum(g * e)."""
    return float(-math.log(2) * 2**bits / (2**bits - 1) * (g * e).sum())


@pytest.mark.parametrize("f", [reference, fake_quantize])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", [2, 3, 4.5, 8, 12, 16])
def test_gradient_of_the_bits_is_the_closed_form(f, axis, bits):
    x, g = torch.randn(6, 7, **DOUBLE, requires_grad=True), torch.randn(6, 7, **DOUBLE)
    b = torch.tensor(float(bits), **DOUBLE, requires_grad=True)
    x_q = f(x, build("quantizer", "minmax").grid(measure(x.detach(), axis), b, True))
    x_q.backward(g)
    torch.testing.assert_close(x.grad, g)
    assert float(b.grad) == pytest.approx(closed_form(bits, g, (x_q - x).detach()), rel=1e-9, abs=1e-14)


def analytic_clip(x, x_q, bound, low, g):
    """dL/dbound, of the LSQ family: (x_q - x) / bound inside the range, and the bound's own sign outside."""
    inside = torch.where(x > bound, 1.0, torch.where(x < low, -1.0, (x_q - x) / bound))
    return float((inside * g).sum())


@pytest.mark.parametrize("f", [reference, fake_quantize])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradient_of_the_clip_is_the_analytic_one(f, signed, bits):
    x, g = torch.randn(50, **DOUBLE), torch.randn(50, **DOUBLE)
    x = (x if signed else x.relu()).requires_grad_()
    clip = torch.tensor(0.8 / bits, **DOUBLE, requires_grad=True)  # small enough to clip at all these bits
    grid = build("quantizer", "clip").grid(measure(x.detach(), None, True), torch.tensor(float(bits), **DOUBLE), True, clip)
    x_q = f(x, grid)
    x_q.backward(g)
    outside = (x.detach() > grid.high.detach()) | (x.detach() < grid.low.detach())
    assert outside.any()
    torch.testing.assert_close(x.grad, torch.where(outside, 0, g))
    expected = analytic_clip(x.detach(), x_q.detach(), grid.high.detach(), grid.low.detach(), g)
    assert float(clip.grad) == pytest.approx(expected * float(grid.high.detach() / clip.detach()), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("name", names("quantizer"))
def test_few_passes_are_the_formula(name, live, axis, dtype):
    quantizer = build("quantizer", name)
    data, g = torch.randn(5, 9).to(dtype), torch.randn(5, 9).to(dtype)
    stats = measure(data, axis, True)
    if not live:
        stats = type(stats)(*(s * 0.6 for s in stats))  # then values lie outside
    results = []
    for f in (reference, fake_quantize):
        x = data.clone().requires_grad_()
        b = torch.tensor(3.0, dtype=stats.low.dtype, requires_grad=True)
        clip = torch.full_like(stats.low, 0.7, requires_grad=True)
        y = f(x, quantizer.grid(stats, b, live, clip))
        y.backward(g)
        results.append([y.detach(), x.grad, b.grad] + ([clip.grad] if quantizer.learned_clip else []))
        assert y.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * 10)


def test_nothing_is_computed_for_a_fixed_grid():
    x = torch.randn(4, 4, requires_grad=True)
    y = fake_quantize(x, Grid(torch.tensor(0.5), None, torch.tensor(-1.0), torch.tensor(1.0)))
    before = (weight := torch.ones(4, 4)).clone()
    y.backward(weight)
    assert torch.equal(weight, before), "the gradient that came in belongs to autograd"
    assert torch.equal(x.grad, (x.detach().abs() <= 1).float())


def test_quantize_gradient_is_the_identity_forward():
    y = torch.randn(8, requires_grad=True)
    out = quantize_gradient(y * 1, torch.tensor(2.0), lambda g, bits: g * bits)
    assert torch.equal(out, y)
    out += 1  # whoever called the product may add to it in place
    out.sum().backward()
    assert torch.equal(y.grad, torch.full((8,), 2.0))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 6)),
}


def double_layer(name, **options):
    make, shape = LAYERS[name]
    model = nn.Sequential(make()).double()
    ldp_search.apply(model, "static", example_inputs=torch.randn(shape, **DOUBLE), grad_bits=32, **options)
    ldp = ldp_search.controller(model)
    ldp.policy.needs_gradients = True  # a fixed schedule would not ask for them
    ldp.freeze(), setattr(ldp, "frozen", False), ldp.bind_views()
    return model, ldp, torch.randn(shape, **DOUBLE, requires_grad=True)


@pytest.mark.parametrize("backend", ["reference", "simulate"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradient_of_a_layers_bits_is_the_closed_form(layer, backend, bits):
    model, ldp, x = double_layer(layer, bits=bits, backend=backend)
    y = model(x)
    y.backward(torch.randn_like(y))
    w, one = model[0].weight, build("quantizer", "minmax")
    b = torch.tensor(float(bits), **DOUBLE)
    expected = [  # nothing is clipped, so dL/dx is dL/dx_q
        closed_form(bits, t.grad, reference(t.detach(), one.grid(measure(t.detach(), axis), b, True)) - t.detach())
        for t, axis in ((w, 0), (x, None))
    ]
    assert ldp.parameters()["bits"].grad[0].tolist() == pytest.approx([*expected, 0.0], rel=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_under_interpolation_is_the_finite_difference(layer):
    model, ldp, x = double_layer(layer, bits=(3, 8), relaxation="interpolate")
    with torch.no_grad():
        ldp.parameters()["bits"].copy_(torch.tensor([[3.25, 5.75, 32.0]]))
    y = model(x)
    y.backward(torch.randn_like(y))
    one, expected = build("quantizer", "minmax"), []
    for t, axis, k in ((model[0].weight, 0, 3.0), (x, None, 5.0)):
        stats, t_q = measure(t.detach(), axis), []
        t_q = [reference(t.detach(), one.grid(stats, torch.tensor(b, **DOUBLE), True)) for b in (k, k + 1)]
        expected.append(float((t.grad * (t_q[1] - t_q[0])).sum()))
    assert ldp.parameters()["bits"].grad[0].tolist() == pytest.approx([*expected, 0.0], rel=1e-5)
