"""apply, a late census, finalize and loading leave everything as it was when they raise, at whatever point, Ctrl-C included."""

import contextlib
import copy
import importlib

import pytest
import torch
from torch import nn

import ldp_search
from ldp_search.core.controller import controller as controllers
from ldp_search.core.controller import finalize as finalizing
from ldp_search.core.model import install

door = importlib.import_module("ldp_search.core.apply")  # `core.apply` is its function


class Owner(nn.Module):
    """Multiplies by itself, under torch's own fused encoder layer and a patched forward: everything that `apply` changes."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x @ self.w


def network() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), Owner(), encoder, nn.Linear(8, 4), nn.Linear(4, 2))
    forward = model[4].forward
    model[4].forward = lambda x: forward(x)
    return model


X = torch.linspace(-1, 1, 48).view(2, 3, 8)


def snapshot(model) -> list:
    """All that `apply` might leave behind."""
    hooks = [(m._forward_hooks.keys() | m._forward_pre_hooks.keys(), m.training, m.__class__) for m in model.modules()]
    held = [(m.__dict__.keys(), m.__dict__.get("forward")) for m in model.modules()]
    return [*hooks, *held]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C at a chosen place."""


def interrupting(function, call: int = 0):
    """`function`, which is interrupted after its call number `call`."""
    seen = []

    def run(*args, **kwargs):
        out = function(*args, **kwargs)
        seen.append(1)
        if len(seen) > call:
            raise Interrupted
        return out

    return run


STEPS = ["profiler.profile", "outputs", "Controller", "_install", "install", "saved_activations.install", "_verify",
         "check_reached", "reshard"]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_apply_interrupted_after_any_of_its_steps_leaves_the_model(step, monkeypatch):
    model = network()
    before, expected = snapshot(model), model.eval()(X)
    model.train()
    place, _, name = step.rpartition(".")
    place = getattr(door, place) if place else door
    monkeypatch.setattr(place, name, interrupting(getattr(place, name)))
    with pytest.raises(Interrupted):
        ldp_search.apply(model, "static", example_inputs=X, activations="16bit")
    assert snapshot(model) == before
    monkeypatch.undo()
    ldp_search.apply(model, "static", example_inputs=X, bits=3)
    assert ldp_search.controller(model).coverage.share > 0.5, "it can be applied as if nothing had been"
    ldp_search.remove(model)
    assert snapshot(model) == before and torch.equal(model.eval()(X), expected)


@pytest.mark.parametrize("call", range(6))
def test_apply_interrupted_between_two_layers_leaves_the_model(call, monkeypatch):
    model = network()
    before = snapshot(model)
    monkeypatch.setattr(install, "swap", interrupting(install.swap, call))
    with pytest.raises(Interrupted):
        ldp_search.apply(model, "static", example_inputs=X)
    assert snapshot(model) == before


class Registered(nn.Module):
    """A class that asks its subclasses for an argument."""

    def __init_subclass__(cls, *, key, **options):
        super().__init_subclass__(**options)
        cls.key = key

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(8))

    def forward(self, x):
        return x @ self.w


class Final(nn.Module):
    """A class that forbids subclasses."""

    def __init_subclass__(cls, **options):
        raise TypeError("final")

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(8))

    def forward(self, x):
        return x @ self.w


class Counting(type):
    """A metaclass that keeps a register of its classes."""

    made: list = []

    def __init__(cls, *args, **options):
        super().__init__(*args, **options)
        Counting.made.append(cls.__name__)


class OfMeta(Owner, metaclass=Counting):
    pass


@pytest.mark.parametrize("cls", [Registered, Final, OfMeta])
def test_a_class_with_a_say_in_its_subclasses_is_quantized_all_the_same(cls):
    model = nn.Sequential(nn.Linear(8, 8), cls())
    ldp_search.apply(model, "static", example_inputs=X, bits=3)
    ldp = ldp_search.controller(model)
    assert ldp.coverage.share == 1 and "1.w" in ldp.bits()
    assert type(copy.deepcopy(model)[1]) is type(model[1])
    ldp_search.remove(model)
    assert type(model[1]) is cls


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("script", [torch.jit.script, lambda m: torch.jit.trace(m, X)], ids=["scripted", "traced"])
def test_a_torchscript_part_is_left_out_by_name(script):
    model = nn.Sequential(nn.Linear(8, 8), script(nn.Sequential(nn.Linear(8, 8), nn.ReLU())))
    ldp_search.apply(model, "static", example_inputs=X)
    ldp = ldp_search.controller(model)
    assert {item.name for item in ldp.coverage.left_out} == {"1"} and ldp.coverage.share == pytest.approx(0.5)
    with pytest.raises(TypeError, match="is TorchScript, whose products nothing can reach"):
        ldp_search.apply(script(nn.Linear(8, 8)), "static")


# -- a late census ------------------------------------------------------------------------------------------------------


def state_of(ldp) -> dict:
    return copy.deepcopy(ldp.state_dict())


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


POLICIES = [
    {"policy": "ldp_sgd"},
    {"policy": {"name": "learned", "warmup": 0.0}, "sense_every": 1},
    {"policy": "bit_gradient", "space": {}},
    {"policy": {"name": "bit_gradient", "start": "high"}, "relaxation": "sample", "space": {}},
]


def remembered(state: dict) -> float:
    """How much of the past a policy has taken in."""
    if not state["damage"]:
        return state["policy"]["mass"]
    return state["damage"]["meter"]["mass"] if state["damage"]["meter"] else 0.0


@pytest.mark.parametrize("space", POLICIES)
@pytest.mark.parametrize("where", ["min_coverage", "install"])
def test_a_census_that_refuses_after_some_steps_takes_nothing_over(space, where, monkeypatch):
    model = nn.Sequential(nn.Linear(8, 8), Owner())
    coverage = 0.9 if where == "min_coverage" else 0.0
    ldp_search.apply(model, target_cost=0.5, min_coverage=coverage, **space)
    ldp = ldp_search.controller(model)
    with pytest.warns(UserWarning, match="before any operation was counted"):
        for step in range(3):  # a part of the model is called, so nothing counts
            model[0](torch.randn(4, 8)).sum().backward()
            ldp.step((step + 1) / 10)
    before, classes = state_of(ldp), [type(m) for m in model.modules()]
    if where == "install":
        monkeypatch.setattr(controllers, "install", interrupting(controllers.install))
    for _ in range(2):  # the next forward says the same again
        with pytest.raises((ValueError, Interrupted)):
            model(X)
        assert same(state_of(ldp), before) and [type(m) for m in model.modules()] == classes
    monkeypatch.undo()
    ldp.space.min_coverage = 0.0
    model(X)
    assert ldp.profiled and remembered(state_of(ldp)) == remembered(before) > 0


# -- finalize -----------------------------------------------------------------------------------------------------------


def pictures() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.BatchNorm1d(3), nn.Linear(3, 2))  # fmt: skip


def searched(model, steps: int = 3, **options):
    ldp_search.apply(model, **{"target_cost": 0.5, "example_inputs": torch.zeros(1, 1, 6, 6)} | options)
    ldp = ldp_search.controller(model)
    for step in range(steps):
        model(torch.randn(8, 1, 6, 6)).sum().backward()
        ldp.step((step + 1) / (steps + 1))
    return ldp


def everything(model, ldp) -> list:
    return [state_of(ldp), copy.deepcopy(model.state_dict()), [m.training for m in model.modules()],
            [getattr(m, "momentum", None) for m in model.modules()], ldp.frozen, ldp.calibrating]  # fmt: skip


def interrupted_loader():
    yield torch.randn(8, 1, 6, 6)
    raise Interrupted


GOOD = torch.randn(8, 1, 6, 6)
FAILING = {
    "a key too many": (lambda: [{"input": GOOD, "label": 1}], TypeError),
    "a last batch of one": (lambda: [GOOD, GOOD[:1]], ValueError),
    "another size": (lambda: [GOOD, torch.randn(2, 3, 6, 6)], RuntimeError),
    "a loader that ends with an error": (lambda: (GOOD if k == 0 else 1 / 0 for k in range(2)), ZeroDivisionError),
    "Ctrl-C": (interrupted_loader, Interrupted),
    "nothing": (list, ValueError),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_finalize_that_fails_leaves_the_trained_model(case):
    model, x = pictures(), torch.randn(4, 1, 6, 6)
    ldp = searched(model)
    before, expected = everything(model, ldp), copy.deepcopy(model).eval()(x)
    loader, error = FAILING[case]
    with pytest.raises(error):
        ldp.finalize(loader())
    assert same(everything(model, ldp), before)
    assert torch.equal(model.eval()(x), expected)


@pytest.mark.parametrize("case", FAILING)
def test_a_finalize_that_fails_before_any_forward_leaves_bits_and_norms(case):
    model = pictures()
    ldp = searched(model, steps=0, example_inputs=None)
    before, bits = everything(model, ldp)[1:], ldp.parameters()["bits"].clone()
    loader, error = FAILING[case]
    with pytest.raises(error):
        ldp.finalize(loader())
    assert same(everything(model, ldp)[1:], before) and not ldp.ranges.any()
    assert not ldp.frozen and (ldp.profiled or torch.equal(ldp.parameters()["bits"], bits))
    ldp.finalize([GOOD])
    assert ldp.profiled and ldp.frozen and ldp.ranges.all()


@pytest.mark.parametrize("error", [Interrupted, torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize("step", ["average_over_ranks", "all_succeed"])
def test_finalize_interrupted_at_its_steps_leaves_the_trained_model(error, step, monkeypatch):
    model = pictures()
    ldp = searched(model)
    before = everything(model, ldp)

    @contextlib.contextmanager
    def fails(*args):
        yield
        raise error

    def also_fails(*args):
        raise error

    monkeypatch.setattr(finalizing, step, fails if step == "all_succeed" else also_fails)
    with pytest.raises((Interrupted, torch.OutOfMemoryError)):
        ldp.finalize([GOOD, GOOD])
    assert same(everything(model, ldp), before)
    monkeypatch.undo()
    ldp.finalize([GOOD, GOOD])
    assert ldp.frozen and torch.allclose(model[1].num_batches_tracked, torch.tensor(2))


def kept_in_eval(model):
    model[1].eval()


def kept_by_override(model):
    class Frozen(type(model)):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model.__class__ = Frozen
    model.train()


@pytest.mark.parametrize("freeze", [kept_in_eval, kept_by_override])
@pytest.mark.parametrize("evaluating", [True, False])
def test_frozen_norms_are_left_alone(freeze, evaluating):
    model = pictures()
    freeze(model)
    ldp = searched(model)
    frozen, moving = (copy.deepcopy(model[i].state_dict()) for i in (1, 5))
    model.train(not evaluating) if freeze is kept_by_override else model[0].train()
    if evaluating:
        model.eval()  # as after an evaluation
    ldp.finalize([5 + GOOD])
    assert same(dict(model[1].state_dict()), dict(frozen)) and not model[1].training
    assert not torch.allclose(model[5].running_mean, moving["running_mean"]), "the others are estimated anew"


def test_norms_of_a_model_that_was_not_trained_are_estimated_in_evaluation_too():
    model = pictures().eval()
    ldp = searched(model, steps=0)
    ldp.finalize([5 + GOOD])
    assert model[1].num_batches_tracked == 1 and model[5].num_batches_tracked == 1


def test_finalize_keeps_buffers_that_are_no_statistics():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    model = nn.Sequential(Counter(), *pictures())
    ldp = searched(model)
    calls = model[0].calls.clone()
    ldp.finalize([GOOD, GOOD])
    assert torch.equal(model[0].calls, calls)


# -- loading ------------------------------------------------------------------------------------------------------------


def broken(state: dict, how: str) -> dict:
    state = copy.deepcopy(state)
    if how == "a policy of another kind":
        state["policy"] = ["no mapping"]
    elif how == "a generator's state that is none":
        state["generator"] = torch.zeros(3, dtype=torch.uint8)
    else:
        state["trajectory"].pop("stride")
    return state


@pytest.mark.parametrize(
    "how", ["a policy of another kind", "a generator's state that is none", "a trajectory that lacks a part"]
)
def test_a_state_that_cannot_be_taken_over_changes_nothing(how, monkeypatch):
    model, other = pictures(), pictures()
    ldp, donor = searched(model), searched(other, steps=5)
    before = state_of(ldp)
    state = broken(donor.state_dict(), how)
    if how == "a policy of another kind":
        monkeypatch.setattr(ldp.policy, "load_state_dict", lambda state: dict(state), raising=False)
    with pytest.raises((TypeError, ValueError, RuntimeError, KeyError)):
        ldp.load_state_dict(state)
    monkeypatch.undo()
    assert same(state_of(ldp), before)
    ldp.load_state_dict(donor.state_dict())
    assert same(state_of(ldp), state_of(donor))


def test_a_state_refused_after_its_counts_were_taken_leaves_the_model_to_count_itself():
    donor, other = searched(pictures(), steps=5), pictures()
    state = broken(donor.state_dict(), "a trajectory that lacks a part")
    ldp = ldp_search.controller(ldp_search.apply(other, target_cost=0.5))
    with pytest.raises(KeyError):
        ldp.load_state_dict(state)
    assert not ldp.profiled and "profile" in ldp.hooks
    other(torch.randn(2, 1, 6, 6))
    assert ldp.profiled and ldp.cost().relative > 0
