"""A batch that overflows, and calls that come out of place: no signal, nothing that stays, and a word where it matters."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ldp_search

BROKEN = 5


def built():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(space="ldp", steps=40, broken=None, **options):
    """A model whose loss (broken="loss") or input (broken="input") was not finite at one step, which no optimizer took."""
    model = ldp_search.apply(built(), space, example_inputs=torch.zeros(1, 4), **options)
    ldp, optimizer = ldp_search.controller(model), torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
    for step in range(steps):
        now = x.clone()
        if step == BROKEN and broken == "input":
            now[0, 0] = float("nan")
        loss = F.cross_entropy(model(now), y)
        if step == BROKEN and broken == "loss":
            loss = loss * float("nan")
        loss.backward()
        ldp.step((step + 1) / steps, loss=loss.detach(), optimizer=optimizer)
        if loss.isfinite():
            optimizer.step()
        optimizer.zero_grad()
    return model, ldp, x


ANY = {
    "paper": {"space": "ldp_paper"},
    "learned": {},
    "weighted": {"target_cost": None, "cost_weight": 0.1},
    "bit_gradient": {"policy": "bit_gradient", "grad_bits": 8, "target_cost": 0.5},
    "progressive": {"policy": {"name": "progressive", "window": 2, "eps": 0.05}, "target_cost": None, "split_gradient": False},
}


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("broken", ["loss", "input"])
def test_one_broken_step_stays_nowhere(name, broken):
    model, ldp, x = trained(broken=broken, **ANY[name])
    low, high = ldp.problem.low, ldp.problem.high
    assert ((ldp.tensors.bits >= low) & (ldp.tensors.bits <= high)).all() and torch.isfinite(ldp.tensors.spent)
    for tensor in ldp.tensors.all():
        assert torch.isfinite(tensor).all()
    assert torch.isfinite(model.eval()(x)).all()
    numbers = [v for v in ldp.policy.state.values() if isinstance(v, float | torch.Tensor)]
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in numbers)
    assert ldp.finalize().summary["mean_relative_cost"] < 1.01


def test_a_stalled_loss_still_advances_after_a_broken_step():
    stages = [trained(broken=broken, **ANY["progressive"])[1].policy.state["stage"] for broken in (None, "loss")]
    assert stages[0] == stages[1] > 0


def test_a_first_loss_that_is_not_finite_is_forgotten():
    _, ldp, _ = trained(steps=12, **ANY["weighted"])
    again = ldp_search.controller(ldp_search.apply(built(), example_inputs=torch.zeros(1, 4), **ANY["weighted"]))
    again.step(0.1, loss=torch.tensor(float("inf")))
    assert float(again.policy.state["loss"]) == 1 and torch.isfinite(ldp.policy.state["loss"])


def test_a_state_of_other_sizes_is_refused():
    small, large = (nn.Sequential(nn.Linear(n, n), nn.Linear(n, 2)) for n in (4, 40))
    ldp_search.apply(small, example_inputs=torch.zeros(1, 4))
    ldp_search.apply(large)
    state, ldp = ldp_search.controller(small).state_dict(), ldp_search.controller(large)
    with pytest.raises(ValueError, match=r"these have other sizes: 0 \(16 weights, here 1,600\), 1 \(8 weights, here 80\)"):
        ldp.load_state_dict(state)
    assert not ldp.profiled
    large(torch.randn(2, 40))  # counted as ever
    assert ldp.layers["0"].macs == 1600


def test_a_removed_controller_moves_nothing():
    model = ldp_search.apply(built(), example_inputs=torch.zeros(1, 4))
    old = ldp_search.controller(model)
    ldp_search.remove(model)
    ldp_search.apply(model, example_inputs=torch.zeros(1, 4))
    for call in (lambda: old.step(0.1), lambda: old.finalize()):
        with pytest.raises(RuntimeError, match=r"removed from its model.*ldp_search\.controller\(model\)"):
            call()
    ldp_search.controller(copy.deepcopy(model)).step(0.1)


def test_a_training_in_evaluation_mode_is_named_at_once():
    model = ldp_search.apply(built(), example_inputs=torch.zeros(1, 4)).eval()
    ldp, optimizer = ldp_search.controller(model), torch.optim.SGD(model.parameters(), 0.1)
    F.cross_entropy(model(torch.randn(6, 4)), torch.arange(6) % 3).backward()
    with pytest.warns(UserWarning, match=r"evaluation mode.*Call model\.train\(\)"):
        ldp.step(0.1, optimizer=optimizer)
    with pytest.warns(UserWarning, match="were not learned; nothing was measured"):
        ldp.finalize()


def test_bits_that_no_step_has_moved_are_named_at_the_end():
    ldp = ldp_search.controller(ldp_search.apply(built(), example_inputs=torch.zeros(1, 4)))
    with pytest.warns(UserWarning, match=r"were not learned; no ldp\.step\(\) was called"):
        ldp.finalize()
    fixed = ldp_search.controller(ldp_search.apply(built(), "static", example_inputs=torch.zeros(1, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed.finalize()
        trained(steps=12)[1].finalize()


@pytest.mark.parametrize(("share", "early"), [(0.5, True), (0.995, False), (1.0, False)])
def test_bits_that_are_final_before_the_end_are_named_once(share, early):
    ldp = trained(steps=12)[1]
    ldp._progress, ldp.frozen = share, False
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        allocation = ldp.finalize()
        ldp.finalize()
    told = [str(warning.message) for warning in heard]
    assert len(told) == early and all("final at 50% of the training" in one and "Let progress rise to 1" in one for one in told)
    assert allocation.summary.get("progress", 1.0) == share


def test_a_training_that_goes_on_from_a_folder_is_told_what_it_lacks(tmp_path):
    model, ldp, _ = trained(steps=12)
    ldp._progress = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class of the test's own has no recipe
        ldp_search.save_pretrained(model, tmp_path / "out")
    loaded = ldp_search.controller(ldp_search.load_pretrained(tmp_path / "out", model=built()))
    with pytest.warns(UserWarning, match=r"goes on at 50% without what it had measured.*state_dict\(\)"):
        loaded.step(0.6)
