"""The gradient's bits in two: in dL/dx and in dL/dw, from the cost to the saved allocation."""

import dataclasses

import pytest
import torch
from torch import nn

import ldp_search
from ldp_search.core import Allocation, Trajectory, native
from ldp_search.core.bits.cost import training_bitops, training_bitops_gradient
from ldp_search.core.bits.policies import Policy
from ldp_search.core.bits.specs import Bits, SplitBits
from ldp_search.core.quantize import gradient_quantizers

SPLIT = {"policy": "learned", "target_cost": 0.4, "bits": (2, 8), "grad_bits": (3, 8), "split_gradient": True,
         "grad_quantizer": "per_sample_channel", "sense_every": 2}  # fmt: skip


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))


def trained(space=SPLIT, steps=40, **options):
    torch.manual_seed(0)
    network, x = model(), torch.randn(16, 2, 6, 6)
    ldp = ldp_search.controller(ldp_search.apply(network, space, example_inputs=x, **options))
    optimizer, losses, during = torch.optim.SGD(network.parameters(), lr=0.05), [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), torch.arange(16) % 3)
        loss.backward()
        during.append(ldp.bits())
        ldp.step((step + 1) / steps, optimizer=optimizer)
        optimizer.step()
        losses.append(float(loss.detach()))
    return ldp, losses, during


def test_the_cost_takes_each_gradient_in_its_own_product():
    macs = torch.tensor([7.0], dtype=torch.float64)
    bits = torch.tensor([[3.0, 5, 4, 6]], dtype=torch.float64, requires_grad=True)
    cost = training_bitops(macs, bits)
    assert float(cost) == 7 * (3 * 5 + 3 * 4 + 5 * 6)
    cost.sum().backward()
    torch.testing.assert_close(training_bitops_gradient(macs, bits.detach()), bits.grad)
    same = torch.tensor([[3.0, 5, 4, 4]]), torch.tensor([[3.0, 5, 4]])
    assert torch.equal(*(training_bitops(macs, b) for b in same)), "with one number it is the old cost"


def test_four_kinds_from_the_training_to_its_files_and_back(tmp_path):
    ldp, losses, during = trained()
    assert losses[-1] < losses[0]
    assert ldp.cost().mean_relative == pytest.approx(0.4, rel=0.01)
    assert all(isinstance(bits, SplitBits) for bits in ldp.bits().values())
    rows = torch.tensor([list(bits) for bits in ldp.bits().values()])
    assert (rows[:, 2] != rows[:, 3]).any() and rows[:, :2].min() >= 2 and rows[:, 2:].min() >= 3 and rows.max() <= 8
    assert ldp.trajectory.bits.shape[1:] == (3, 4)
    for suffix in ("parquet", "csv"):
        ldp.trajectory.save(tmp_path / f"schedule.{suffix}")
        loaded = Trajectory.load(tmp_path / f"schedule.{suffix}")
        assert torch.equal(loaded.bits, ldp.trajectory.bits) and loaded.columns() == ldp.trajectory.columns()
    again = trained(SPLIT | {"policy": {"name": "replay", "path": str(tmp_path / "schedule.parquet")}, "target_cost": None})
    assert again[2] == during and again[0].cost().mean_relative == pytest.approx(ldp.cost().mean_relative)
    allocation = ldp.finalize()
    allocation.save(tmp_path / "allocation.json")
    assert Allocation.load(tmp_path / "allocation.json").layers == allocation.layers == ldp.bits()
    fixed = trained(SPLIT | {"policy": {"name": "replay", "path": str(tmp_path / "allocation.json")}, "target_cost": None}, 2)
    assert fixed[2] == [allocation.layers] * 2


def test_a_schedule_of_one_gradient_is_replayed_by_a_space_that_splits_it(tmp_path):
    ldp, _, during = trained(SPLIT | {"split_gradient": False}, 20)
    assert all(isinstance(bits, Bits) for bits in ldp.bits().values())
    ldp.trajectory.save(tmp_path / "schedule.parquet")
    space = SPLIT | {"policy": {"name": "replay", "path": str(tmp_path / "schedule.parquet")}, "target_cost": None}
    _, _, again = trained(space, 20)
    assert [{name: (*bits, bits.grad) for name, bits in step.items()} for step in during] == [
        {name: tuple(bits) for name, bits in step.items()} for step in again
    ]


def test_a_split_schedule_is_refused_by_a_space_of_one_gradient(tmp_path):
    trained(SPLIT, 3)[0].trajectory.save(tmp_path / "schedule.csv")
    space = SPLIT | {"policy": {"name": "replay", "path": str(tmp_path / "schedule.csv")}, "target_cost": None}
    with pytest.raises(ValueError, match="has bits of their own for the gradients in dL/dx and in dL/dw.*split_gradient=true"):
        trained(space | {"split_gradient": False}, 3)


@pytest.mark.parametrize("quantizer", ["per_sample", "per_sample_channel", "symmetric", "stochastic"])
@pytest.mark.parametrize(
    "backend", ["reference", {"name": "int8", "choose": "always", "keep": "input"}], ids=["reference", "int8"]
)
def test_backends_agree_on_two_gradients(backend, quantizer, monkeypatch):
    monkeypatch.setattr(gradient_quantizers, "round_stochastically_", lambda x: x.round_())
    found = []
    for name in ("simulate", backend):
        space = {"policy": "static", "bits": 8, "grad_bits": (3, 8), "split_gradient": True, "grad_quantizer": quantizer}
        network, x = model(), torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        ldp = ldp_search.controller(ldp_search.apply(network, space, example_inputs=x.detach(), backend=name))
        with torch.no_grad():
            ldp.tensors.bits.copy_(torch.tensor([7.0, 6, 5, 3]))
        with native.disabled():
            network(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in network.parameters())])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 1e-3 * float(one.abs().max())


def test_each_product_takes_its_own_bits():
    x, g = torch.eye(6).requires_grad_(), torch.randn(6, 5)
    layer = nn.Sequential(nn.Linear(6, 5, bias=False))
    space = {"policy": "static", "bits": 16, "grad_bits": (2, 8), "split_gradient": True, "grad_quantizer": "symmetric"}
    ldp = ldp_search.controller(ldp_search.apply(layer, space, x.detach()))
    with torch.no_grad():
        ldp.tensors.bits[:, 2], ldp.tensors.bits[:, 3] = 8, 3
        layer[0].weight.copy_(torch.eye(5, 6))
    layer(x).backward(g)
    assert len(layer[0].weight.grad.mul(1e4).round().unique()) <= 7, "three bits in dL/dw"
    assert len(x.grad[:, :5].mul(1e4).round().unique()) > 15, "eight in dL/dx"


def test_rivals_keep_one_gradient(mlp):
    for policy in ("static", "cyclic", "progressive", "random"):
        ldp = ldp_search.controller(ldp_search.apply(mlp(), policy, example_inputs=torch.zeros(1, 8)))
        assert all(isinstance(bits, Bits) for bits in ldp.bits().values()) and ldp.tensors.bits.shape[1] == 3


def test_a_policy_that_knows_of_three_kinds_alone_is_told_of_the_fourth():
    @dataclasses.dataclass
    class OfThree(Policy):
        def begin(self):
            return torch.full((len(self.problem.layers), 3), 4.0)

        def step(self, signals):
            return self.begin()

    with pytest.raises(ValueError, match=r"\(layers, kinds\) = \(1, 4\).*received \(1, 3\).*split_gradient=True has four"):
        ldp_search.apply(nn.Sequential(nn.Linear(3, 2)), policy=OfThree(), grad_bits=8, split_gradient=True)
