"""Moving ranges, and the end of a training: frozen bits, statistics estimated anew, the allocation."""

import pytest
import torch
from torch import nn

import ldp_search


def applied(model, space=None, **options):
    ldp_search.apply(model, space or {"policy": "static", "bits": 4}, **options)
    return model, ldp_search.controller(model)


def test_moving_ranges_by_hand(monkeypatch):
    model, ldp = applied(nn.Sequential(nn.Linear(2, 2)), {"policy": "static", "bits": 3, "input_quantizer": "clip"})
    batches = [torch.tensor([[-1.0, 3.0]]), torch.tensor([[0.0, 5.0]]), torch.tensor([[-4.0, 1.0]])]
    for x in batches:
        model(x)
    weights = [0.1 * 0.9**2, 0.1 * 0.9, 0.1]  # the newest counts most
    mass = sum(weights)
    by_hand = [
        sum(w * v for w, v in zip(weights, values, strict=True))
        for values in ((-1, 0, -4), (3, 5, 1), (2, 2.5, 2.5), (1, 1, 1))
    ]
    assert ldp.ranges[0].tolist() == pytest.approx(by_hand)
    model.eval()
    asked, quantizer = {}, type(ldp.input_quantizer)
    original = quantizer.grid
    monkeypatch.setattr(
        quantizer, "grid", lambda self, stats, *rest: asked.update(stats=stats, live=rest[1]) or original(self, stats, *rest)
    )
    model[0].weight.requires_grad_(False)
    model(torch.tensor([[100.0, -100.0]]))
    assert [float(s) for s in asked["stats"]] == pytest.approx([v / mass for v in by_hand[:3]])
    assert asked["live"] is False and ldp.ranges[0].tolist() == pytest.approx(by_hand), "evaluation moves nothing"


def test_evaluation_before_any_training_takes_the_batch(mlp):
    model, _ = applied(mlp(), {"policy": "static", "bits": 5})
    x = torch.randn(6, 8)
    before = model.eval()(x)
    torch.testing.assert_close(model.train()(x), before)


def picture_net():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2),
                         nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 2))  # fmt: skip


def test_finalize_reestimates_statistics():
    model, ldp = applied(
        picture_net(),
        {"policy": "bit_gradient", "target_cost": 0.5, "relaxation": "interpolate"},
        example_inputs=torch.zeros(1, 1, 6, 6),
    )
    for step in range(4):
        model(5 + torch.randn(8, 1, 6, 6)).sum().backward()
        ldp.step((step + 1) / 4)
    model.train(), model[5].eval()
    modes, weights = [m.training for m in model.modules()], {k: v.clone() for k, v in model.named_parameters()}
    batches, seen = [torch.randn(8, 1, 6, 6) for _ in range(5)], {1: [], 4: []}
    hooks = [model[i].register_forward_pre_hook(lambda m, a, i=i: seen[i].append(a[0])) for i in seen]
    allocation = ldp.finalize(((x, "label") for x in batches), batches=3)
    [hook.remove() for hook in hooks]
    for i, inputs in seen.items():
        assert len(inputs) == 3
        torch.testing.assert_close(model[i].running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))
        torch.testing.assert_close(model[i].running_var, torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0))
    low = sum(0.1 * 0.9 ** (2 - i) * float(x.min()) for i, x in enumerate(batches[:3]))
    assert float(ldp.ranges[0, 0]) == pytest.approx(low, rel=1e-5), "nothing of the training is left in the ranges"
    assert [m.training for m in model.modules()] == modes and model[1].momentum == 0.3 and model[4].momentum == 0.1
    assert all(torch.equal(v, weights[k]) for k, v in model.named_parameters())
    assert allocation.layers == ldp.bits() and allocation.summary["mean_relative_cost"] == ldp.cost().mean_relative
    assert torch.equal(ldp.parameters()["bits"], ldp.parameters()["bits"].round())


def test_finalize_takes_dicts_and_functions_and_refuses_nothing(mlp):
    model, ldp = applied(mlp())
    ldp.finalize([{"input": torch.ones(2, 8)}])
    ldp.finalize([torch.full((2, 8), 2.0)])
    assert ldp.ranges[0, 1] / ldp.ranges[0, 3] == 2
    ldp.finalize([5.0], forward=lambda batch: model(torch.full((2, 8), batch)))
    assert ldp.ranges[0, 1] / ldp.ranges[0, 3] == pytest.approx(5)
    before = ldp.ranges.clone()
    with pytest.raises(ValueError, match="at least one batch.*list gave none"):
        ldp.finalize([])
    assert torch.equal(ldp.ranges, before)


@pytest.mark.parametrize("policy", ["learned", "bit_gradient"])
@pytest.mark.parametrize("relaxation", ["round", "interpolate", "sample"])
def test_frozen_bits_stay(mlp, relaxation, policy):
    model, ldp = applied(mlp(), {"target_cost": 0.5, "relaxation": relaxation, "policy": {"name": policy, "start": "middle"}})
    ldp.freeze()  # before the first forward, which counts
    bits = ldp.parameters()["bits"].clone()
    for step in range(5):
        model(torch.randn(2, 8)).sum().backward()
        ldp.step((step + 1) / 5)
    assert torch.equal(ldp.parameters()["bits"], bits) and torch.equal(bits, bits.round())


def test_a_training_that_diverged_is_named_at_its_end():
    x = torch.randn(8, 6)
    model = ldp_search.apply(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), policy="static", example_inputs=x)
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.warns(UserWarning, match=r"The training diverged: .* 1 of 2 layers .*\(1\).*smaller learning rate"):
        ldp_search.controller(model).finalize([x])


def test_a_tensor_is_no_loader():
    """Its rows would be taken for batches."""
    x = torch.randn(8, 6)
    model = ldp_search.apply(nn.Sequential(nn.Linear(6, 3)), policy="static", example_inputs=x)
    with pytest.raises(TypeError, match=r"loader must give batches; received one tensor of shape \(8, 6\). Pass \[tensor\]"):
        ldp_search.controller(model).finalize(x)
    with pytest.raises(TypeError, match="loader must give batches, as a DataLoader does; received the text 'data'"):
        ldp_search.controller(model).finalize("data")
