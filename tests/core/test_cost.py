"""The accounting, to the digits of the published numbers; prices, what is counted and how."""

import dataclasses

import pytest
import timm
import torch
from breadth import breadth
from torch import nn

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401 (the import registers the names)
from ldp_search.core.bits import cost


@pytest.fixture(scope="module")
def resnet20():
    return ldp_search.controller(ldp_search.apply(timm.create_model("cifar_resnet20"), "static", bits=(3, 8)))


def test_macs_of_resnet20(resnet20):
    macs = sum(spec.macs for spec in resnet20.layers.values())
    assert f"{macs / 1e6:.2f}" == "40.81"
    assert resnet20.coverage.share == 1 and not resnet20.coverage.left_out
    assert resnet20.cost().inference_bitops == macs * 64


@pytest.mark.parametrize(("bits", "gbitops"), [(8, "6.42e+07"), (6, "3.61e+07")])
def test_gbitops_of_a_published_training(bits, gbitops):
    space = {"bits": bits, "grad_bits": bits, "accounting": "published"}
    ldp = ldp_search.controller(ldp_search.apply(timm.create_model("cifar_resnet20"), "static", **space))
    assert f"{ldp.cost().training_bitops * 128 * 64_000 / 1e9:.2e}" == gbitops


@breadth(
    "low, high, grad, saved",
    [(3, 8, 8, "36.67"), (3, 6, 6, "30.05"), (4, 8, 8, "30.1"), (4, 6, 6, "20.7"), (5, 8, 8, "23.2")],
    always=2,
)
def test_savings_of_cyclic_precision(low, high, grad, saved):
    model = ldp_search.apply(nn.Linear(2, 2), "cyclic", bits=(low, high), grad_bits=grad, example_inputs=torch.zeros(1, 2),
                             policy={"name": "cyclic", "cycles": 1}, accounting="published")  # fmt: skip
    ldp = ldp_search.controller(model)
    for step in range(2000):  # one of the 32 cycles of 64,000 steps; all are alike
        ldp.step((step + 1) / 2000)
    digits = len(saved.partition(".")[2])
    assert f"{100 * (1 - ldp.cost().mean_relative):.{digits}f}" == saved


@pytest.mark.parametrize(("bits", "relative"), [(3, 0.297), (4, 0.417), (5, 0.547), (6, 0.688), (7, 0.838), (8, 1.0)])
def test_relative_cost_of_uniform_bits(square, bits, relative):
    ldp = square(3, policy={"name": "static", "bits": bits}, bits=(3, 8))
    assert ldp.cost().relative == (bits**2 + 16 * bits) / 192 == pytest.approx(relative, abs=6e-4)
    assert ldp.cost().relative_inference == (bits / 8) ** 2


def test_the_price_is_the_derivative():
    macs = torch.tensor([3.0, 5.0], dtype=torch.float64)
    bits = torch.tensor([[3.0, 5, 8], [4, 4, 6]], dtype=torch.float64, requires_grad=True)
    cost.training_bitops(macs, bits).sum().backward()
    assert torch.equal(cost.training_bitops_gradient(macs, bits.detach()), bits.grad)
    assert cost.training_bitops(macs, bits).tolist() == [3 * (15 + 24 + 40), 5 * (16 + 24 + 24)]
    assert cost.inference_bitops(macs, bits).tolist() == [45, 80]


def test_a_cost_first_asked_for_in_inference_mode_can_be_differentiated_later(square):
    problem = dataclasses.replace(square(2, target_cost=0.5).problem)
    with torch.inference_mode():
        before = problem.relative_cost(problem.low)
    bits = problem.low.double().requires_grad_()
    problem.relative_cost(bits).backward()
    torch.testing.assert_close(bits.grad, problem.cost_gradient(problem.low))
    assert float(before) == pytest.approx(float(problem.relative_cost(bits.detach())))


def test_layers_outside_the_search_are_counted(mlp):
    space = {"policy": {"name": "static", "bits": 3}, "bits": (3, 4), "skip": ["0"], "fixed": {"4": 6}}
    model = ldp_search.apply(mlp(8, 3, 8), space, example_inputs=torch.zeros(5, 8))
    ldp = ldp_search.controller(model)
    found = ldp.cost()
    assert ldp.bits() == {"0": (32, 32, 32), "2": (3, 3, 8), "4": (6, 6, 8)}
    assert found.training_bitops == 64 * (2 * 32**2 + (9 + 48) + (36 + 96)), "nothing before the first layer is trained"
    assert found.inference_bitops == 64 * (32**2 + 9 + 36)
    assert found.relative == found.training_bitops / (64 * (2 * 32**2 + (16 + 64) + (36 + 96)))
    assert found.weight_mib == 64 * (32 + 3 + 6) / 8 / 2**20
    assert type(model[0]) is nn.Linear and ldp.coverage.share == pytest.approx(2 / 3)


def test_tied_weights_are_stored_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.first, self.head = nn.Embedding(10, 4), nn.Linear(4, 10), nn.Linear(4, 10)
            self.head.weight = self.first.weight = self.table.weight

        def forward(self, index):
            return self.first(self.table(index)) + self.head(self.table(index))

    model = ldp_search.apply(Tied(), "static", bits=8, embeddings=True, example_inputs=torch.zeros(2, 3, dtype=torch.long))
    ldp = ldp_search.controller(model)
    assert {name: spec.weight_numel for name, spec in ldp.layers.items()} == {"table": 40, "first": 0, "head": 0}
    assert {name: spec.macs for name, spec in ldp.layers.items()} == {"table": 0, "first": 120, "head": 120}
    assert ldp.cost().weight_mib == 40 / 2**20


def test_the_mean_is_over_progress_not_steps(square):
    ldp = square(1, policy={"name": "ramp"}, bits=(3, 8))
    costs, ends = [], [0.1, 0.4, 0.5, 1.0]
    for end in ends:
        costs.append(float(ldp.problem.relative_cost(torch.round(ldp.parameters()["bits"].detach()))))
        ldp.step(end)
    assert ldp.cost().mean_relative == pytest.approx(0.1 * costs[0] + 0.3 * costs[1] + 0.1 * costs[2] + 0.5 * costs[3])
