"""Search spaces: what is shipped, what is derived, what is refused; components by name; names and groups."""

import dataclasses
import json

import pytest
import torch

import ldp_search
from ldp_search import Policy, Quantizer, Schedule, SearchSpace
from ldp_search.config import presets
from ldp_search.core import Backend, GradQuantizer, Relaxation
from ldp_search.core.bits.coordinates import assign_groups, block_of
from ldp_search.core.registry import build, describe, names

SHIPPED = ["cyclic", "ldp", "ldp_paper", "progressive", "ramp", "random", "static"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_are_whole(name, mlp):
    assert name in presets.names("search_spaces")
    space = ldp_search.resolve_space(name)
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    ldp = ldp_search.controller(ldp_search.apply(mlp(), name, example_inputs=torch.zeros(1, 8)))
    ldp.step(1.0, loss=1.0)


def test_a_space_in_four_forms(tmp_path):
    values = {"policy": {"name": "cyclic", "cycles": 4}, "bits": [4, 6], "tie": True}
    (tmp_path / "own.yaml").write_text(
        "description: mine\nouter: {}\npolicy: {name: cyclic, cycles: 4}\nbits: [4, 6]\ntie: true\n"
    )
    forms = (values, SearchSpace(**values), tmp_path / "own.yaml", str(tmp_path / "own.yaml"))
    spaces = [ldp_search.resolve_space(form) for form in forms]
    assert all(space == spaces[0] for space in spaces) and spaces[0].weight_bits == (4, 6)


def test_derived_ranges_follow():
    space = SearchSpace(bits=(3, 8), weight_bits=4)
    assert space.weight_bits == (4, 4) and space.input_bits == (3, 8) and space.grad_bits == (8, 8)
    changed = space.replace(bits=(2, 5))
    assert changed.weight_bits == (4, 4) and changed.input_bits == (2, 5)
    assert SearchSpace(bits=6).bits == (6, 6)
    assert space.bits == (3, 8), "replace makes another space"


@pytest.mark.parametrize(
    ("base", "change", "found"),
    [
        ({"target_cost": 0.5}, {"cost_weight": 0.1}, (None, 0.1)),
        ({"cost_weight": 0.1}, {"target_cost": 0.5}, (0.5, None)),
        ({"target_cost": 0.5}, {"target_cost": None}, (None, None)),
    ],
)
def test_a_budget_and_a_weight_replace_each_other(base, change, found):
    space = SearchSpace(**base).replace(**change)
    assert (space.target_cost, space.cost_weight) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": (1, 8)}, r"bits must be integers with 2 <= lowest <= highest <= 16; received \(1, 8\)"),
        ({"bits": (8, 3)}, "2 <= lowest <= highest"),
        ({"bits": (3, 17)}, "<= 16"),
        ({"bits": 4.5}, "must be integers"),
        ({"bits": "many"}, "one number or a pair"),
        ({"bits": (3, 4, 5)}, "one number or a pair"),
        ({"bits": True}, "one number or a pair"),
        ({"bits": float("nan")}, "bits must be integers"),
        ({"bits": 32}, "bits must be integers"),
        ({"grad_bits": 33}, "or 32 for full precision"),
        ({"weight_bits": (0, 2)}, "weight_bits must be"),
        ({"fixed": {"*head": (3, 8)}}, r"fixed\['\*head'\] must be one number of bits"),
        ({"granularity": "layers"}, "Unknown granularity 'layers'.*Did you mean 'layer'"),
        ({"tie": True, "weight_bits": 4}, "tie=True shares bits.*Give `bits` alone, or tie=False"),
        ({"target_cost": 1.5}, r"target_cost must be in \(0, 1\]"),
        ({"target_cost": 0}, r"target_cost must be in \(0, 1\]"),
        ({"cost_weight": -1}, "cost_weight must be >= 0"),
        ({"target_cost": 0.5, "cost_weight": 1}, "exclude each other"),
        ({"min_coverage": 2}, "min_coverage must be in"),
        ({"policy": "learnd"}, "Unknown policy 'learnd'.*Did you mean 'learned'"),
        ({"relaxation": "rond"}, "Unknown relaxation 'rond'.*Did you mean 'round'"),
        ({"weight_quantizer": "min_max"}, "Unknown quantizer 'min_max'.*Did you mean 'minmax'"),
        ({"grad_quantizer": "stochastc"}, "Unknown grad_quantizer 'stochastc'.*'stochastic'"),
        ({"backend": "simulated"}, "Unknown backend 'simulated'.*'simulate'"),
        ({"policy": {"name": "cyclic", "cycle": 8}}, "'cyclic' has no option 'cycle'.*Did you mean 'cycles'"),
        ({"policy": {"name": "random", "x": 8}}, "'random' has no option 'x'. It has no options"),
        ({"policy": {"cycles": 8}}, "given by name, or as"),
        ({"policy": 7}, "given by name, or as.*received 7"),
        ({"policy": "no_such_module:X"}, "must name an importable dataclass.*no_such_module"),
        ({"policy": "math:no_such_name"}, "must name an importable dataclass"),
        ({"policy": "math:sqrt"}, "must name an importable dataclass"),
    ],
)  # fmt: skip
def test_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.from_dict(values)


INCOMPLETE = """
from dataclasses import dataclass
from ldp_search import Policy

@dataclass
class NoStep(Policy):
    def begin(self):
        return self.problem.low

@dataclass
class NoBase:
    def __call__(self, call):
        return call.x
"""


def empty(base: type) -> type:
    return dataclasses.dataclass(type("Empty", (base,), {}))


@pytest.mark.parametrize(
    ("base", "missing"),
    [
        (Policy, "begin|step"),
        (Schedule, "fraction"),
        (Quantizer, "grid"),
        (GradQuantizer, "grid"),
        (Relaxation, "realize"),
        (Backend, "__call__"),
    ],
)
def test_an_incomplete_class_fails_when_it_is_made_and_says_what_it_lacks(base, missing):
    with pytest.raises(TypeError, match=f"Empty.*({missing})"):
        empty(base)()


def test_a_component_of_ones_own_that_is_incomplete_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "incomplete.py").write_text(INCOMPLETE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"policy 'incomplete:NoStep' must define step, as ldp_search\..*Policy says"):
        SearchSpace(policy="incomplete:NoStep")
    with pytest.raises(ValueError, match="backend 'incomplete:NoBase' must be derived from .*Backend; it has no base"):
        SearchSpace(backend="incomplete:NoBase")
    with pytest.raises(ValueError, match="backend 'Cyclic' must be derived from .*Backend; it has Schedule, Policy"):
        SearchSpace(backend=build("policy", "cyclic"))


def test_what_derives_from_a_registered_component_is_described_as_itself():
    @dataclasses.dataclass
    class Half(type(build("quantizer", "minmax"))):
        pass

    assert describe(Half())["name"].endswith("Half")


def test_one_pattern_may_be_given_bare():
    assert SearchSpace(skip="*.head").skip == ["*.head"]


@pytest.mark.parametrize("kind", ["policy", "quantizer", "relaxation", "grad_quantizer", "backend"])
def test_components_describe_themselves(kind):
    for name in names(kind):
        component = build(kind, name)
        again = build(kind, describe(component))
        assert again == component and again is not component
        assert describe(component)["name"] == name and type(component).__doc__
        assert build(kind, component) is not component


def test_instances_become_plain_data():
    space = SearchSpace(policy=build("policy", {"name": "cyclic", "cycles": 5}))
    assert json.loads(json.dumps(space.to_dict()))["policy"] == {"name": "cyclic", "cycles": 5}
    assert dataclasses.is_dataclass(space.replace(bits=(3, 4)).policy)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("layer1.0.conv2", "layer1.0"),
        ("encoder.layer.11.attention.self.query", "encoder.layer.11"),
        ("features.12", "features.12"),
        ("0", "0"),
        ("0.conv", "0"),
        ("fc", "fc"),
        ("conv1", "conv1"),
        ("", ""),
    ],
)
def test_blocks(name, block):
    assert block_of(name) == block


@pytest.mark.parametrize(
    ("granularity", "tie", "groups"),
    [
        ("layer", False, 6),
        ("layer", True, 3),
        ("block", False, 4),
        ("block", True, 2),
        ("network", False, 2),
        ("network", True, 1),
    ],
)
def test_groups(granularity, tie, groups):
    layers, low = ["b.0.x", "b.0.y", "b.1.x"], torch.tensor([[3.0, 3, 8]]).repeat(3, 1)
    high = torch.full((3, 3), 8.0)
    index, count = assign_groups(layers, low, high, granularity, tie)
    assert count == groups == len(index[:, :2].unique())
    assert (index[:, 0] == index[:, 1]).all() == tie
    high[2, :2] = 6  # another range is never shared
    assert assign_groups(layers, low, high, "network", tie)[1] == (2 if tie else 4)


def test_words_of_earlier_versions_are_taken_with_one_line():
    with pytest.warns(FutureWarning, match="saved=half is called activations=16bit now") as seen:
        assert ldp_search.resolve_space({"saved": "half"}).activations == "16bit"
    assert len(seen) == 1
    with pytest.warns(FutureWarning, match="policy=paper is called policy=ldp_sgd now"):
        assert ldp_search.resolve_space("ldp", policy="paper").policy == "ldp_sgd"
    with pytest.warns(FutureWarning, match="ldp_sgd"):
        assert ldp_search.SearchSpace(policy={"name": "paper", "lr": 2.0}).to_dict()["policy"]["lr"] == 2.0
