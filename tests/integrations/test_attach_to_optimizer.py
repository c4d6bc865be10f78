"""The LDP step that rides on an optimizer's, as in timm's training script."""

import copy

import pytest
import torch
from torch import nn

import ldp_search
from ldp_search import controller
from ldp_search.integrations import attach_to_optimizer

STEPS = 6
INPUTS = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


def make(total=STEPS, **space):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    ldp_search.apply(model, example_inputs=INPUTS, **(space or {"target_cost": 0.5, "grad_bits": 32}))  # nothing random
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    attach_to_optimizer(model, optimizer, total)
    return model, optimizer


def train(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        for part in INPUTS.chunk(2):  # two micro-batches
            (model(part).square().mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_once_a_step_with_a_total_known_later(tmp_path):
    model, optimizer = make(lambda: epochs * 3)
    epochs = 2
    train(model, optimizer, STEPS)
    ldp = controller(model)
    assert ldp.trajectory.progress == pytest.approx([(i + 1) / STEPS for i in range(STEPS)])
    assert ldp.cost().mean_relative == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="total_steps=6 optimizer steps, but another one follows"):
        train(model, optimizer, 1)


def test_saved_and_loaded_with_the_optimizer(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint")
    train(model, optimizer, 3)
    other, its = make()
    checkpoint = torch.load(tmp_path / "checkpoint", weights_only=True)
    given = copy.deepcopy(checkpoint["optimizer"])
    other.load_state_dict(checkpoint["model"])
    its.load_state_dict(checkpoint["optimizer"])
    assert set(checkpoint["optimizer"]) == set(given)  # the caller's dict stays whole
    train(other, its, 3)
    assert torch.equal(model[0].weight, other[0].weight)
    assert torch.equal(controller(model).trajectory.bits, controller(other).trajectory.bits)
    plain = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="saved without attach_to_optimizer"):
        its.load_state_dict(plain.state_dict())


def test_an_optimizer_that_accelerate_wraps():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    model = nn.Sequential(nn.Linear(8, 4))
    ldp_search.apply(model, example_inputs=INPUTS, target_cost=0.5)
    model, optimizer = Accelerator(cpu=True).prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    attach_to_optimizer(model, optimizer, 3)
    train(model, optimizer, 3)
    assert controller(model).trajectory.seen == 3 and "ldp" in optimizer.state_dict()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_errors():
    model, optimizer = make()
    with pytest.raises(ValueError, match="attached to this optimizer already"):
        attach_to_optimizer(model, optimizer, STEPS)
    with pytest.raises(ValueError, match="'progressive' reads the training loss"):
        make(policy="progressive")
    with pytest.raises(LookupError, match="ldp_search.apply"):
        attach_to_optimizer(nn.Linear(2, 2), optimizer, STEPS)
