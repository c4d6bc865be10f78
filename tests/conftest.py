"""What the tests share: the order of files, one thread, one seed, a small network, a training with made-up gradients."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from suite import COLLECTED, LONGEST
from torch import nn

import ldp_search

torch.set_num_threads(1)
# Autograd begins with the devices that it finds: begun after a test with fake CUDA tensors it would start a thread for CUDA,
# and refuse every backward in a fork.
torch.zeros((), requires_grad=True).backward()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """The longest files are begun first: where one is the last to begin, all workers but one wait for it."""
    config.stash[COLLECTED] = list(items)
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _mlp(width: int = 8, layers: int = 2, outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    widths = [width] * layers + [outputs]
    return nn.Sequential(*[m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())][:-1])


@pytest.fixture
def mlp():
    """Makes the same small network at every call."""
    return _mlp


@pytest.fixture
def square():
    """Makes layers of equal cost, whose sensitivities a test can choose: `square(3, target_cost=0.5, ...)` -> controller."""

    def make(layers: int = 3, space=None, **options):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
        options = {"accounting": "published"} | options  # the first layer pays for its dL/dx like the others
        ldp_search.apply(model, space=space or {}, example_inputs=torch.zeros(1, 4), **options)
        return ldp_search.controller(model)

    return make


@pytest.fixture
def pretend():
    """Runs all steps of a training whose bit gradients are those of known sensitivities: noise * sensitivity * 2^-bits."""

    def run(ldp, steps: int, sensitivity, loss: float | None = None, sign: bool = False) -> list[dict]:
        noise = torch.Generator().manual_seed(1)
        sensitivity = torch.as_tensor(sensitivity, dtype=torch.float32).view(-1, 1)
        history = []
        for step in range(steps):
            architecture = ldp.parameters()["bits"]
            draw = torch.randn(architecture.shape, generator=noise)
            draw = -draw.abs() if sign else draw
            with torch.no_grad():
                architecture.grad.copy_(sensitivity * torch.exp2(-architecture) * draw)
                architecture.grad[:, 2] = 0
            ldp.step((step + 1) / steps, loss=loss)
            history.append(ldp.bits())
        return history

    return run
