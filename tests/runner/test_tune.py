"""The search around one's own training function."""

import optuna
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ldp_search
from ldp_search.runner.search import best

SPACE = {"target_cost": 0.5, "outer": {"max_cost": 0.5, "params": {
    "lr": {"low": 0.01, "high": 1.0, "log": True}, "target_cost": {"low": 0.4, "high": 0.6}, "width": [4, 8],
}}}  # fmt: skip


def train(trial, steps=30):
    torch.manual_seed(trial.seed)
    net = nn.Sequential(nn.Linear(4, trial["width"]), nn.ReLU(), nn.Linear(trial["width"], 2))
    model = ldp_search.apply(net, trial.space, example_inputs=torch.zeros(1, 4))
    ldp, optimizer = ldp_search.controller(model), torch.optim.SGD(model.parameters(), lr=trial["lr"])
    x = torch.randn(64, 4)
    for step in range(steps):
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        loss.backward()
        ldp.step((step + 1) / steps)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            trial.report(step // 10 + 1, -loss.item())
    return -loss.item(), ldp, {"more": 1.5}


def test_a_function_is_searched(tmp_path, unpainted):
    found = ldp_search.tune(train, SPACE, tmp_path / "s.journal", trials=3, metric="log likelihood", reports=3)
    study = best.load_study(tmp_path / "s.journal")
    assert len(study.trials) == 3 and study.user_attrs["metric"] == "log likelihood"
    assert found.figures["training_cost"] <= 0.5 * 1.005 and found.figures["more"] == 1.5 and set(found.allocation.layers)
    assert found.metric == max(t.value for t in study.trials if t.value is not None and t.constraints["training_cost"] <= 0)
    assert found == ldp_search.best(tmp_path / "s.journal")
    assert (found.folder / "schedule.png").exists() and (found.folder / "schedule.parquet").exists()
    assert any(k.startswith("artifacts:") for k in study.trials[0].system_attrs)
    again = ldp_search.tune(lambda trial: 1 / 0, SPACE, tmp_path / "s.journal", trials=3, metric="log likelihood", reports=3)
    assert again == found  # nothing was left to do


def test_minimize_and_two_objectives(tmp_path):
    def loss(trial):
        return abs(trial["lr"] - 0.1), None, {"training_cost": trial["target_cost"]}

    found = ldp_search.tune(loss, SPACE, tmp_path / "a.journal", trials=8, direction="minimize", sampler="random")
    rows = best.load_study(tmp_path / "a.journal").trials
    assert found.metric == min(t.value for t in rows if t.constraints["training_cost"] <= 0)
    ldp_search.tune(loss, SPACE, tmp_path / "b.journal", trials=8, direction="minimize", pareto=True)
    assert [d.name for d in best.load_study(tmp_path / "b.journal").directions] == ["MINIMIZE", "MINIMIZE"]


def test_mistakes(tmp_path):
    for words, message in (
        ({"direction": "max"}, "direction must be maximize or minimize"), ({"sampler": "tp"}, "Unknown sampler 'tp'"),
        ({"workers": 3}, "tune has no option 'workers'"), ({"space": "static"}, "A search needs `outer:"),
        ({"space": {"bist": 3, "outer": SPACE["outer"]}}, "Unknown field 'bist' of a search space"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ldp_search.tune(train, **({"space": SPACE, "storage": tmp_path / "s.journal"} | words))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("returned", [None, "x", (1.0, "no controller"), (1.0, None, 3)])
def test_a_function_that_returns_something_else(returned, tmp_path):
    with pytest.raises(RuntimeError, match="All trials fail, the last one: TypeError: train_fn must return"):
        ldp_search.tune(lambda trial: returned, SPACE, tmp_path / "s.journal", trials=5)
    assert sum(t.state == optuna.trial.TrialState.FAIL for t in best.load_study(tmp_path / "s.journal").trials) == 3


def test_a_setting_that_is_not_searched(tmp_path):
    with pytest.raises(RuntimeError, match="'ls' is not searched in this trial; searched: lr, target_cost, width"):
        ldp_search.tune(lambda trial: trial["ls"], SPACE, tmp_path / "s.journal", trials=3)
