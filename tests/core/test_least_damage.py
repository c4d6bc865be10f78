"""The bits of least damage: equal to trying all integer allocations, and to the closed form."""

import itertools
import math

import pytest
import torch
from breadth import breadth

from ldp_search.core.bits.coordinates import assign_groups
from ldp_search.core.bits.least_damage import LeastDamage
from ldp_search.core.bits.problem import Problem


def problem(layers=3, kinds=3, low=3, high=6, tie=False, granularity="layer", macs=(1.0, 3.0, 2.0)):
    names = [f"{i}" for i in range(layers)]
    lows, highs = torch.full((layers, kinds), float(low)), torch.full((layers, kinds), float(high))
    group, groups = assign_groups(names, lows, highs, granularity, tie)
    return Problem(names, lows, highs, torch.tensor(macs[:layers], dtype=torch.float64), group, groups)


def damages(p, seed, exact=True):
    """S 4^-b with S over three orders of magnitude; not exact: times random factors that keep it falling."""
    draw = torch.Generator().manual_seed(seed)
    s = 10 ** (3 * torch.rand(p.low.shape, generator=draw, dtype=torch.float64))
    curves = s[..., None] * 4.0 ** -p.levels.double()
    if not exact:
        curves = curves * (0.6 + 0.8 * torch.rand(curves.shape, generator=draw, dtype=torch.float64))
    return curves


def brute_force(p, curves, price):
    """The least objective over all integer allocations: each layer by itself, since layers do not share operations."""
    total = 0.0
    for layer in range(len(p.layers)):
        least = math.inf
        for row in itertools.product(p.levels.tolist(), repeat=p.low.shape[1]):
            bits = p.high.double().clone()
            bits[layer] = torch.tensor(row, dtype=torch.float64)
            cost = float(p.layer_costs(bits)[layer])
            damage = sum(float(curves[layer, k, int(b - p.levels[0])]) for k, b in enumerate(row))
            least = min(least, damage + price * cost)
        total += least
    return total


@pytest.mark.parametrize("kinds", [3, 4])
@pytest.mark.parametrize("exact", [True, False], ids=["S 4^-b", "measured"])
@breadth("price", [0.1, 1.0, 10.0], always=[1.0])
def test_the_search_finds_what_trying_all_allocations_of_three_layers_finds(kinds, exact, price):
    p = problem(kinds=kinds)
    for seed in range(3):
        curves = damages(p, seed, exact)
        found = LeastDamage(p, curves, p.levels).at_price(price, p.low)
        assert found.damage + price * found.cost == pytest.approx(brute_force(p, curves, price), rel=2e-3)


def test_the_bits_are_those_of_the_closed_form():
    p = problem(low=1, high=16)
    curves = damages(p, 5)
    s = curves[..., 0] * 4.0 ** float(p.levels[0])
    found = LeastDamage(p, curves, p.levels).at_price(0.5, p.low)
    closed = 0.5 * torch.log2(2 * math.log(2) * s / (0.5 * p.cost_gradient(found.bits)))
    assert ((found.bits - closed).abs() <= 0.75).all(), "integers next to b* = log2(2 ln2 S / (price dC/db)) / 2"


@pytest.mark.parametrize(("tie", "granularity"), [(True, "layer"), (False, "network"), (True, "network"), (False, "block")])
def test_coordinates_that_share_their_bits_are_chosen_together(tie, granularity):
    p = problem(tie=tie, granularity=granularity)
    curves = damages(p, 1)
    found = LeastDamage(p, curves, p.levels).at_price(1.0, p.low)
    for group in range(p.groups):
        assert len(found.bits[p.group == group].unique()) == 1
    allocations = itertools.product(p.levels.tolist(), repeat=p.groups)
    spread = (torch.tensor(row, dtype=torch.float64)[p.group] for row in allocations)
    search = LeastDamage(p, curves, p.levels)
    best = min((search.choice(bits) for bits in spread), key=lambda c: c.damage + c.cost) if p.groups <= 6 else None
    if best is not None:
        assert found.damage + found.cost == pytest.approx(best.damage + best.cost, rel=1e-2)


@pytest.mark.parametrize("budget", [0.3, 0.45, 0.6, 0.8, 0.95])
def test_a_budget_is_used_to_within_one_change_and_never_exceeded(budget):
    p = problem()
    for seed in range(4):
        search = LeastDamage(p, damages(p, seed, exact=False), p.levels)
        best, dearer, price = search.at_budget(budget, p.low)
        assert best.cost <= budget < dearer.cost
        again, _, _ = search.at_budget(budget, best.bits, price)
        assert again.damage == pytest.approx(best.damage, rel=0.02), "the same found from nearby"


def test_a_budget_out_of_reach_gives_the_nearest_end():
    p = problem()
    search = LeastDamage(p, damages(p, 0), p.levels)
    assert torch.equal(search.at_budget(0.01, p.low)[0].bits, p.low.double())
    assert torch.equal(search.at_budget(1.0, p.low)[0].bits, p.high.double())


def test_where_nothing_shows_damage_the_budget_is_used_up_all_the_same():
    p = problem()
    best, dearer, _ = LeastDamage(p, torch.zeros(3, 3, len(p.levels)), p.levels).at_budget(0.6, p.low)
    assert 0.5 < best.cost <= 0.6 < dearer.cost


def test_the_front_falls_from_the_highest_bits_to_the_lowest():
    p = problem()
    front = LeastDamage(p, damages(p, 2), p.levels).front(12)
    assert front[0].cost == pytest.approx(1) and torch.equal(front[-1].bits, p.low.double())
    costs, losses = [c.cost for c in front], [c.damage for c in front]
    assert costs == sorted(costs, reverse=True) and losses == sorted(losses), "less cost, more damage"


@breadth("price", [0.003, 0.1, 1.0], always=[0.1])
def test_a_layer_whose_gradients_share_their_bits_leaves_the_others_free(price):
    """Under `split_gradient`, a product outside of layers rounds its gradient once."""
    p = problem(layers=2, kinds=4, macs=(1.0, 3.0))
    p.group[1, 3] = p.group[1, 2]
    curves = damages(p, 3)
    found = LeastDamage(p, curves, p.levels).at_price(price, p.low)
    assert found.bits[1, 2] == found.bits[1, 3]
    least = math.inf
    for rows in itertools.product(
        itertools.product(p.levels.tolist(), repeat=4), itertools.product(p.levels.tolist(), repeat=3)
    ):
        bits = torch.tensor([rows[0], (*rows[1], rows[1][2])], dtype=torch.float64)
        index = (bits - p.levels[0]).long()
        cost = float(p.layer_costs(bits).sum())
        least = min(least, float(curves.gather(2, index[..., None]).sum()) + price * cost)
    assert found.damage + price * found.cost == pytest.approx(least, rel=2e-3)


def test_a_group_that_costs_nothing_does_not_end_the_way_to_a_budget():
    p = problem(macs=(0.0, 3.0, 2.0))
    found = LeastDamage(p, damages(p, 2), p.levels).towards(p.low, budget=0.5 * float(p.relative_cost(p.high)), tolerance=0.02)
    assert found.cost == pytest.approx(0.5 * float(p.relative_cost(p.high)), rel=0.1)


@pytest.mark.parametrize("budget", [0.05, 1.0])
def test_the_way_to_a_far_budget_takes_one_bit_at_a_time(budget):
    p = problem(macs=(1.0, 3.0, 2.0))
    search, bits = LeastDamage(p, damages(p, 2), p.levels), torch.round((p.low + p.high) / 2).double()
    found = search.towards(search.moved(0.1, bits, 0.25).bits, budget, 0.01, bits)
    assert (found.bits - bits).abs().max() == 1
    assert abs(found.cost - budget) < abs(float(p.relative_cost(bits)) - budget)
