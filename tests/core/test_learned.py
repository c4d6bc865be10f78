"""The learned policy: budgets, bits of least damage, warm-up and freezing, prices, what is refused."""

import itertools
import math

import pytest
import torch
from breadth import breadth
from torch import nn

import ldp_search

CHOICES = {  # a covering table: every pair of choices occurs
    "granularity": ("layer", "block", "network"),
    "tie": (True, False),
    "split": (True, False),
    "relaxation": ("round", "sample"),
    "quantizer": ("mse", "minmax", "clip"),
    "start": ("target", "low", "high", "middle"),
    "target": (0.35, 0.2, 0.8),
    "steps": (50, 71),
}


def covering(choices: dict) -> list[tuple]:
    """Few rows of choices in which every pair of values occurs (greedy)."""
    every = list(itertools.product(*choices.values()))
    of_row = {row: set(itertools.combinations(enumerate(row), 2)) for row in every}
    missing, rows = set().union(*of_row.values()), []
    while missing:
        rows.append(max(every, key=lambda row: len(of_row[row] & missing)))
        missing -= of_row[rows[-1]]
    return rows


def toy(steps, space, **options):
    """A real, small training; returns its controller and the bits after every step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.randn(64, 6)
    target = torch.tanh(x[:, :3] * x[:, 3:])
    ldp_search.apply(model, space, example_inputs=x, **options)
    ldp, optimizer = ldp_search.controller(model), torch.optim.SGD(model.parameters(), lr=0.1)
    history = []
    for step in range(steps):
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        ldp.step((step + 1) / steps, loss=loss, optimizer=optimizer)
        optimizer.step(), optimizer.zero_grad()
        history.append(ldp.parameters()["bits"].detach().clone())
    return ldp, history


@breadth("row", covering(CHOICES), always=3, ids=lambda row: "-".join(map(str, row)))
def test_a_training_ends_on_its_target_cost(row):
    choice = dict(zip(CHOICES, row, strict=True))
    ldp, history = toy(choice["steps"], {
        "policy": {"name": "learned", "start": choice["start"]}, "target_cost": choice["target"], "bits": (2, 8),
        "grad_bits": (3, 8), "split_gradient": choice["split"], "granularity": choice["granularity"], "tie": choice["tie"],
        "relaxation": choice["relaxation"], "weight_quantizer": choice["quantizer"], "input_quantizer": choice["quantizer"],
        "grad_quantizer": "per_sample", "sense_every": 4,
    })  # fmt: skip
    assert ldp.cost().mean_relative == pytest.approx(choice["target"], rel=0.005)
    assert all(torch.equal(bits, bits.round()) for bits in history)
    last = torch.stack(history[-(choice["steps"] // 10) :])
    assert len(last.unique(dim=0)) <= 2, "the last tenth is frozen"


GRID = {
    "start": ("target", "low", "high", "middle"), "target": (0.2, 0.4, 0.7), "granularity": ("layer", "network"),
    "tie": (False, True), "steps": (50, 64),
}  # fmt: skip


@breadth("row", covering(GRID), always=2, ids=lambda row: "-".join(map(str, row)))
def test_fifty_steps_are_enough_for_a_budget(square, row):
    """Whatever the damages: here they change from step to step."""
    start, target, granularity, tie, steps = row
    ldp = square(3, target_cost=target, granularity=granularity, tie=tie, bits=(2, 8), grad_bits=(3, 8),
                 policy={"name": "learned", "start": start})  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        known(ldp, 10 ** torch.randn(3, 3, generator=draw, dtype=torch.float64))
        ldp.step((step + 1) / steps)
    assert ldp.cost().mean_relative == pytest.approx(target, rel=0.005)


def known(ldp, scale) -> None:
    """From here on the damages are scale (sites, kinds) times 4^-bits, and the learning rate is not rising."""
    ldp.sensor.warming_up, ldp.sensor._rate, ldp.sensing = False, 0.0, False
    curves = torch.as_tensor(scale, dtype=torch.float64)[..., None] * 4.0 ** -ldp.levels.double()
    ldp._damages = lambda: lambda: curves


def finish(ldp, steps, **options) -> list[dict]:
    history = []
    for step in range(steps):
        ldp.step((step + 1) / steps, **options)
        history.append(ldp.bits())
    return history


@breadth("ratio", [4, 16, 64], always=[16])
def test_a_bit_goes_where_it_saves_the_most_loss_for_its_operations(square, ratio):
    """S_1 = ratio S_0 of equal cost: half of log2(ratio) bits more, less half of log2(price ratio); and so for every kind."""
    ldp = square(2, target_cost=0.3, bits=(2, 12), grad_bits=(3, 12))
    known(ldp, [[1.0, 1.0, 1.0], [ratio, ratio, ratio]])
    finish(ldp, 50)
    rows = torch.tensor([list(bits) for bits in ldp.bits().values()], dtype=torch.float64)
    prices = rows.sum(1, keepdim=True) - rows
    expected = math.log2(ratio) / 2 - torch.log2(prices[1] / prices[0]) / 2
    assert ((rows[1] - rows[0]) - expected).abs().max() <= 1, "to the nearest integers"
    assert rows.std(1).max() < 1, "and where all kinds do the same damage they have the same bits"


def test_gradients_are_on_the_same_price_as_the_rest(square):
    ldp = square(3, target_cost=0.3165, bits=(2, 8), grad_bits=(3, 8), policy={"name": "learned", "inertia": 0.0})
    known(ldp, [[1.0, 1.0, 1e-3]] * 3)
    finish(ldp, 40)
    assert all(bits.grad == 3 and bits.weight > 4 and bits.input > 4 for bits in ldp.bits().values())
    ldp = square(3, target_cost=0.3165, bits=(2, 8), grad_bits=(3, 8), policy={"name": "learned", "grad_rate": 1e6})
    known(ldp, [[1.0, 1.0, 1e-3]] * 3)
    finish(ldp, 40)
    assert all(bits.grad > max(bits.weight, bits.input) for bits in ldp.bits().values()), "at another exchange rate"


def test_a_layer_that_does_no_damage_ends_at_the_lowest_bits(square):
    ldp = square(4, target_cost=0.5, tie=True)
    known(ldp, [[0.0] * 3, [1.0] * 3, [16.0] * 3, [256.0] * 3])
    history = finish(ldp, 50)
    for bits in (history[30], history[-1]):
        dead, *alive = [b.weight for b in bits.values()]
        assert dead == 3 and alive[0] < alive[1] < alive[2]


@breadth("broken", [float("nan"), float("inf")], always=1)
def test_a_broken_backward_does_no_harm(broken):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 6)
    ldp = ldp_search.controller(ldp_search.apply(model, "ldp", example_inputs=x, sense_every=2))
    for step in range(60):
        loss = model(x).square().mean()
        (loss * (broken if step % 8 == 0 else 1.0)).backward()
        model.zero_grad()
        ldp.step((step + 1) / 60)
    assert ldp.parameters()["bits"].isfinite().all() and ldp.sensor.curves(3).isfinite().all()
    assert ldp.cost().mean_relative == pytest.approx(0.3165, rel=0.005)


def test_warm_up_and_freeze_keep_the_bits(square):
    ldp = square(3, target_cost=0.5, policy={"name": "learned", "warmup": 0.3, "freeze": 0.3})
    before, draw, history = ldp.bits(), torch.Generator().manual_seed(0), []
    for step in range(50):
        known(ldp, 10 ** torch.randn(3, 3, generator=draw, dtype=torch.float64))
        ldp.step((step + 1) / 50)
        history.append(ldp.bits())
    assert all(bits == before for bits in history[:15])
    assert any(bits != before for bits in history[15:35])
    tail = [tuple(h.values()) for h in history[35:]]
    assert sum(a != b for a, b in zip(tail, tail[1:], strict=False)) <= 1


def test_inertia_keeps_bits_from_following_noise(square):
    changes = []
    for inertia in (0.0, 1.0):
        ldp = square(6, target_cost=0.4, bits=(2, 8), grad_bits=(3, 8), policy={"name": "learned", "inertia": inertia})
        draw, history = torch.Generator().manual_seed(0), []
        base = 10 ** torch.randn(6, 3, generator=draw, dtype=torch.float64)
        for step in range(50):
            known(ldp, base * 2 ** torch.randn(6, 3, generator=draw, dtype=torch.float64))
            ldp.step((step + 1) / 50)
            history.append(torch.tensor([list(b) for b in ldp.bits().values()]))
        changes.append(sum(int((a != b).sum()) for a, b in zip(history[10:], history[11:], strict=False)))
    assert changes[1] < changes[0] / 2


def test_a_weight_on_the_cost_trades_bits(square):
    costs = []
    for weight in (1e-6, 1e-2, 1e-1, 1, 1e4):
        ldp = square(3, space={"cost_weight": weight, "bits": (2, 8), "grad_bits": (3, 8)})
        known(ldp, [[0.1] * 3, [1.0] * 3, [4.0] * 3])
        finish(ldp, 50, loss=1.0)
        costs.append(ldp.cost().relative)
        bits = [b.weight for b in ldp.bits().values()]
        assert bits == sorted(bits)
    assert all(a > b for a, b in zip(costs, costs[1:], strict=False))
    assert costs[0] == 1 and costs[-1] == pytest.approx(16 / 192)


@pytest.mark.parametrize("loss", [0.0, -2.0, torch.tensor(1.5, dtype=torch.float64, requires_grad=True)])
def test_any_loss_can_be_given(square, loss):
    ldp = square(2, space={"cost_weight": 0.1})
    known(ldp, [[1.0] * 3] * 2)
    finish(ldp, 20, loss=loss)
    assert ldp.parameters()["bits"].isfinite().all()


def test_a_budget_out_of_reach_for_the_start_is_refused_when_the_operations_are_counted(mlp):
    space = {"target_cost": 0.3, "bits": (2, 8), "policy": {"name": "learned", "start": "high", "warmup": 0.5}}
    with pytest.raises(ValueError, match="cannot be met with start='high' and warmup=0.5.*would lie between 0.5.*start=target"):
        ldp_search.apply(mlp(), space, example_inputs=torch.zeros(1, 8))
    x, model = torch.zeros(2, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1000))
    late = space | {"fixed": {"1": 8}, "target_cost": 0.62, "policy": {"name": "learned", "warmup": 0.0}}
    ldp_search.apply(model, late)  # as long as both layers count alike it could be met
    for _ in range(2):
        with pytest.raises(ValueError, match="target_cost=0.62 cannot be met: the lowest bits everywhere cost"):
            model(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs target_cost=.*or cost_weight"),
        ({"target_cost": 0.5, "bits": 8}, "target_cost=0.5 cannot be met: the lowest bits everywhere cost 1.000"),
        ({"target_cost": 0.2}, "target_cost=0.2 cannot be met: the lowest bits everywhere cost 0.275"),
        ({"target_cost": 0.5, "policy": {"name": "learned", "start": "lo"}}, "Unknown start 'lo'.*Did you mean 'low'"),
        ({"target_cost": 0.5, "policy": {"name": "learned", "freeze": 0.6, "warmup": 0.6}}, "together <= 1; received 0.6, 0.6"),
        ({"target_cost": 0.5, "policy": {"name": "learned", "freez": 0.6}}, "has no option 'freez'.*Did you mean 'freeze'"),
        ({"target_cost": 0.5, "policy": {"name": "learned", "every": 2}}, "every must be within 0 and 0.5; received 2"),
        ({"target_cost": 0.5, "policy": {"name": "learned", "inertia": -1}}, "inertia must be within 0 and 4; received -1"),
        ({"target_cost": 0.5, "policy": {"name": "learned", "grad_rate": 0}}, r"grad_rate must be above 0 \(1 by theory\)"),
        ({"target_cost": 0.5, "sense_every": 0}, "sense_every must be a number of steps, 1 at least; received 0"),
        ({"target_cost": 0.5, "sense_every": 2.5}, "sense_every must be a whole number; received 2.5"),
    ],
)
def test_errors(mlp, options, message):
    with pytest.raises(ValueError, match=message):
        ldp_search.apply(mlp(), space=options, example_inputs=torch.zeros(1, 8))


@breadth("start", ["high", "middle", "low", "target"], always=["high", "target"])
def test_a_learning_rate_that_rises_for_long_costs_no_budget(square, start):
    ldp = square(3, target_cost=0.25, bits=(2, 8), grad_bits=(3, 8), policy={"name": "learned", "start": start})
    known(ldp, [[1.0, 1.0, 0.1]] * 3)
    ldp.sensor.warming_up = True
    history = finish(ldp, 50)
    held = sum(bits == history[0] for bits in history)
    assert held > 2, "the bits stay for a while"
    assert ldp.cost().mean_relative == pytest.approx(0.25, rel=0.005)
