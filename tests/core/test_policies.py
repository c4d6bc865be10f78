"""Policies: shapes and ranges of all of them; the rules of the hand-made ones, step by step."""

import math

import pytest
import torch

import ldp_search
from ldp_search.core.bits.policies.budget import allocation_at_cost, plan_at, shift_to_cost, split_budget
from ldp_search.core.bits.problem import Problem, Signals
from ldp_search.core.registry import build, names


def problem(low=3.0, high=8.0, grad=(8.0, 8.0), layers=2, **options):
    lows = torch.tensor([[low, low, grad[0]]]).repeat(layers, 1)
    highs = torch.tensor([[high, high, grad[1]]]).repeat(layers, 1)
    group = torch.arange(layers).view(-1, 1).repeat(1, 3)
    macs = torch.arange(1.0, layers + 1, dtype=torch.float64)
    return Problem([f"layer{i}" for i in range(layers)], lows, highs, macs, group, layers, **options)


def signals(progress, loss=None, grads=None, spent=0.0, bits=None):
    loss = None if loss is None else torch.tensor(float(loss))
    return Signals(progress, bits, grads, loss, torch.tensor(spent, dtype=torch.float64))


def walk(policy, steps=20, p=None, loss=1.0):
    p, out = p or problem(target_cost=0.5), []
    out.append(policy.bind(p))
    for step in range(steps):
        grads = -torch.rand(len(p.layers), 3)
        out.append(policy.step(signals((step + 1) / steps, loss, grads, 0.5 * (step + 1) / steps, out[-1])))
    return out


@pytest.mark.parametrize("name", [n for n in names("policy") if n != "replay"])
def test_shape_and_range(name):
    p = problem(grad=(6.0, 8.0), target_cost=0.5)
    for bits in walk(build("policy", name), p=p):
        assert bits.shape == (2, 3) and bits.is_floating_point() and bits.isfinite().all()
        assert (bits >= p.low).all() and (bits <= p.high).all()


@pytest.mark.parametrize("name", [n for n in names("policy") if n != "replay"])
def test_state_goes_on_where_it_was(name):
    spec = {"name": name, "window": 2} if name == "progressive" else name
    p, torch_state = problem(target_cost=0.5), None
    whole, first, second = (build("policy", spec) for _ in range(3))
    torch.manual_seed(3)
    expected = walk(whole, 20, p)
    torch.manual_seed(3)
    bits = first.bind(p)
    for step in range(20):
        policy = first if step < 10 else second
        if step == 10:
            torch_state = torch.get_rng_state()
            second.bind(p)
            second.load_state_dict(first.state_dict())
            torch.set_rng_state(torch_state)
        bits = policy.step(signals((step + 1) / 20, 1.0, -torch.rand(2, 3), 0.5 * (step + 1) / 20, bits))
        assert torch.equal(bits, expected[step + 1])


@pytest.mark.parametrize(
    ("low", "high", "steps", "cycles"),
    [(3, 8, 64, 1), (3, 8, 1000, 32), (4, 6, 99, 7), (2, 16, 500, 5), (5, 8, 10, 32), (3, 8, 44, 22)],
)
def test_cyclic_is_the_published_formula_at_every_step(low, high, steps, cycles):
    period = steps / cycles
    found = walk(build("policy", {"name": "cyclic", "cycles": cycles}), steps, problem(float(low), float(high)))
    for t in range(steps):
        value = low + 0.5 * (high - low) * (1 + math.cos(math.pi * ((t % period) / period) + math.pi))
        bits = found[t][0, 0].item()
        assert abs(bits - value) < 1e-4
        assert round(bits) == round(value) or abs(value % 1 - 0.5) < 1e-6  # an exact tie may fall to either side


def test_ramp():
    found = walk(build("policy", {"name": "ramp", "first": 0.2, "last": 0.8}), 10)
    assert [b[0, 0].item() for b in found] == pytest.approx([4 + 0.3 * step for step in range(11)])


@pytest.mark.parametrize(("bits", "expected"), [(None, 8), (6, 6), (1, 3), (20, 8), (4.5, 4.5)])
def test_static(bits, expected):
    for found in walk(build("policy", {"name": "static", "bits": bits}), 3, problem(grad=(5.0, 8.0))):
        assert found.tolist() == [[expected, expected, 8]] * 2


@pytest.mark.parametrize(("bits", "expected"), [(None, 8), (6, 6), (1, 5), (20, 8)])
def test_static_gradients(bits, expected):
    for found in walk(build("policy", {"name": "static", "bits": 4, "grad_bits": bits}), 3, problem(grad=(5.0, 8.0))):
        assert found.tolist() == [[4, 4, expected]] * 2


def test_progressive_moves_on_when_the_loss_stalls():
    policy = build("policy", {"name": "progressive", "window": 2})
    policy.bind(problem(grad=(6.0, 8.0)))
    # Means of windows of two; the scale is the mean of the first ten windows, eps is 0.05, then 0.015, then 0.0045.
    means = [10, 8, 7.9, 7.8, 7.7, 7.6] + [7.5, 7.3, 7.3, 7.3, 7.2] + [7.2] * 5 + [7.2] * 9
    stages, bits = [], None
    for i, mean in enumerate(means):
        for loss in (mean - 1, mean + 1):
            bits = policy.step(signals((i + 1) / 100, loss))
        stages.append(tuple(bits[0].tolist()))
    third, fourth, sixth, eighth = (3, 3, 6), (4, 4, 6), (6, 6, 8), (8, 8, 8)
    # window 6: drops .1 each, 0.1 / 8.17 <= .05. Window 11: the largest, 0.2 / 7.9, is above .015. Windows 12 to 15: the 0.2
    # has left, 0.1 / 7.9 is within. Then flat: five windows after a move the next is due.
    moves = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
    assert [stages[0], *(stages[i] for i in moves)] == [third, fourth, sixth, eighth]
    assert moves == [5, 11, 16]


@pytest.mark.parametrize("steps", [7, 10, 30])
def test_a_part_of_a_plan_begins_with_its_step_whatever_the_last_digit(steps):
    plan = [(0.0, "below"), (sum([1 / steps] * 3), "above")]  # a sum, as progress is in many loops
    assert [plan_at(plan, step / steps) for step in range(5)] == ["below"] * 3 + ["above"] * 2


@pytest.mark.parametrize("target", [None, 0.35, 0.5, 0.9])
def test_random_meets_its_target_and_differs_between_seeds(square, pretend, target):
    drawn = []
    for seed in range(3):
        ldp = square(6, policy="random", target_cost=target, seed=seed)
        history = pretend(ldp, 200, torch.ones(6))
        drawn.append(history[0])
        if target is not None:
            assert ldp.cost().mean_relative == pytest.approx(target, rel=0.01)
        assert sum(history[i] != history[i - 1] for i in range(1, 200)) <= 1
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert len(set(drawn[0].values())) > 1


@pytest.mark.parametrize("equal", [False, True])
def test_neighbouring_allocations_enclose_a_budget(equal):
    p = problem(layers=5)
    bits = torch.full((5, 3), 5.5) if equal else 3 + 5 * torch.rand(5, 3)
    p.group = torch.arange(15).view(5, 3)
    p.groups = 15
    for target in (0.3, 0.4, 0.55, 0.7, 0.99):
        below, above = allocation_at_cost(p, bits, target)
        costs = [float(p.relative_cost(b)) for b in (below, above)]
        assert costs[0] <= target <= costs[1] and torch.equal(below, below.round())
        assert int((below != above).sum()) <= 1
        plan = split_budget(below, above, p, target, 0.5)
        ends = [start for start, _ in plan[1:]] + [1.0]
        spent = sum((end - start) * float(p.relative_cost(b)) for (start, b), end in zip(plan, ends, strict=True))
        assert spent / 0.5 == pytest.approx(target, abs=1e-12)
        real = torch.minimum(torch.maximum(bits + shift_to_cost(p, bits, target), p.low), p.high)
        assert float(p.relative_cost(real)) == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize("target", [0.25, 0.3165, 0.4])
def test_learned_begins_near_its_target(target):
    p = problem(grad=(3.0, 8.0), layers=20, target_cost=target)
    p.group, p.groups = torch.arange(60).view(20, 3), 60
    start = build("policy", "learned").bind(p)
    assert target - 0.01 < float(p.relative_cost(start)) <= target
    assert start.max() - start.min() <= 1


def replayed(square, path, steps, **options):
    ldp = square(3, policy={"name": "replay", "path": str(path)}, **options)
    out = []
    for step in range(steps):
        out.append(ldp.bits())
        ldp.step((step + 1) / steps)
    return out


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_replay_of_a_trajectory_and_of_an_allocation(square, pretend, tmp_path, suffix):
    ldp = square(3, target_cost=0.5, policy="bit_gradient")
    during = [ldp.bits(), *pretend(ldp, 100, [1.0, 4.0, 16.0])][:-1]
    assert len({tuple(b.values()) for b in during}) > 5
    ldp.trajectory.save(tmp_path / f"schedule.{suffix}")
    assert replayed(square, tmp_path / f"schedule.{suffix}", 100) == during
    allocation = ldp.finalize()
    allocation.save(tmp_path / "allocation.json")
    assert replayed(square, tmp_path / "allocation.json", 7) == [allocation.layers] * 7


def test_replay_says_what_it_lacks(square, tmp_path):
    with pytest.raises(ValueError, match="'replay' needs path=FILE"):
        square(policy="replay")
    with pytest.raises(FileNotFoundError, match="give the schedule.parquet of a run"):
        square(policy={"name": "replay", "path": str(tmp_path / "none.parquet")})
    ldp_search.Allocation({"other": ldp_search.Bits(4, 4, 8)}).save(tmp_path / "a.json")
    with pytest.raises(ValueError, match="has no bits for layer '0'.*Known: other"):
        square(policy={"name": "replay", "path": str(tmp_path / "a.json")})


def test_paper_moves_down_by_cost_and_up_by_gradient():
    policy = build("policy", {"name": "ldp_sgd", "start": 0.5, "lr": 0.1})
    p = problem(target_cost=0.3)
    start = policy.bind(p).clone()
    assert start[:, :2].unique().tolist() == [5.5]
    up = policy.step(signals(0.1, grads=torch.tensor([[-1.0, 0, 0], [0, 0, 0]]), bits=start))
    assert up[0, 0] > 5.5 > up[1, 0], "the layer with a gradient gains, the cost pushes the other one down"
    policy.bind(problem(target_cost=0.99))
    idle = policy.step(signals(0.1, grads=torch.tensor([[-0.1, 0, 0], [0.1, 0, 0]]), bits=start))
    # below the target there is no force: p -= lr * dL/db * (b_max - b_min)
    assert idle[:, 0].tolist() == pytest.approx([5.5 + 0.1 * 0.1 * 25, 5.5 - 0.1 * 0.1 * 25])
    for _ in range(50):
        low = policy.step(signals(0.2, grads=torch.ones(2, 3), bits=start))
    assert low[:, :2].unique().tolist() == [3.0]


def test_stages_must_match():
    with pytest.raises(ValueError, match="one value a stage; received"):
        build("policy", {"name": "progressive", "forward_bits": [3, 4], "grad_bits": [6]})
