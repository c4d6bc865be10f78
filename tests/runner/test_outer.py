"""The `outer:` section of a search space: ranges, conditions, what is tried first, and every mistake in one message."""

import optuna
import pytest
import yaml

from ldp_search.config import presets
from ldp_search.config.overlay import ConfigError
from ldp_search.config.resolve import resolve
from ldp_search.runner.search.outer_space import parse
from ldp_search.runner.search.samplers import grid, make_pruner, make_sampler
from ldp_search.runner.search.searched_settings import outer_space, setting_of

SEARCHED = [name for name in presets.names("search_spaces") if "outer" in presets.load("search_spaces", name)]


def space_of(tmp_path, params, **more):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"policy": "bit_gradient", "target_cost": 0.5,
                                                       "outer": {"params": params} | more}, sort_keys=False))  # fmt: skip
    settings = resolve([f"space={tmp_path / 'own.yaml'}"])
    return outer_space(settings), setting_of(settings)


WRONG = [
    ({}, "A search needs `outer: {params: ...}`"),
    ({"lrr": [1, 2]}, "'lrr' is no setting that can be searched in `outer.params.lrr` in search space"),
    ({"seed": [1, 2]}, "'seed' is no setting that can be searched"),
    ({"lr": 0.1}, "A range is a list of choices or {low: ..., high: ...}"),
    ({"lr": {"low": 0.1}}, "A range needs numbers low < high"),
    ({"lr": {"low": 0.3, "high": 0.1}}, "A range needs numbers low < high"),
    ({"lr": {"low": 0.0, "high": 0.1, "log": True}}, "A logarithmic range needs low > 0"),
    ({"lr": {"low": 0.1, "hihg": 0.2}}, "Unknown key 'hihg' in `outer.params.lr`"),
    ({"lr": {"low": -1.0, "high": 0.2}}, "lr must be greater than 0"),
    ({"lr": [0.1, 0.1]}, "The choices must differ"),
    ({"policy": ["bit_gradient", "cylic"]}, "Did you mean 'cyclic'?"),
    ({"policy.lr": ["a", "b"]}, "policy.lr must be a number; received 'a'"),
    ({"policy.cycles": [1, 2]}, "The policy 'bit_gradient' has no option 'cycles'"),
    ({"bits": [[3, 8], [1, 8]]}, "bits must be integers with 2 <= lowest"),
    ({"policy.lr": {"low": 0.1, "high": 0.2, "if": {"policy": "bit_gradient"}}, "policy": ["bit_gradient"]},
     "which must stand above it"),
]  # fmt: skip


@pytest.mark.parametrize(("params", "message"), WRONG)
def test_mistakes(params, message, tmp_path):
    with pytest.raises(ConfigError) as raised:
        space_of(tmp_path, params)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"max_cots": 1}, "Did you mean 'max_cost'?"), ({"max_cost": -1}, "must be a number above 0"),
     ({"enqueue": [{"lt": 0.1}]}, "sets 'lt', which is not searched"), ({"enqueue": [{"lr": 9}]}, "outside of its range")],
)  # fmt: skip
def test_mistakes_beside_the_ranges(more, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        space_of(tmp_path, {"lr": [0.1, 0.2]}, **more)


@pytest.mark.parametrize("name", SEARCHED)
def test_shipped_spaces_are_sound(name):
    """Every value of every range can be set, and the defaults, which come first, are all within their ranges."""
    settings = resolve([f"space={name}"])
    space = outer_space(settings)
    first = space.first_trials(setting_of(settings))[0]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(first)
    for _ in range(2):
        chosen = space.suggest(study.ask(), setting_of(settings))
        resolve([f"space={name}", *(f"{key}={value}" for key, value in chosen.items())])
    assert set(first) == set(study.trials[0].params)


def test_conditions_and_labels(tmp_path):
    params = {
        "policy": ["bit_gradient", "cyclic", "ldp_sgd"],
        "policy.cycles": {"low": 2, "high": 32, "log": True, "if": {"policy": "cyclic"}},
        "policy.lr@a": {"low": 0.01, "high": 0.3, "if": {"policy": "bit_gradient"}},
        "policy.lr@b": {"low": 1.0, "high": 3.0, "if": {"policy": "ldp_sgd"}},
        "bits": [[3, 8], [2, 4]],
    }
    space, setting = space_of(tmp_path, params, enqueue=[{"policy": "cyclic", "policy.cycles": 4}, {"policy": "ldp_sgd"}])
    firsts = space.first_trials(setting)
    assert firsts[0] == {"policy": "bit_gradient", "policy.lr@a": 0.05, "bits": "[3, 8]"}
    assert firsts[1] == {"policy": "cyclic", "policy.cycles": 4, "bits": "[3, 8]"}
    assert firsts[2] == {"policy": "ldp_sgd", "policy.lr@b": 1.0, "bits": "[3, 8]"}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = [space.suggest(study.ask(), setting) for _ in range(20)]
    assert all(("policy.cycles" in s) == (s["policy"] == "cyclic") and s["bits"] in ([3, 8], [2, 4]) for s in seen)
    assert all(("policy.lr" in s) == (s["policy"] != "cyclic") for s in seen)
    assert len({str(s) for s in seen}) > 10


def test_what_the_command_line_fixes_is_not_searched():
    settings = resolve(["space=policies", "policy=cyclic", "lr=0.05"])
    space = outer_space(settings)
    assert {p.key for p in space.params} & {"policy", "lr"} == set()
    assert set(space.first_trials(setting_of(settings))[0]) == {"policy.cycles"}
    with pytest.raises(ConfigError, match="Nothing is left to search"):
        outer_space(resolve(["space=quick", "lr=0.1", "policy.grad_rate=1", "policy.freeze=0.1"]))


def test_a_grid_has_as_many_points_as_fit():
    space = parse({"params": {"a": {"low": 0.0, "high": 1.0}, "b": ["x", "y"], "c": {"low": 1, "high": 100, "log": True,
                                                                                     "if": {"b": "x"}}}}, "here")  # fmt: skip
    cells = grid(space, lambda key: None, 18, seed=0)
    assert len(cells) == 12  # 3 values of a, with x three of c, with y none
    assert {cell["a"] for cell in cells} == {0.0, 0.5, 1.0} and {cell.get("c") for cell in cells} == {1, 10, 100, None}
    assert cells != grid(space, lambda key: None, 18, seed=1)


def test_samplers_and_pruners_by_name_and_by_the_number_of_trials():
    names = ("tpe", "random", "qmc", "gp", "nsgaii")
    for name in names:
        make_sampler(name, 30, pareto=False, seed=0)
    assert type(make_sampler("auto", 30, False, 0).inner).__name__ == "TPESampler"
    assert type(make_sampler("auto", 2000, True, 0).inner).__name__ == "NSGAIISampler"
    assert type(make_pruner("auto", 20, False, 20).inner).__name__ == "MedianPruner"
    assert type(make_pruner("auto", 60, False, 20)).__name__ == "HyperbandPruner"
    assert type(make_pruner("auto", 60, False, 1)).__name__ == type(make_pruner("auto", 60, True, 9)).__name__ == "NopPruner"
    with pytest.raises(ConfigError, match="sampler=tpe has no option 'n_startup'. Did you mean 'n_startup_trials'"):
        make_sampler({"name": "tpe", "n_startup": 3}, 20, False, 0)
    with pytest.raises(ConfigError, match="pruner=median has no option 'startup'"):
        make_pruner({"name": "median", "startup": 3}, 20, False, 9)


def test_the_pruner_compares_with_feasible_trials():
    study = optuna.create_study(direction="maximize", pruner=make_pruner("median", 20, False, 6))
    for value in range(6):  # those that spend too much are all better
        trial = study.ask()
        for step in (1, 2, 3):
            trial.report(0.5 + value / 10, step)
        trial.set_constraint("cost", 1.0)
        study.tell(trial, 1.0)
    trial = study.ask()
    for step in (1, 2, 3):
        trial.report(0.1, step)
    assert not trial.should_prune()


def test_a_trial_draws_the_same_again():
    sampler = make_sampler("tpe", 30, False, seed=3)
    study = optuna.create_study(sampler=sampler)
    for _ in range(8):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))
    first = study.ask().suggest_float("x", 0, 1)
    again = optuna.create_study(sampler=make_sampler("tpe", 30, False, seed=3))
    again.add_trials(study.trials[:8])
    assert again.ask().suggest_float("x", 0, 1) == first


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_a_trial_that_is_taken_up_between_two_parameters_draws_the_rest_as_it_would_have(name):
    """Of a killed worker's trial the storage has the parameters drawn so far; they are not drawn again."""

    def drawn(trial, *parameters):
        return [trial.suggest_float(parameter, 0.0, 1.0) for parameter in parameters]

    whole, cut = (optuna.create_study(sampler=make_sampler(name, 30, False, seed=3)) for _ in range(2))
    expected = drawn(whole.ask(), "a", "b", "c")
    begun = cut.ask()
    assert drawn(begun, "a") == expected[:1]
    taken_up = optuna.Trial(cut, begun._trial_id)
    assert drawn(taken_up, "a", "b", "c") == expected and len(set(expected)) == 3
