"""The controller: the step, gradients of the bits, saved states, learned clips, half precision, torch.compile."""

import io

import pytest
import torch
from breadth import breadth
from older import COMPILED
from signals import deaf_layers
from torch import nn

import ldp_search

CLIPPED = {"policy": "bit_gradient", "weight_quantizer": "clip", "input_quantizer": "clip"}
INTERPOLATED = {"policy": "bit_gradient", "target_cost": 0.5, "relaxation": "interpolate"}


def applied(model, space=None, **options):
    ldp_search.apply(model, space or {"policy": "static", "bits": 4}, **options)
    return model, ldp_search.controller(model)


@pytest.mark.parametrize("progress", [0.0, -0.1, 0.3, 0.25, 1.5, float("nan"), "a", None])
def test_progress_must_rise(mlp, progress):
    _, ldp = applied(mlp())
    ldp.step(0.3)
    with pytest.raises(
        ValueError, match=rf"rise from 0 to 1.*received {progress!r} after 0.3.*Pass \(step \+ 1\) / total_steps"
    ):
        ldp.step(progress)
    ldp.step(1.0)
    assert ldp.trajectory.progress == [0.3, 1.0]


@pytest.mark.parametrize("space", [{"policy": "progressive"}, {"cost_weight": 0.1}])
def test_a_policy_that_reads_the_loss_asks_for_it(mlp, space):
    _, ldp = applied(mlp(), space)
    with pytest.raises(ValueError, match=f"{ldp.policy.name!r} reads the training loss: call ldp.step"):
        ldp.step(0.5)
    assert len(ldp.trajectory) == 0, "a refused step leaves nothing behind"
    ldp.step(0.5, loss=1.0)


def test_gradients_of_micro_batches_add_up(mlp):
    model, ldp = applied(mlp(), CLIPPED | {"target_cost": 0.5, "grad_bits": 32})
    parts, single = [torch.randn(4, 8), 3 * torch.randn(4, 8)], []
    for x in parts:
        model(x).square().sum().backward()
        single.append({k: v.grad.clone() for k, v in ldp.parameters().items()})
        for tensor in ldp.parameters().values():
            tensor.grad.zero_()
    for x in parts:
        model(x).square().sum().backward()
        model.zero_grad()  # is no business of the bits
    for key, tensor in ldp.parameters().items():
        torch.testing.assert_close(tensor.grad, single[0][key] + single[1][key])
        assert tensor.grad.any()
    ldp.step(0.1)
    assert not any(tensor.grad.any() for tensor in ldp.parameters().values())


def training(space, steps, total=24, state=None, seed=0):
    """Steps of a small training, on from `state`; returns the state at the end, as one would save it."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    ldp_search.apply(model, space, example_inputs=torch.zeros(1, 6))
    ldp, optimizer = ldp_search.controller(model), torch.optim.Adam(model.parameters(), lr=0.01)
    data = torch.randn(total, 16, 6, generator=torch.Generator().manual_seed(5))
    start = 0
    if state is not None:
        start = state["step"]
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"]), ldp.load_state_dict(state["ldp"])
        torch.set_rng_state(state["random"])
    for step in range(start, start + steps):
        loss = (model(data[step]) - data[step][:, :2].abs()).square().mean()
        loss.backward()
        ldp.step((step + 1) / total, loss=loss)
        optimizer.step(), optimizer.zero_grad()
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": start + steps,
        "random": torch.get_rng_state(),
    }
    return saved | {"ldp": ldp.state_dict()}, ldp, model


SPACES = {
    "default": "ldp",
    "split": {"target_cost": 0.5, "grad_bits": (3, 8), "split_gradient": True, "grad_quantizer": "per_sample_channel"},
    "shared": {"target_cost": 0.5, "tie": True, "granularity": "network", "input_quantizer": "clip"},
    "weighed": {"cost_weight": 0.1},
    "sampled": {"policy": "bit_gradient", "target_cost": 0.5, "relaxation": "sample", "tie": True, "input_quantizer": "clip"},
    "interpolated": {"policy": "bit_gradient", "target_cost": 0.6, "relaxation": "interpolate", "weight_quantizer": "clip",
                     "granularity": "network"},
    "bit gradients weighed": {"policy": "bit_gradient", "cost_weight": 0.1},
    "paper": "ldp_paper",
    "cyclic": {"policy": {"name": "cyclic", "cycles": 3}, "relaxation": "sample"},
    "progressive": {"policy": {"name": "progressive", "window": 2}, "grad_bits": (6, 8)},
    "random": "random",
}  # fmt: skip


@breadth("name", SPACES, always=["default", "split", "sampled", "interpolated", "progressive"])
@breadth("steps", [12, 23], always=[12])  # the second one within the frozen part
def test_a_saved_state_goes_on_bitwise(name, steps):
    whole, ldp, _ = training(SPACES[name], 24)
    half, halfway, model = training(SPACES[name], steps)
    file = io.BytesIO()
    torch.save(half, file)
    x = torch.randn(4, 6)
    for step in range(
        steps + 1, min(steps + 4, 25)
    ):  # what is saved must not change when the training that it was taken of goes on
        model(x).sum().backward()
        halfway.step(step / 24, loss=1.0)
    file.seek(0)
    for state in (torch.load(file, weights_only=False), half):
        end, resumed, _ = training(SPACES[name], 24 - steps, state=state, seed=7)
        assert all(torch.equal(v, whole["ldp"]["tensors"][k]) for k, v in end["ldp"]["tensors"].items())
        assert resumed.trajectory.columns() == ldp.trajectory.columns() and resumed.cost() == ldp.cost()
        assert all(torch.equal(v, whole["model"][k]) for k, v in end["model"].items())


def test_a_loss_that_is_no_number_goes_on_from_the_saved_one(mlp):
    (_, whole), (_, resumed), (_, older) = (applied(mlp(), {"cost_weight": 0.1}) for _ in range(3))
    whole.step(0.1, loss=4.0)
    state = whole.state_dict()
    resumed.load_state_dict(state)
    older.load_state_dict({key: value for key, value in state.items() if key != "loss"})
    for ldp in (whole, resumed, older):
        ldp.step(0.2, loss=float("nan"))
    assert whole.policy.state["loss"] == resumed.policy.state["loss"] == 4.0
    assert older.policy.state["loss"] < 4.0, "a state without one loads, and takes 1 as at the beginning"


def test_a_state_of_other_layers(mlp):
    (_, ldp), (_, other) = applied(mlp(8, 2)), applied(mlp(8, 3))
    with pytest.raises(ValueError, match=r"same quantized layers; these differ: \['4'\]"):
        ldp.load_state_dict(other.state_dict())
    (_, plain), (_, clipped) = (applied(mlp(), {"policy": "static", "input_quantizer": q}) for q in ("minmax", "clip"))
    with pytest.raises(ValueError, match="same search space: one of the two has learned clips"):
        plain.load_state_dict(clipped.state_dict())


def test_clips_are_learned_outside_the_models_parameters():
    ldp, model = training({"policy": "static", "bits": 3, "weight_quantizer": "clip", "input_quantizer": "clip"}, 24)[1:]
    clips = ldp.parameters()["log_clips"]
    assert clips.shape == (2 + 8 + 2,) and clips[:2].all() and clips.abs().max() <= 24 * 1.01e-3
    assert len(list(model.parameters())) == 4


@pytest.mark.parametrize("space", ["ldp_clip", "ldp", "ldp_paper", INTERPOLATED, CLIPPED | {"target_cost": 0.5}])
def test_a_model_in_bfloat16(mlp, space):
    model, ldp = applied(mlp().bfloat16(), space, sense_every=1)
    for step in range(3):
        loss = model(torch.randn(4, 8).bfloat16()).float().square().mean()
        loss.backward()
        assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in model.parameters())
        assert not deaf_layers(ldp)
        ldp.step((step + 1) / 3)
    assert all(t.dtype == torch.float32 for t in ldp.parameters().values())


@COMPILED
@breadth(
    "options", [{}, {"relaxation": "interpolate"}, {"weight_quantizer": "minmax", "input_quantizer": "symmetric"}], always=1
)
def test_compiled_once_whatever_the_bits(mlp, options):
    torch._dynamo.reset()
    space = {"policy": "bit_gradient", "target_cost": 0.45, "grad_bits": 32} | options
    eager, compiled = (applied(mlp(), space, example_inputs=torch.zeros(1, 8)) for _ in range(2))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    function = torch.compile(compiled[0], backend=backend, fullgraph=True)
    for step in range(6):
        x = torch.randn(4, 8)
        for (_, ldp), forward in ((eager, eager[0]), (compiled, function)):
            ldp.parameters()["bits"].detach().fill_(3 + step % 4)
            forward(x).square().sum().backward()
        for key, tensor in compiled[1].parameters().items():
            torch.testing.assert_close(tensor.grad, eager[1].parameters()[key].grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compiled[1].ranges, eager[1].ranges)
        [ldp.step((step + 1) / 6) for _, ldp in (eager, compiled)]
    assert len(graphs) == 1


@COMPILED
@pytest.mark.slow(reason="of learned clips what test_compiled.py shows of other grids")
def test_compiled_for_steps_that_sense_and_for_steps_that_do_not(mlp):
    """Two kinds of steps, however many there are and whatever the bits; both measure what they measure uncompiled."""
    torch._dynamo.reset()
    options = {"grad_bits": 32, "sense_every": 3}
    eager, compiled = (applied(mlp(), "ldp_clip", example_inputs=torch.zeros(1, 8), **options) for _ in range(2))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    function = torch.compile(compiled[0], backend=backend, fullgraph=True)
    for step in range(9):
        x, gradients = torch.randn(4, 8), []
        for (model, ldp), forward in ((eager, eager[0]), (compiled, function)):
            ldp.parameters()["bits"].detach().fill_(3 + step % 4)
            model.zero_grad()
            forward(x).square().sum().backward()
            gradients.append([p.grad for p in model.parameters()])
            if ldp.sensing:
                assert not deaf_layers(ldp)
            ldp.step((step + 1) / 9)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compiled[1].ranges, eager[1].ranges)
        torch.testing.assert_close(*(ldp.sensor.curves(3) for _, ldp in (eager, compiled)), rtol=1e-3, atol=1e-9)
    assert len(graphs) == 2
