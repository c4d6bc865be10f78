"""What rounding is expected to cost, said beforehand: damage(), front(), and their line in the summary."""

import pytest
import torch
from torch import nn

import ldp_search


def measured(steps=6, **options):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 6)
    ldp = ldp_search.controller(ldp_search.apply(model, "ldp", example_inputs=x, **({"sense_every": 2} | options)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        (model(x) - x[:, :2].abs()).square().mean().backward()
        ldp.step((step + 1) / 20, optimizer=optimizer)
        optimizer.step()
    return ldp


@pytest.mark.parametrize("split", [False, True])
def test_the_damage_is_told_by_layer_by_kind_and_in_all(split):
    ldp = measured(split_gradient=split)
    found = ldp.damage()
    kinds = ["weight", "input", "grad", *(["weight_grad"] if split else [])]
    assert list(found.layers) == list(ldp.layers) and all(list(row) == kinds for row in found.layers.values())
    assert list(found.kinds) == kinds and all(value > 0 for value in found.kinds.values())
    for kind in kinds:
        assert found.kinds[kind] == pytest.approx(sum(row[kind] for row in found.layers.values()))
    assert found.total == pytest.approx(sum(found.kinds.values()))
    with torch.no_grad():
        ldp.tensors.bits.copy_(ldp.problem.high)
    assert ldp.damage().total < found.total / 10, "at the highest bits there is little"


def test_the_front_answers_what_another_cost_would_do():
    ldp = measured()
    front = ldp.front(12)
    costs, damages = [p.cost for p in front.points], [p.damage for p in front.points]
    assert costs == sorted(costs, reverse=True) and damages == sorted(damages) and len(costs) > 6
    assert costs[0] == pytest.approx(1) and costs[-1] == pytest.approx(float(ldp.problem.relative_cost(ldp.problem.low)))
    assert front.now.cost == pytest.approx(ldp.cost().relative) and front.now.damage == pytest.approx(ldp.damage().total)
    assert front.now.bits == {name: tuple(bits) for name, bits in ldp.bits().items()}
    asked = front.at(0.25)
    assert asked.cost <= 0.25 and all(p.damage >= asked.damage for p in front.points if p.cost <= 0.25)
    with torch.no_grad():
        ldp.tensors.bits.copy_(torch.tensor([list(row) for row in asked.bits.values()], dtype=torch.float32))
    assert ldp.cost().relative == pytest.approx(asked.cost)
    assert ldp.damage().total == pytest.approx(asked.damage, rel=0.01), "its bits do what it says"
    with pytest.raises(ValueError, match="No bits of this space cost 0.01: the lowest cost 0.0"):
        front.at(0.01)


def test_no_bits_of_the_same_cost_do_less_than_the_front():
    ldp = measured()
    front = ldp.front(25)
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        spread = torch.rand(ldp.problem.low.shape, generator=draw)
        with torch.no_grad():
            ldp.tensors.bits.copy_(torch.round(ldp.problem.low + (ldp.problem.high - ldp.problem.low) * spread))
        assert front.at(ldp.cost().relative).damage <= ldp.damage().total * 1.25


def test_the_summary_tells_the_damage_once_it_is_known():
    assert "expected loss from rounding" not in measured(steps=0).summary()
    ldp = measured()
    line = next(line for line in ldp.summary().splitlines() if line.startswith("expected loss from rounding"))
    assert f"{ldp.damage().total:.3g}" in line and all(kind in line for kind in ("weight", "input", "grad"))


def test_what_nothing_measures_is_refused_with_what_to_do(mlp):
    fixed = ldp_search.controller(ldp_search.apply(mlp(), "static", example_inputs=torch.zeros(1, 8)))
    for ask in (fixed.damage, fixed.front):
        with pytest.raises(ValueError, match="'static' does not measure what rounding costs the loss; .*policy='learned'"):
            ask()
    early = measured(steps=0)
    with pytest.raises(ValueError, match="Nothing is measured yet: .* first training step, and every 2 steps from there. Run"):
        early.damage()
    with pytest.raises(ValueError, match="Nothing is measured yet: that happens at every training step. Run"):
        measured(steps=0, sense_every=1).damage()


def test_a_step_before_any_backward_is_no_measurement(mlp):
    ldp = ldp_search.controller(ldp_search.apply(mlp(), "ldp", example_inputs=torch.zeros(1, 8)))
    ldp.step(0.1)
    with pytest.raises(ValueError, match="Nothing is measured yet"):
        ldp.damage()


def test_later_the_noise_of_gradients_costs_less_as_the_learning_rate_falls():
    ldp = measured()
    before = ldp.damage()
    ldp.sensor.rates /= 4
    after = ldp.damage()
    assert after.kinds["grad"] == pytest.approx(before.kinds["grad"] / 4, rel=0.01)
    assert after.kinds["weight"] == pytest.approx(before.kinds["weight"], rel=0.01)


def test_both_are_printed_as_tables():
    ldp = measured(split_gradient=True)
    for shown in (ldp.damage(), ldp.front(12)):
        page, (names, *rows) = shown._repr_html_(), shown.table()
        assert all(f">{cell}<" in page for cell in names if cell) and page.count("<tr>") == 1 + len(rows)
        assert all(f">{cell}<" in page for row in rows for cell in row)
    damage, front = str(ldp.damage()).splitlines(), str(ldp.front(12)).splitlines()
    assert damage[0].startswith("expected loss from rounding ") and damage[1].split() == ["layer", *ldp.damage().kinds]
    assert [line.split()[0] for line in damage[2:-1]] == list(ldp.layers) and damage[-1].startswith("all layers ")
    assert front[0].split("  ")[0] == "training cost" and len(front) == len(ldp.front(12).points) + 2
    assert front[-1].endswith("in force") and front[-1].split()[0] == f"{ldp.cost().relative:.3f}"
    assert {len(line) for line in damage[1:]} == {len(damage[1])}
