"""The policy bit_gradient: budgets, sensitivities, freezing, prices."""

import math

import pytest
import torch
from breadth import breadth
from test_learned import covering
from torch import nn

import ldp_search

CHOICES = {  # a covering table: every pair of choices occurs
    "granularity": ("layer", "block", "network"),
    "tie": (True, False),
    "relaxation": ("round", "sample", "interpolate"),
    "quantizer": ("minmax", "symmetric", "clip"),
    "start": ("target", "low", "high", "middle"),
    "target": (0.5, 0.35, 0.8),
}


def toy(steps, space, seed=0):
    """A real, small training; returns its controller and the bits after every step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.randn(64, 6)
    target = torch.tanh(x[:, :3] * x[:, 3:])
    ldp_search.apply(model, space, example_inputs=x)
    ldp, optimizer = ldp_search.controller(model), torch.optim.SGD(model.parameters(), lr=0.1)
    history = []
    for step in range(steps):
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        ldp.step((step + 1) / steps, loss=loss)
        optimizer.step(), optimizer.zero_grad()
        history.append(ldp.parameters()["bits"].detach().clone())
    return ldp, history


@breadth("row", covering(CHOICES), always=4, ids=lambda row: "-".join(map(str, row)))
def test_a_training_ends_on_its_target_cost(row):
    choice = dict(zip(CHOICES, row, strict=True))
    steps = 200 if choice["start"] == "high" else 100  # down from there takes long
    ldp, history = toy(steps, {
        "policy": {"name": "bit_gradient", "start": choice["start"]}, "target_cost": choice["target"], "bits": (3, 8),
        "granularity": choice["granularity"], "tie": choice["tie"], "relaxation": choice["relaxation"],
        "weight_quantizer": choice["quantizer"], "input_quantizer": choice["quantizer"],
    })  # fmt: skip
    assert ldp.cost().mean_relative == pytest.approx(choice["target"], rel=0.01)
    last = torch.stack(history[-steps // 10 :])
    assert torch.equal(last, last.round()) and len(last.unique(dim=0)) <= 2, "the last tenth is frozen, at integers"


GRID = {
    "target": (0.4, 0.7), "granularity": ("network", "layer"), "tie": (False, True), "relaxation": ("round", "sample"),
    "start": ("low", "middle", "target"),
}  # fmt: skip


@breadth("row", covering(GRID), always=3, ids=lambda row: "-".join(map(str, row)))
def test_fifty_steps_are_enough_for_a_budget(square, pretend, row):
    options = dict(zip(GRID, row, strict=True))
    policy, target = {"name": "bit_gradient", "start": options.pop("start")}, options.pop("target")
    ldp = square(3, target_cost=target, policy=policy, **options)
    pretend(ldp, 50, [1.0, 8.0, 64.0])
    assert ldp.cost().mean_relative == pytest.approx(target, rel=0.01)


@breadth("ratio", [1, 2, 4, 8], always=[4])
def test_bits_follow_the_known_sensitivities(square, pretend, ratio):
    """rms(dL/db) = k 2^-b, so s = k^2, and b* = log2(s / (price dC/db)) / 2 differs by log2(ratio) - log2(price ratio) / 2."""
    ldp = square(2, target_cost=0.5, tie=True, bits=(2, 12), policy={"name": "bit_gradient", "smoothing": 0.995})
    pretend(ldp, 800, [1.0, float(ratio)])
    real = ldp.policy.state["bits"].double()
    price = real + 8 + real + 8  # dC/db_w + dC/db_x = 2 (b + b_g) macs
    expected = math.log2(ratio) - float(torch.log2(price[1] / price[0])) / 2
    assert float(real[1] - real[0]) == pytest.approx(expected, abs=0.2)


def test_a_dead_layer_does_not_stop_the_others(square, pretend):
    ldp = square(4, target_cost=0.5, tie=True, policy="bit_gradient")
    history = pretend(ldp, 100, [0.0, 1.0, 4.0, 16.0])
    for bits in (history[40], history[-1]):
        dead, *alive = [b.weight for b in bits.values()]
        assert dead == 3 and alive[0] < alive[1] < alive[2]


def test_broken_gradients_do_no_harm(square):
    ldp = square(2, target_cost=0.5, policy="bit_gradient")
    for step in range(40):
        ldp.parameters()["bits"].grad.fill_((float("nan"), float("inf"), -1.0)[step % 3])
        ldp.step((step + 1) / 40)
    assert ldp.parameters()["bits"].isfinite().all() and ldp.cost().mean_relative == pytest.approx(0.5, rel=0.01)


def test_warm_up_and_freeze_keep_the_bits(square, pretend):
    ldp = square(3, target_cost=0.5, policy={"name": "bit_gradient", "warmup": 0.3, "freeze": 0.3})
    before = ldp.bits()
    history = pretend(ldp, 100, [1.0, 8.0, 64.0])
    assert all(bits == before for bits in history[:30])
    assert any(bits != before for bits in history[30:70])
    tail = [tuple(h.values()) for h in history[70:]]
    assert sum(a != b for a, b in zip(tail, tail[1:], strict=False)) <= 1


def test_a_weight_on_the_cost_trades_bits(square, pretend):
    costs = []
    for weight in (1e-8, 1e-2, 1e-1, 1, 1e4):
        ldp = square(3, space={"cost_weight": weight, "policy": {"name": "bit_gradient", "lr": 0.2}})
        pretend(ldp, 150, [0.1, 1.0, 4.0], loss=1.0, sign=True)
        costs.append(ldp.cost().relative)
        bits = [b.weight for b in ldp.bits().values()]
        assert bits == sorted(bits)
    assert all(a > b for a, b in zip(costs, costs[1:], strict=False))
    assert costs[0] == 1 and costs[-1] == pytest.approx(0.297, abs=5e-4)


@pytest.mark.parametrize("loss", [0.0, -2.0, torch.tensor(1.5, dtype=torch.float64, requires_grad=True)])
def test_any_loss_can_be_given(square, pretend, loss):
    ldp = square(2, space={"cost_weight": 0.1, "policy": "bit_gradient"})
    pretend(ldp, 20, [1.0, 2.0], loss=loss, sign=True)
    assert ldp.parameters()["bits"].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs target_cost=.*or cost_weight"),
        ({"target_cost": 0.5, "bits": 8}, "'bit_gradient' learns bits, but every range is a single number"),
        ({"target_cost": 0.2}, "target_cost=0.2 cannot be met: the lowest bits everywhere cost 0.297"),
        ({"target_cost": 0.5, "policy": {"name": "bit_gradient", "start": "lo"}}, "Unknown start 'lo'.*Did you mean 'low'"),
        ({"target_cost": 0.5, "policy": {"name": "bit_gradient", "signal": "rm"}}, "Unknown signal 'rm'.*Did you mean 'rms'"),
        (
            {"target_cost": 0.5, "policy": {"name": "bit_gradient", "freeze": 0.6, "warmup": 0.6}},
            "together <= 1; received 0.6, 0.6",
        ),
        (
            {"target_cost": 0.5, "policy": {"name": "bit_gradient", "freez": 0.6}},
            "has no option 'freez'.*Did you mean 'freeze'",
        ),
    ],
)
def test_errors(mlp, options, message):
    with pytest.raises(ValueError, match=message):
        ldp_search.apply(mlp(), space={"policy": "bit_gradient"} | options, example_inputs=torch.zeros(1, 8))


@pytest.mark.parametrize("policy", ["bit_gradient", "ldp_sgd"])
def test_gradient_bits_cannot_be_learned(policy):
    with pytest.raises(ValueError, match="no gradient with respect to the gradient bits.*Give one number"):
        ldp_search.apply(torch.nn.Linear(4, 4), policy=policy, grad_bits=(6, 8), target_cost=0.5)
