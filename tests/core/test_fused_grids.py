"""Grids in closed form, in one call, against the quantizers' formulas and autograd."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import ldp_search
from ldp_search.core import native
from ldp_search.core.native import grids as kernels
from ldp_search.core.quantize.fused_grids import fused_grids
from ldp_search.core.quantize.grid import measure
from ldp_search.core.quantize.quantizers import MinMax, Symmetric, form

pytestmark = pytest.mark.skipif(native.status() != "on", reason=f"native kernels {native.status()}")

WEIGHTS = {  # name: (weight, axis of its channels)
    "linear": (lambda: torch.randn(7, 5), 0),
    "transposed": (lambda: torch.randn(5, 300), 1),
    "convolution": (lambda: torch.randn(6, 5, 3, 3), 0),
    "no negative values": (lambda: torch.rand(4, 9), 0),
    "some constant channels": (lambda: torch.cat([torch.zeros(2, 5), torch.full((1, 5), 2.0), torch.randn(2, 5)]), 0),
    "one channel": (lambda: torch.randn(1, 5), 0),
}


def closed(x, w, axes, bits, quantizers, ranges=None):
    return fused_grids(x, w, axes, bits, quantizers, lambda: ranges, 0.1)


@pytest.mark.parametrize("quantizer", [MinMax(), Symmetric()])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [2.0, 3.0, 4.5, 8.0, 16.0])
def test_grids_and_gradients_are_those_of_the_formulas(quantizer, weight, dtype, number):
    (make, axis), x = WEIGHTS[weight], torch.randn(3, 5).to(dtype)
    w, bits = make().to(dtype), torch.tensor([number, number + 1, 8.0], requires_grad=True)
    fast = closed(x, w, (axis,), bits, (quantizer, quantizer))
    slow = quantizer.grid(measure(x), bits[1], True), quantizer.grid(measure(w, axis), bits[0], True)
    for one, other in zip(fast, slow, strict=True):
        assert one.scale.shape == other.scale.shape and one.low is one.high is None
        torch.testing.assert_close(one.scale, other.scale, rtol=1e-6 if number % 1 else 0, atol=0)
        assert (one.offset is None) == (other.offset is None) and (one.offset is None or torch.equal(one.offset, other.offset))
    weights = [torch.randn(grid.scale.shape) for grid in fast]
    of_fast, of_slow = (
        torch.autograd.grad(sum((grid.scale * by).sum() for grid, by in zip(grids, weights, strict=True)), bits)[0]
        for grids in (fast, slow)
    )
    assert of_fast[2] == 0
    torch.testing.assert_close(of_fast, of_slow, rtol=1e-5, atol=1e-7)


def test_a_grid_that_does_not_reach_the_loss_gives_its_bits_no_gradient():
    bits = torch.tensor([3.0, 4.0, 8.0], requires_grad=True)
    (x_grid, w_grid), zero = closed(torch.randn(4, 5), torch.randn(6, 5), (0,), bits, (MinMax(), MinMax())), torch.zeros(())
    of_x, of_w = (torch.autograd.grad(grid.scale.sum(), bits, retain_graph=True)[0] for grid in (x_grid, w_grid))
    assert of_x[0] == zero and of_x[1] < 0 and of_w[1] == zero and of_w[0] < 0


@pytest.mark.parametrize("quantizer", [MinMax(), Symmetric()])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(quantizer, value):
    x = torch.randn(4, 5)
    x[2, 3] = value
    fast = closed(x, torch.randn(2, 5), (0,), torch.full((3,), 4.0), (quantizer, quantizer))[0]
    slow = quantizer.grid(measure(x), torch.tensor(4.0), True)
    assert torch.equal(fast.scale.nan_to_num(7.0), slow.scale.nan_to_num(7.0)) and not fast.scale.isfinite()


def test_moving_averages_by_hand():
    ranges, x = torch.tensor([-1.0, 1.0, 1.0, 1.0]), torch.tensor([[-3.0, 5.0]])
    closed(x, torch.randn(2, 2), (0,), torch.full((3,), 4.0), (MinMax(), MinMax()), ranges)
    torch.testing.assert_close(ranges, torch.tensor([-1.2, 1.4, 1.4, 1.0]))


@dataclass
class Halved(MinMax):
    """A quantizer of somebody's own, made from a built-in one."""

    def grid(self, stats, bits, live, clip=None):
        grid = super().grid(stats, bits, live, clip)
        return grid._replace(scale=grid.scale / 2)


def test_others_keep_their_own_way():
    bits, x, w = torch.full((3,), 4.0), torch.randn(4, 5), torch.randn(6, 5)
    known = MinMax(), MinMax()
    assert form(Halved()) is None and closed(x, w, (0,), bits, known) is not None
    assert closed(x, w, (0,), bits, (Halved(), MinMax())) is None
    assert closed(x, w.double(), (0,), bits, known) is None and closed(x, w, (0,), bits.double(), known) is None
    assert closed(x, torch.randn(6, 5, 2), (0, 1), bits, known) is None, "channels along two axes"
    with native.disabled():
        assert closed(x, w, (0,), bits, known) is None


@pytest.mark.parametrize("options", [{}, {"weight_quantizer": "symmetric", "input_quantizer": "symmetric"}])
def test_a_step_is_that_of_the_formulas(options, monkeypatch):
    ran = []
    grid = kernels.grid
    monkeypatch.setattr(kernels, "grid", lambda *a: (ran.append(1), grid(*a))[1])
    results = []
    for formulas in (False, True):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(6, 5)
        space = ldp_search.SearchSpace(policy="bit_gradient", target_cost=0.5, grad_bits=32, **options)
        ldp_search.apply(model, space, x)
        ldp = ldp_search.controller(model)
        with native.disabled() if formulas else torch.enable_grad():
            model(x).square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        results.append((*gradients, ldp.parameters()["bits"].grad.clone(), torch.cat([s.ranges for s in ldp.sites])))
    assert len(ran) == 4
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)
