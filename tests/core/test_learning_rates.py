"""Effective learning rates: by how much a gradient moves weights in the end, under one optimizer after another."""

import pytest
import torch
from torch import nn

from ldp_search.core.controller.learning_rates import effective_rates, learning_rate


class Sign(torch.optim.Optimizer):
    """Moves by the sign of the gradient, as Lion and signSGD do, and keeps a first moment alone."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(group["lr"] * p.grad.sign())


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, dampening=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.002),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.002, weight_decay=0.0, betas=(0.8, 0.95)),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.002),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.002),
    "RMSprop with momentum": lambda p: torch.optim.RMSprop(p, lr=0.002, momentum=0.5),
    "sign": Sign,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_lasting_gradient_moves_a_weight_by_the_effective_rate_times_itself(name):
    weight = nn.Parameter(torch.zeros(40, 5))
    gradient = 0.3 * torch.ones(40, 5)
    optimizer, moved = OPTIMIZERS[name]([weight]), []
    for step in range(400):
        before, weight.grad = weight.detach().clone(), gradient.clone()
        if step == 399:
            rate = float(effective_rates([[weight]], optimizer))
        optimizer.step()
        moved.append(float((before - weight.detach()).mean()))
    assert rate * 0.3 == pytest.approx(moved[-1], rel=0.03)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "sign"])
def test_before_its_first_step_the_gradient_itself_tells(name):
    weight = nn.Parameter(torch.zeros(64))
    weight.grad = torch.randn(64)
    optimizer = OPTIMIZERS[name]([weight])
    lr = optimizer.param_groups[0]["lr"]
    assert float(effective_rates([[weight]], optimizer)) == pytest.approx(
        lr / float(weight.grad.square().mean().sqrt()), rel=1e-5
    )
    optimizer.step()
    later = float(effective_rates([[weight]], optimizer))
    assert later == pytest.approx(lr / float(weight.grad.square().mean().sqrt()), rel=1e-3), "its bias correction is taken in"


def test_each_site_has_the_rate_of_its_group_and_the_others_the_median():
    a, b, c, unknown = (nn.Parameter(torch.ones(3)) for _ in range(4))
    groups = {"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2}, {"params": [c], "lr": 0.4, "momentum": 0.5}
    optimizer = torch.optim.SGD(groups, lr=1.0)
    assert effective_rates([[a], [b], [c], [unknown], [], [unknown, c]], optimizer).tolist() == pytest.approx(
        [0.1, 0.2, 0.8, 0.2, 0.2, 0.8]
    )
    assert learning_rate(optimizer) == 0.4


def test_without_an_optimizer_that_of_sgd_at_a_tenth_with_momentum_is_taken():
    weight = nn.Parameter(torch.ones(3))
    assert effective_rates([[weight], []]).tolist() == [1.0, 1.0]
    other = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
    assert effective_rates([[weight]], other).tolist() == [1.0], "nor where it knows none of the weights"


def test_a_scheduler_is_followed():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    schedule, found = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10), []
    for _ in range(5):
        optimizer.step(), schedule.step()
        found.append(float(effective_rates([[weight]], optimizer)) * 0.1 / learning_rate(optimizer))
    assert found == pytest.approx([1.0] * 5) and learning_rate(optimizer) == pytest.approx(0.05)


def test_weights_that_take_no_gradient_do_not_move():
    moving, still = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = torch.optim.SGD([moving, still], lr=0.1)
    assert effective_rates([[moving], [still], []], optimizer).tolist() == pytest.approx([0.1, 0.0, 0.1])
    assert effective_rates([[moving], [still], []]).tolist() == [1.0, 0.0, 1.0]


def test_an_optimizer_that_finds_its_own_rate_is_taken_as_none():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.param_groups[0]["lr"] = None  # transformers' Adafactor
    assert learning_rate(optimizer) == 0.0 and effective_rates([[weight]], optimizer).tolist() == [1.0]


def test_steps_that_are_counted_in_the_group():
    """timm's Lamb: the second moment of its first step is a thousandth of the gradient's square."""
    weight = nn.Parameter(torch.zeros(64))
    optimizer = torch.optim.Adam([weight], lr=0.002)
    weight.grad = torch.full((64,), 0.25)
    optimizer.step()
    optimizer.param_groups[0]["step"] = optimizer.state[weight].pop("step")
    assert float(effective_rates([[weight]], optimizer)) == pytest.approx(0.002 / 0.25, rel=1e-4)
