"""A training that begins again, is resumed with another length, or stops in the middle."""

import warnings

import pytest
import torch
from breadth import breadth
from test_attach_to_optimizer import INPUTS, make, train
from test_integrations import TrainerCallback, checkpoint, same_training, trainer
from torch import nn

import ldp_search
from ldp_search import controller
from ldp_search.integrations import LDPCallback, attach_to_optimizer

SPACES = {
    "learned": {"target_cost": 0.5},
    "clips and draws": {
        "target_cost": 0.5, "weight_quantizer": "clip", "input_quantizer": "clip", "relaxation": "sample",
    },
    "bit gradients": {"space": {"policy": "bit_gradient", "target_cost": 0.5, "relaxation": "sample"}},
    "cyclic": {"policy": "cyclic"},
}  # fmt: skip


class OutOfMemoryAt(TrainerCallback):
    """Raises what CUDA raises, once, at a point of the given step."""

    def __init__(self, step: int, event: str = "on_optimizer_step"):
        self.step = step
        setattr(self, event, self._raise)

    def _raise(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.step = None
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def begin_state(ldp) -> dict:
    state = ldp.state_dict()
    return {k: state[k] for k in ("layers", "policy", "trajectory", "progress", "frozen", "generator", "tensors")}


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# -- a retry in the same process ------------------------------------------------------------------------------------


@breadth("space", SPACES.values(), always=1, ids=SPACES)
@breadth("event", ["on_pre_optimizer_step", "on_optimizer_step"], always=["on_optimizer_step"])
def test_a_retry_after_out_of_memory_begins_with_the_bits_of_the_first_begin(tmp_path, space, event):
    seen = []

    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.append(begin_state(controller(model)))

    others = [Begin(), OutOfMemoryAt(2, event)]
    made = trainer(tmp_path, space, others=others, auto_find_batch_size=True, save_strategy="no")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made.train()
    ldp = controller(made.model)
    assert len(seen) == 2 and ldp.trajectory.seen == made.state.max_steps == 12
    for key in ("trajectory", "progress", "frozen", "layers"):
        assert equal(seen[0][key], seen[1][key]), key
    assert not seen[1]["tensors"]["ranges"].any() and not seen[1]["tensors"]["spent"]
    assert ldp.cost().mean_relative == pytest.approx(0.5, abs=0.01) or "target_cost" not in space


@pytest.mark.slow(reason="of frozen bits what a retry always shows of learned ones")
def test_a_retry_begins_with_frozen_bits_where_the_first_did(tmp_path):
    made = trainer(tmp_path, others=[OutOfMemoryAt(3)], auto_find_batch_size=True, save_strategy="no")
    ldp = controller(made.model)
    ldp.finalize([{k: v[None] for k, v in made.train_dataset[i].items()} for i in range(3)])
    bits = ldp.bits()
    made.train()
    assert ldp.frozen and ldp.bits() == bits and ldp.trajectory.seen == 12


@pytest.mark.slow(reason="a retry and a resume at once; each always is alone")
def test_a_retry_of_a_resumed_training_goes_on_from_the_checkpoint(tmp_path):
    whole = trainer(tmp_path / "whole", max_steps=8)
    whole.train()
    folder = checkpoint(whole, 4, tmp_path / "checkpoint-4")
    made = trainer(tmp_path, others=[OutOfMemoryAt(6)], auto_find_batch_size=True, max_steps=8, save_strategy="no")
    made.train(resume_from_checkpoint=folder)
    ldp = controller(made.model)
    assert ldp.trajectory.seen == 8 and ldp.trajectory.progress == pytest.approx([(i + 1) / 8 for i in range(8)])


def test_a_training_that_was_stopped_begins_anew_and_says_so(tmp_path):
    class Stop(TrainerCallback):
        stopped = False

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3 and not self.stopped:
                self.stopped = True
                raise KeyboardInterrupt

    made = trainer(tmp_path, others=[Stop()], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        made.train()
    with pytest.warns(UserWarning, match=r"stopped after 3 steps. Its bits are forgotten .*resume_from_checkpoint=True"):
        made.train()
    assert controller(made.model).trajectory.seen == 12
    with pytest.raises(ValueError, match="trained for 12 steps before"):  # this one did end
        made.train()


def test_one_callback_serves_a_new_model_after_a_stopped_one(tmp_path):
    callback = LDPCallback()
    with pytest.raises(torch.OutOfMemoryError):
        trainer(tmp_path, callback=callback, others=[OutOfMemoryAt(2)], save_strategy="no").train()
    made = trainer(tmp_path, callback=callback, save_strategy="no")
    made.train()
    fresh = trainer(tmp_path, save_strategy="no")
    fresh.train()
    same_training(made, fresh)


def test_another_optimizer_goes_on_with_the_bits_and_says_so():
    model, optimizer = make()
    train(model, optimizer, 2)
    second = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"took 2 steps with another optimizer.*ldp_search.remove\(model\)"):
        attach_to_optimizer(model, second, 6)
    train(model, second, 4)
    assert controller(model).trajectory.progress[-1] == 1


# -- another length -------------------------------------------------------------------------------------------------


@breadth(
    "step, options, stands, here",
    [
        (4, {"max_steps": 24}, r"33% of its training \(step 4 of 12\)", "24 steps, of which step 4 is 17%"),
        (12, {"max_steps": 13}, r"100% of its training \(step 12 of 12\)", "13 steps, of which step 12 is 92%"),
        (
            8,
            {"max_steps": -1, "num_train_epochs": 4},
            r"67% of its training \(step 8 of 12\)",
            "100 steps, of which step 8 is 8%",
        ),
    ],
    always=1,
)
def test_a_longer_training_is_refused_before_its_first_step(tmp_path, whole, step, options, stands, here):
    resumed = trainer(tmp_path, **options)
    before = begin_state(controller(resumed.model))
    with pytest.raises(
        ValueError, match=rf"stands at {stands}, but this training has {here}.*num_train_epochs .* make 12 steps"
    ):
        resumed.train(resume_from_checkpoint=checkpoint(whole, step, tmp_path / f"checkpoint-{step}"))
    assert equal(before, begin_state(controller(resumed.model)))


def test_a_shorter_training_goes_on_and_says_that_bits_jump(tmp_path, whole):
    resumed = trainer(tmp_path, max_steps=6)
    with pytest.warns(UserWarning, match=r"33% of its training \(step 4 of 12\), but .*6 steps, .*67%: the bits jump"):
        resumed.train(resume_from_checkpoint=checkpoint(whole, 4, tmp_path / "checkpoint-4"))
    assert controller(resumed.model).trajectory.progress[-1] == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of 12 steps with checkpoints at 4, 8 and 12."""
    made = trainer(tmp_path_factory.mktemp("whole"))
    made.train()
    return made


@pytest.mark.parametrize("total", [12, lambda: 12], ids=["number", "function"])
def test_a_longer_total_is_refused_when_the_optimizer_is_loaded_or_steps(total):
    model, optimizer = make()
    train(model, optimizer, 3)
    other, its = make(total)
    expected = pytest.raises(
        ValueError, match=r"stands at 50% of its training \(step 3 of 6\), but .*total_steps=12, .*total_steps=6"
    )
    if callable(total):
        its.load_state_dict(optimizer.state_dict())
        with expected:
            train(other, its, 1)
    else:
        before = begin_state(controller(other))
        with expected:
            its.load_state_dict(optimizer.state_dict())
        assert equal(before, begin_state(controller(other)))


def test_a_shorter_total_is_said_to_jump():
    model, optimizer = make()
    train(model, optimizer, 2)
    other, its = make(3)
    with pytest.warns(UserWarning, match="33% of its training .*the bits jump ahead.*total_steps=6"):
        its.load_state_dict(optimizer.state_dict())
    train(other, its, 1)
    assert controller(other).trajectory.progress[-1] == 1


def test_what_the_optimizer_refuses_leaves_the_bits_alone():
    model, optimizer = make()
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    state["param_groups"] = state["param_groups"] * 2
    other, its = make()
    before = begin_state(controller(other))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        its.load_state_dict(state)
    assert equal(before, begin_state(controller(other)))


# -- the controller's own state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_state_from_before_the_counting_is_taken_by_a_model_that_has_counted(space):
    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 4))

    one, other = (ldp_search.apply(fresh(), **space) for _ in range(2))
    before = controller(one).state_dict()
    for model in (one, other):
        model(INPUTS)
    for step in range(2):
        one(INPUTS)[0].square().mean().backward()
        controller(one).step((step + 1) / 6)
    controller(one).load_state_dict(before)
    assert equal(begin_state(controller(one))["policy"], begin_state(controller(other))["policy"])
    assert controller(one).bits() == controller(other).bits() and controller(one).profiled
    assert controller(one).trajectory.seen == 0
    for model in (one, other):
        torch.manual_seed(1)
        model(INPUTS)[0].square().mean().backward()
        controller(model).step(1 / 6)
    assert controller(one).cost() == controller(other).cost()


@pytest.mark.parametrize("hook", ["policy", "trajectory", "generator", "_optimizer"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_state_is_taken_whole_or_not_at_all(monkeypatch, hook, error):
    model, optimizer = make(target_cost=0.5, weight_quantizer="clip", input_quantizer="clip")
    train(model, optimizer, 3)
    state = controller(model).state_dict()
    other = make(target_cost=0.5, weight_quantizer="clip", input_quantizer="clip")[0]
    ldp = controller(other)
    before, calls = ldp.state_dict(), []
    owner = ldp.tensors if hook == "_optimizer" else ldp
    part = getattr(owner, hook)
    name = "set_state" if hook == "generator" else "load_state_dict"
    own = getattr(part, name)

    def fail_once(value):
        calls.append(1)
        if len(calls) == 1:
            raise error("in the middle")
        own(value)

    stand_in = type("StandIn", (), {"__getattr__": lambda self, key: getattr(part, key)})()
    setattr(stand_in, name, fail_once)
    setattr(owner, hook, stand_in)
    with pytest.raises(error, match="in the middle"):
        ldp.load_state_dict(state)
    setattr(owner, hook, part)
    assert calls and equal(before, ldp.state_dict())


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_of_it(tmp_path, monkeypatch):
    made = trainer(tmp_path, max_steps=4)
    made.train()
    folder = tmp_path / "checkpoint-4"
    content = (folder / "ldp_state.pt").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        made.callback_handler.on_save(made.args, made.state, made.control)
    assert (folder / "ldp_state.pt").read_bytes() == content and not list(folder.glob("*.unfinished"))
