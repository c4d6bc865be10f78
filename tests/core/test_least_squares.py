"""The quantizer mse: bounds of least squared error, exact zeros, centred grids, straight-through gradients, its tables."""

import contextlib
import copy
import itertools
import pickle

import pytest
import torch
from breadth import breadth
from torch import nn

import ldp_search
from ldp_search.core import native
from ldp_search.core.model.clipping import MOMENTUM, bound_at
from ldp_search.core.quantize.fake_quantize import fake_quantize, rounded
from ldp_search.core.quantize.grid import measure
from ldp_search.core.quantize.least_squares import LeastSquares, sample, search, unclipped_errors
from ldp_search.core.quantize.quantizers import Clip, MinMax, Symmetric

LEVELS = torch.arange(2.0, 9.0)
DATA = {
    "normal": lambda: torch.randn(1, 2000),
    "rectified": lambda: torch.randn(1, 2000).relu(),
    "heavy tails": lambda: torch.randn(1, 2000) * torch.randn(1, 2000).exp(),
    "one outlier": lambda: torch.cat([torch.randn(1, 1999), torch.tensor([[50.0]])], 1),
    "uniform": lambda: torch.rand(1, 2000) * 2 - 1,
    "away from zero": lambda: torch.rand(1, 2000) + 3,
}


def of(x, axes=None):
    return measure(x, axes, True)


def error_at(quantizer, x, stats, bits, clip):
    y = rounded(x, quantizer.grid(stats, torch.tensor(float(bits)), clip is None, clip), torch.float32)
    return float((y - x).square().mean())


BOTH = list(itertools.product(DATA, [True, False]))


@breadth("data, exact_zero", BOTH, always=[(data, i % 2 == 0) for i, data in enumerate(DATA)])
def test_the_search_finds_the_least_error_that_trying_every_bound_finds(data, exact_zero):
    quantizer, x = LeastSquares(exact_zero=exact_zero), DATA[data]()
    stats = of(x)
    clips, errors = search(quantizer, x, stats, LEVELS, x.numel())
    largest = float(x.abs().max() / stats.spread)

    def objective(bits, clip):
        """The error, and that of one value more as large as the largest: a sample may lack it."""
        cut = max(0.0, largest - float(clip)) * float(stats.spread)
        return error_at(quantizer, x, stats, bits, clip) + cut**2 / x.numel()

    for bits, clip, error in zip(LEVELS.tolist(), clips, errors.tolist(), strict=True):
        assert error == pytest.approx(objective(bits, clip), rel=1e-3)
        least = min(objective(bits, torch.tensor(largest * k / 200)) for k in range(8, 201))
        assert error <= 1.45 * least + 1e-12, "a quarter of a bit, for the steps between bounds"
    assert (errors[1:] <= errors[:-1]).all(), "more bits, less error"


@pytest.mark.skipif(native.status() != "on", reason="no C compiler")
@pytest.mark.parametrize("quantizer", [LeastSquares(), LeastSquares(exact_zero=False), MinMax(), Symmetric(), Clip()])
def test_the_kernel_of_errors_is_the_formula(quantizer):
    """One grid for all or one a channel, with and without bounds."""
    levels = torch.arange(2.0, 9.0)
    for x, axes in ((torch.randn(4000), ()), (torch.randn(20, 30, 3, 3), (0,)), (torch.randn(30, 300).relu(), (0,))):
        found = []
        for context in (contextlib.nullcontext, native.disabled):
            with context():
                sampled = sample(x, measure(x, axes, spread=True), axes)
                found.append([*search(quantizer, *sampled, levels, x.numel()), unclipped_errors(quantizer, *sampled, levels)])
        clip, error, unclipped = found[0]
        torch.testing.assert_close(error, found[1][1], rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(unclipped, found[1][2], rtol=1e-5, atol=1e-12)
        assert ((clip / found[1][0] - 1).abs() < 1e-5).float().mean() > 0.7, "of two bounds of the same error, either"


@pytest.mark.parametrize(("bits", "saved"), [(3, 0.6), (4, 0.45), (5, 0.3)])
def test_behind_a_relu_clipping_is_worth_a_part_of_a_bit(bits, saved):
    x = torch.randn(1, 50_000).relu()
    _, errors = search(LeastSquares(), x, of(x), LEVELS, x.numel())
    plain = error_at(MinMax(), x, of(x), bits, None)
    assert float(errors[bits - 2]) < plain * 4**-saved


def test_a_channel_has_its_own_bound_in_units_of_its_own_magnitude():
    x = torch.randn(4, 3, 500) * torch.tensor([1.0, 10, 100, 1000]).view(4, 1, 1)
    stats = of(x, 0)
    values, per_channel = sample(x, stats, (0,))
    clips, errors = search(LeastSquares(exact_zero=False), values, per_channel, LEVELS, 1500)
    grid = LeastSquares(exact_zero=False).grid(stats, torch.tensor(4.0), True, clips[2])
    scales = grid.scale.flatten()
    assert (scales[1:] / scales[:-1] / 10 - 1).abs().max() < 0.1
    assert (rounded(x, grid, torch.float32) - x).square().mean() < 1.3 * errors[2]


@pytest.mark.parametrize("shift", [0.0, 2.5, -2.5], ids=["both signs", "positive", "negative"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_stays_zero(bits, shift):
    x = torch.randn(400) + shift
    x[::7] = 0
    stats = of(x)
    clips, _ = search(LeastSquares(), *sample(x, stats), LEVELS, x.numel())
    for clip in (None, clips[bits - 2]):
        y = rounded(x, LeastSquares().grid(stats, torch.tensor(float(bits)), clip is None, clip), torch.float32)
        assert not y[x == 0].any() and len(y.unique()) <= 2**bits


@pytest.mark.parametrize("bits", [2, 3])
def test_without_exact_zero_symmetric_weights_have_levels_at_halves_of_a_step(bits):
    half = torch.randn(300)
    x = torch.cat([half, -half])
    stats = of(x)
    clips, _ = search(LeastSquares(exact_zero=False), *sample(x, stats), LEVELS, x.numel())
    grid = LeastSquares(exact_zero=False).grid(stats, torch.tensor(float(bits)), True, clips[bits - 2])
    steps = (rounded(x, grid, torch.float32) / grid.scale).unique()
    torch.testing.assert_close(steps, torch.arange(2**bits) - (2**bits - 1) / 2, rtol=0, atol=1e-4)
    _, centred = search(LeastSquares(exact_zero=False), *sample(x, stats), LEVELS, x.numel())
    _, with_zero = search(LeastSquares(), *sample(x, stats), LEVELS, x.numel())
    assert centred[bits - 2] < with_zero[bits - 2]


def test_the_gradient_passes_straight_through_what_is_clipped():
    x = torch.tensor([-5.0, -0.3, 0.0, 0.4, 9.0], requires_grad=True)
    grid = LeastSquares().grid(of(x.detach()), torch.tensor(3.0), False, torch.tensor(0.5))
    y = fake_quantize(x, grid, True)
    assert y.detach().abs().max() < 2, "both ends are cut off"
    y.backward(torch.arange(5.0))
    assert torch.equal(x.grad, torch.arange(5.0))


def small(space=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    ldp_search.apply(model, space or "ldp", example_inputs=torch.zeros(1, 2, 6, 6), **options)
    return model, ldp_search.controller(model)


def pictures(scale: float = 1.0, tail: float = 0.0):
    x = torch.randn(8, 2, 6, 6)
    return scale * x * (tail * torch.randn_like(x)).exp()


def trained(steps=5, **options):
    model, ldp = small(sense_every=2, **options)
    for step in range(steps):
        model(pictures()).square().mean().backward()
        ldp.step((step + 1) / (2 * steps))
    return model, ldp


def test_a_bound_follows_the_data_between_two_searches_and_fits_any_bits_at_once():
    model, ldp = small(sense_every=100)
    x = pictures()
    model(x)  # the first step senses
    ldp.step(0.01)
    site, errors = ldp.sites[0], []
    for bits in (2.0, 3.0, 5.0, 8.0):
        with torch.no_grad():
            ldp.tensors.bits[:, :2] = bits
        grids = [site._input_grid(data, True)(site.bits[1]) for data in (x, 10 * x)]
        pairs = [
            (rounded(data, grid, torch.float32) - data).square().mean() for data, grid in zip((x, 10 * x), grids, strict=True)
        ]
        assert float(pairs[1] / pairs[0]) == pytest.approx(100, rel=1e-3)
        best = search(ldp.input_quantizer, *sample(x, of(x)), torch.tensor([bits]), x.numel())[1]
        assert float(pairs[0]) <= 1.1 * float(best)
        errors.append(float(pairs[0]))
    assert errors == sorted(errors, reverse=True)


def test_steps_that_do_not_sense_move_no_bound():
    model, ldp = small(sense_every=2)
    tables = []
    for step in range(4):
        model(pictures()).mean().backward()
        ldp.step((step + 1) / 4)
        tables.append((ldp.tensors.x_bounds.clone(), ldp.tensors.w_bounds.clone()))
    for one, other, moved in ((0, 1, False), (1, 2, True), (2, 3, False)):
        assert torch.equal(tables[one][0], tables[other][0]) != moved
    assert torch.allclose(tables[0][0][:, 0], torch.tensor(MOMENTUM))


def test_finalize_searches_the_bounds_anew():
    model, ldp = trained()
    other = [pictures(3.0, tail=1.5) for _ in range(4)]  # heavier tails than it was trained on
    before = ldp.tensors.x_bounds.clone()
    ldp.finalize([(x,) for x in other])
    model.eval()
    table = ldp.sites[0].x_bounds[0]
    assert float(table[0]) == pytest.approx(1 - (1 - MOMENTUM) ** 4, rel=1e-5), "nothing of the training is left in it"
    found = torch.zeros_like(table)
    for x in other:
        bounds, _ = search(ldp.input_quantizer, *sample(x, of(x)), ldp.levels, x.numel())
        found.lerp_(torch.cat([torch.ones(1), bounds]), MOMENTUM)
    torch.testing.assert_close(table, found)
    assert not torch.allclose(before[0, 1:] / before[0, 0], table[1:] / table[0], rtol=0.05)
    expected = model(other[0])
    model(other[1])
    assert torch.equal(model(other[0]), expected) and torch.equal(ldp.sites[0].x_bounds[0], table), "evaluation moves nothing"


def test_bounds_are_part_of_the_saved_state_and_of_copies():
    model, ldp = trained()
    x = pictures(2.0)
    expected = model.eval()(x)
    again, other = small()
    again.load_state_dict(model.state_dict())
    assert not other.tensors.x_bounds.any()
    other.load_state_dict(ldp.state_dict())
    assert torch.equal(again.eval()(x), expected)
    for name in ("x_bounds", "w_bounds"):
        assert getattr(ldp.tensors, name).any() and torch.equal(getattr(other.tensors, name), getattr(ldp.tensors, name))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        ldp_search.controller(twin).tensors.x_bounds.zero_()
        assert torch.equal(model(x), expected), "a copy has its own"
    state = ldp.state_dict()
    old = state | {"tensors": {f"_{k}": v for k, v in state["tensors"].items()}}
    other.tensors.x_bounds.zero_()
    other.load_state_dict(old)
    assert torch.equal(other.tensors.x_bounds, ldp.tensors.x_bounds), "a file with the names of earlier versions"


def test_bounds_of_inputs_are_averaged_over_ranks_those_of_weights_are_the_same_everywhere():
    _, ldp = trained(1)
    assert any(t is ldp.tensors.x_bounds for t in ldp.tensors.of_the_batch(True))
    assert not any(t is ldp.tensors.w_bounds for t in ldp.tensors.of_the_batch(True))
    assert not any(t is ldp.tensors.x_bounds for t in ldp.tensors.of_the_batch(False))


def test_a_site_without_a_search_cuts_nothing_off():
    table = torch.zeros(1 + len(LEVELS))
    clip = bound_at(table, torch.tensor(4.0), LEVELS)
    x = torch.randn(100) * 10
    stats = of(x)
    grid, plain = (LeastSquares(exact_zero=False).grid(stats, torch.tensor(4.0), False, c) for c in (clip, None))
    torch.testing.assert_close(rounded(x, grid, torch.float32), rounded(x, plain, torch.float32))
