"""Noise of a rounded dL/dx goes on where its gradient does: what part of the earlier gradients has come through each site."""

import gc
import json
import weakref

import pytest
import torch
import torch.nn.functional as F
from fork_two import fork_two
from torch import nn

import ldp_search

WIDTH = 12


class Branch(nn.Module):
    """x + gain * second(relu(first(norm(x))))."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain, self.norm = gain, nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.gain * self.second(self.first(self.norm(x)).relu())


def residual(*gains: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, WIDTH), *(Branch(gain) for gain in gains), nn.Linear(WIDTH, 4))


def searched(model: nn.Module, x, **options):
    space = {"bits": (2, 8), "grad_bits": (2, 8), "split_gradient": True, "sense_every": 1, "target_cost": 1.0}
    ldp_search.apply(model, example_inputs=x[:1], **space | {"policy": {"name": "learned", "start": "high"}} | options)
    return ldp_search.controller(model)


def reached(ldp) -> tuple[list[str], torch.Tensor]:
    """Names of the sites, and (sites, sites + others) shares of the backward passes so far; all must be known."""
    share, known = ldp.sensor.paths.reached(len(ldp.layers), [next(iter(w), None) for w in ldp.sensor.others.weights()])
    assert known.all()
    return list(ldp.layers), share


def test_in_a_chain_all_of_it_goes_on():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(8, 6)
    ldp = searched(model, x)
    model(x).square().mean().backward()
    _, share = reached(ldp)
    torch.testing.assert_close(share[:, :3], torch.ones(3, 3).tril(-1))
    biases = share[:, 3:]
    torch.testing.assert_close(biases, torch.ones(3, 3).tril(-1))


@pytest.mark.parametrize("gain", [1.0, 0.1])
def test_a_branch_has_its_part_of_the_stream_s_square(gain):
    torch.manual_seed(0)
    model, x = residual(gain), torch.randn(16, 8)
    ldp, held = searched(model, x), {}
    model[1].norm.register_forward_pre_hook(lambda m, a: held.update(stream=a[0]) or (a[0] * 1,))
    model[1].register_forward_pre_hook(lambda m, a: a[0].retain_grad())
    model(x).square().mean().backward()
    names, share = reached(ldp)
    row = dict(zip(names, share, strict=True))
    whole = held["stream"].grad
    branch = whole - _through_the_shortcut(model, x)
    wanted = float(branch.square().sum() / whole.square().sum())
    for name in ("1.first", "1.second"):
        assert float(row[name][names.index("0")]) == pytest.approx(wanted, rel=0.15)
    assert float(row["1.second"][names.index("1.first")]) == 1.0 and float(row["1.first"][names.index("1.second")]) == 0.0
    assert float(row["2"][names.index("1.second")]) == 1.0


def _through_the_shortcut(model, x):
    """The gradient of the stream that has not come through the branch."""
    found = []
    handle = model[1].register_forward_pre_hook(lambda m, a: found.append(a[0].detach().requires_grad_()) or (found[0],))
    cut = model[1].norm.register_forward_pre_hook(lambda m, a: (a[0].detach(),))
    model(x).square().mean().backward()
    handle.remove(), cut.remove()
    return found[0].grad


@pytest.mark.parametrize("gains", [(1.0, 1.0), (0.1, 1.0), (1.0, 0.03)], ids=str)
def test_damage_of_dx_is_that_of_the_noise_that_arrives(gains):
    """By Monte Carlo, at 3 bits, of each site: the variance that is added to all earlier gradients."""
    torch.manual_seed(0)
    model, x, labels = residual(*gains), torch.randn(64, 8), torch.arange(64) % 4
    ldp = searched(model, x)

    def gradients() -> torch.Tensor:
        model.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()]).double()

    gradients()
    ldp.step(1e-6)
    expected, names = ldp.sensor.curves(4)[:, 2, 1], list(ldp.layers)
    ldp.sensing = False
    weights = {name: i for i, (name, p) in enumerate(model.named_parameters()) for _ in p.flatten()[:1]}
    sizes = [p.numel() for p in model.parameters()]
    own = torch.stack([gradients() for _ in range(60)]).var(0)
    for row, name in enumerate(names[1:], 1):
        with torch.no_grad():
            ldp.tensors.bits[row, 2] = 3
        noise = torch.stack([gradients() for _ in range(60)]).var(0) - own
        with torch.no_grad():
            ldp.tensors.bits[row, 2] = 8
        before = sum(sizes[: weights[f"{name}.weight"]])
        found = float(noise[:before].sum()) / 4
        assert 0.4 < float(expected[row]) / found < 2.5, name


def test_a_layer_that_is_called_twice_sends_noise_by_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(self.layer(self.first(x)).relu())

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(8, 6)
    ldp = searched(model, x)
    model(x).square().mean().backward()
    names, share = reached(ldp)
    first, layer = names.index("first"), names.index("layer")
    assert float(share[layer, first]) == 2.0 and float(share[layer, layer]) == 0.5  # the mean over its own two calls


def test_parts_of_one_output_count_by_their_squares():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.one, self.other = nn.Linear(6, 8), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            left, right = self.both(x).chunk(2, -1)
            return self.one(left) + 3 * self.other(right)

    torch.manual_seed(0)
    model, x = Parts(), torch.randn(8, 6)
    ldp = searched(model, x)
    model(x).square().mean().backward()
    names, share = reached(ldp)
    row, to = dict(zip(names, share, strict=True)), names.index("both")
    assert 0 < float(row["one"][to]) < float(row["other"][to])
    assert float(row["one"][to] + row["other"][to]) == pytest.approx(1.0, rel=1e-4)


def test_micro_batches_are_averaged():
    torch.manual_seed(0)
    model, x = residual(1.0), torch.randn(16, 8)
    ldp, found = searched(model, x), []
    for parts in (1, 4):
        for _ in range(parts):
            model(x).square().mean().backward()
        found.append(reached(ldp)[1])
    torch.testing.assert_close(*found, rtol=0.2, atol=0.05)  # gradients are rounded at random


def test_a_forward_without_backward_leaves_no_graph_behind():
    torch.manual_seed(0)
    model, x = residual(1.0), torch.randn(4, 8)
    ldp = searched(model, x)
    y = model(x)
    node = weakref.ref(y.grad_fn)
    del y
    model(x).square().mean().backward()
    ldp.step(0.1)
    gc.collect()
    assert node() is None


def test_a_copy_of_the_model_begins_its_own():
    import copy

    torch.manual_seed(0)
    model, x = residual(1.0), torch.randn(4, 8)
    searched(model, x)
    model(x)
    twin = copy.deepcopy(model)
    assert not ldp_search.controller(twin).sensor.paths._calls
    twin(x).square().mean().backward()
    ldp_search.controller(twin).step(0.1)


def test_processes_that_meet_layers_in_orders_of_their_own_have_the_same_bits(tmp_path):
    both = fork_two(tmp_path / "printed", "orders_two", str(tmp_path))
    assert both.wait() == 0, both.printed
    zero, one = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert zero == one
    assert len({str(bits) for bits in zero["bits"]}) > 3, "the bits move"
