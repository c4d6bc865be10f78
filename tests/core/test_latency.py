"""Measured latency as a budget: what a table says, the search against brute force, what is refused, a training within it."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from breadth import breadth
from test_learned import toy
from test_least_damage import damages, problem
from torch import nn

import ldp_search
from ldp_search.core.bits.latency import FORMAT, KIND, Latency, LatencyTable, kernel_of, shape_of
from ldp_search.core.bits.pairs import Pairs
from ldp_search.core.bits.reachable import check_limits
from ldp_search.core.bits.within_limits import LeastDamageWithin

CONTAINERS = torch.tensor([4.0, 32.0], dtype=torch.float64)
MIXED = torch.tensor([[1.0, 5.0], [4.0, 3.0], [2.0, 9.0]], dtype=torch.float64)  # the second is faster in floating point


def timed(target, low=2, containers=None):
    p = problem(low=low, high=6)
    return dataclasses.replace(p, target_latency=target, latency=Latency(CONTAINERS, MIXED, MIXED), containers=containers)


def every_allocation(p, widths=(2, 4, 6)):
    rows = list(itertools.product(widths, widths, (float(p.high[0, 2]),)))
    table = torch.tensor(rows, dtype=torch.float64)
    return table[torch.tensor(list(itertools.product(range(len(rows)), repeat=len(p.layers))))]


# -- what a table says ----------------------------------------------------------------------------------------------


def test_a_layer_takes_the_time_of_the_smallest_container_that_holds_both_its_bits():
    latency = Latency(CONTAINERS, MIXED, MIXED)
    for weight, input, place in ((2, 4, 0), (4, 4, 0), (4, 5, 1), (5, 2, 1), (16, 16, 1), (32, 32, 1)):
        bits = torch.tensor([[weight, input, 8]] * 3, dtype=torch.float32)
        assert latency.layer_times(bits).tolist() == MIXED[:, place].tolist()
        assert float(latency.total(bits)) == MIXED[:, place].sum()


def test_conversions_count_between_containers_and_not_in_a_network_all_in_one():
    alone = MIXED - torch.tensor([0.0, 2.0], dtype=torch.float64)
    latency = Latency(CONTAINERS, MIXED, alone)
    wide, narrow = torch.full((3, 3), 8.0), torch.full((3, 3), 4.0)
    assert float(latency.total(wide)) == alone[:, 1].sum() and float(latency.total(narrow)) == MIXED[:, 0].sum()
    narrow[1] = 8
    assert float(latency.total(narrow)) == 1 + 3 + 2


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.again, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.again(self.again(self.conv(x))).mean((2, 3)))


def example():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def table(model=None, inputs=None, whole=None, **changes):
    """A table of a model: every layer takes 10 in 8 bits and 30 in floating point, and the network what they take together."""
    searched = ldp_search.apply(model or Two(), space="ldp", example_inputs=example() if inputs is None else inputs)
    specs = ldp_search.controller(searched).specs
    times = {"8": {"us": 10.0, "spread": 1.0, "edges": 0.0}, "32": {"us": 30.0, "spread": 1.0, "edges": 0.0}}
    calls = sum(spec.calls for spec in specs.values())
    whole = whole or {"8": 10.0 * calls, "32": 30.0 * calls}
    rows = [{"shape": shape, "layers": [], "times": times} for shape in dict.fromkeys(map(shape_of, specs.values()))]
    return {
        "kind": KIND, "format": FORMAT, "target": "onnxruntime-cpu", "model": "two", "inputs": [[1, 3, 8, 8]], "batch": 1,
        "containers": [8, 32], "whole": whole, "rows": rows,
    } | changes  # fmt: skip


def applied(latency, **options):
    values = {"bits": [8, 16], "latency": latency, "target_cost": None, "target_latency": 0.7} | options
    return ldp_search.controller(ldp_search.apply(Two(), space="ldp", example_inputs=example(), **values))


def test_the_prediction_by_hand_with_what_is_beside_the_layers():
    latency = LatencyTable.of(table(whole={"8": 60.0, "32": 144.0})).of_layers(applied(table()).specs)
    numel = torch.tensor([3 * 64.0, 2 * 4 * 36.0, 4.0], dtype=torch.float64)
    calls = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    expected = torch.stack([10 * calls + 20 * numel / numel.sum(), 30 * calls + 24 * numel / numel.sum()], 1)
    torch.testing.assert_close(latency.alone, expected)
    fused = LatencyTable.of(table(whole={"8": 20.0, "32": 120.0})).of_layers(applied(table()).specs)
    torch.testing.assert_close(fused.alone[:, 0], 5 * calls)


def test_a_table_survives_its_file_and_sets_the_containers(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table()))
    space = applied(str(path)).space
    assert space.widths == (8, 16) and LatencyTable.load(path).content == space.latency
    path.unlink()
    again = type(space).from_dict(space.to_dict())
    assert again.latency_table.times == LatencyTable.of(table()).times, "a space holds the table itself"
    assert space.replace(containers=[4, 8, 16], bits=[4, 16]).widths == (4, 8, 16)


def test_containers_below_8_run_on_the_kernel_of_8():
    assert [kernel_of("onnxruntime-cpu", width) for width in (2, 4, 8, 16, 32)] == [8, 8, 8, 32, 32]


# -- the search -----------------------------------------------------------------------------------------------------


@breadth("prices", [(0.0, 0.5), (0.1, 1.0), (0.3, 3.0)], always=[(0.1, 1.0)])
def test_at_given_prices_the_search_comes_near_to_trying_all_bits(prices):
    for seed in range(4):
        p = timed(0.6, containers=(2, 4, 6))
        search = LeastDamageWithin(p, damages(p, seed, exact=False), p.levels, [prices[1]])
        found = search.at_price(prices[0], p.low)
        costs = torch.tensor([search.objective(prices[0], search.choice(bits)) for bits in every_allocation(p)])
        assert search.objective(prices[0], found) <= float(costs.min()) * 1.1 + 1e-9


@breadth("target", [0.45, 0.6, 0.8, 1.0], always=[0.6])
def test_within_a_budget_nothing_does_much_less_damage(target):
    p = timed(target, containers=(2, 4, 6))
    each, (limit,) = every_allocation(p), p.limits
    inside = torch.tensor([limit.share(bits) <= 1 + 1e-9 for bits in each])
    for seed in range(4):
        search = LeastDamageWithin(p, damages(p, seed), p.levels)
        below, above, _ = search.at_budget(None, p.low)
        assert limit.share(below.bits) <= 1 + 1e-9 and torch.equal(below.bits, above.bits)
        least = float(torch.stack([search.damage(bits).sum() for bits in each[inside]]).min())
        assert below.damage <= least * 1.25 + 1e-12


def test_one_kind_alone_saves_nothing_so_both_move():
    p = timed(0.5, containers=(4, 6))
    search = LeastDamageWithin(p, damages(p, 0), p.levels)
    assert search.count == p.groups + 3
    alone = search._changes(p.high.double(), -1.0)
    assert (alone.shares[0, : p.groups] == 0).all() and (alone.shares[0, p.groups :] != 0).any()
    kept = search._kept(p.high.double(), 1.0)
    assert search.keeps(kept) and (kept[1, :2] == 6).all(), "the layer that is faster in floating point stays in it"


def test_without_such_a_limit_there_are_no_pairs():
    p = dataclasses.replace(problem(), target_inference=0.5)
    assert Pairs(p, False).count == 0 and LeastDamageWithin(p, damages(p, 0), p.levels).count == p.groups


def test_layers_that_share_their_weights_bits_are_one_pair():
    p = timed(0.6)
    group = p.group.clone()
    group[1, 0] = group[0, 0]
    pairs = Pairs(dataclasses.replace(p, group=group))
    assert pairs.count == 2 and pairs.index[0, 0] == pairs.index[1, 1] != pairs.index[2, 0]
    assert (pairs.index[:, 2:] == pairs.count).all()


# -- what is refused ------------------------------------------------------------------------------------------------

WRONG = [
    ({"kind": "something"}, "that ldp_search.profile wrote"),
    ({"format": 0}, "must be of format 1; it is of 0"),
    ({"rows": []}, "must have rows"),
    ({"containers": [8]}, "ascending containers up to 32"),
    ({"whole": {"8": 1.0}}, "is not whole"),
    ({"whole": {"8": -1.0, "32": 2.0}}, "is not whole"),
    ({"whole": {"8": math.nan, "32": 2.0}}, "is not whole"),
    ({"rows": [{"shape": "a", "times": {"8": {"us": 1.0}}}]}, "is not whole"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_table_is_refused_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        applied(table(**changes))


def test_a_table_that_was_cut_short_is_refused(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table())[:-20])
    with pytest.raises(ValueError, match="not a whole table .* cut short"):
        applied(str(path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        applied(str(tmp_path / "none.json"))


def test_a_table_of_another_model_is_refused_and_the_model_stays_as_it_was():
    other = table()
    other["rows"] = other["rows"][:1]
    model = Two()
    with pytest.raises(ValueError, match="2 of 3 layers are not in it .again: Conv2d 4x4x3x3 .*of 'two'"):
        ldp_search.apply(
            model, space="ldp", example_inputs=example(), latency=other, target_latency=0.7, bits=[8, 16], target_cost=None
        )
    assert type(model.fc) is nn.Linear


def test_what_cannot_be_met_is_refused_with_what_can():
    with pytest.raises(ValueError, match=r"target_latency=0.2 cannot be met: the fastest containers everywhere take 0.333 of"):
        applied(table(), target_latency=0.2)
    with pytest.raises(ValueError, match="several containers of the table"):
        applied(table(), bits=[8, 8])
    with pytest.raises(ValueError, match=r"Widen them: bits=\[8,16\] containers=\[8,16\]\."):
        applied(table(), bits=[8, 16], containers=[4, 8])
    with pytest.raises(ValueError, match="needs what the device takes: latency=TABLE.json"):
        applied(None)
    with pytest.raises(ValueError, match="does not look at target_latency"):
        applied(table(), policy="static")
    p = dataclasses.replace(timed(0.45), weight_numel=torch.ones(3, dtype=torch.float64) * 2**20, target_size=0.76)
    with pytest.raises(ValueError, match="cannot be met together with"):
        check_limits(p)


# -- a training -----------------------------------------------------------------------------------------------------


@breadth(
    "more",
    [{}, {"target_cost": 0.45}, {"target_size": 6e-4, "containers": [4, 8, 16], "bits": [4, 16]}, {"granularity": "network"}],
    always=1,
    ids=lambda more: "-".join(more) or "alone",
)
def test_a_training_ends_within_its_latency_and_says_so(more):
    layers = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    found = table(layers, torch.randn(64, 6), whole={"8": 45.0, "32": 100.0})
    budgets = {"target_latency": 0.7, "latency": found, "bits": [8, 16], "sense_every": 4} | more
    ldp, history = toy(50, {"policy": "learned"} | budgets)
    cost = ldp.cost()
    assert cost.relative_latency <= 0.7 + 1e-9 and cost.latency_ms == pytest.approx(cost.relative_latency * 0.1)
    assert all(ldp.problem.relative_latency(bits) <= 0.7 + 1e-9 for bits in history), "from the first step on"
    forward = {min(16 if max(b.weight, b.input) > 8 else 8 for b in ldp.bits().values())}
    assert forward == {8}
    if "target_cost" in more:
        assert cost.mean_relative == pytest.approx(0.45, rel=0.005)
    if not more:
        both = [max(b.weight, b.input) for b in ldp.bits().values()]
        assert sorted(both) == [8, 8, 16], "what the budget leaves room for is used"
    assert f"latency {cost.relative_latency:.3f} of 0.7" in str(ldp.summary()) and "latency, now" in ldp._repr_html_()
    assert all(point.latency is not None for point in ldp.front(5).points)
    assert ldp.finalize().summary["relative_latency"] == pytest.approx(cost.relative_latency)
