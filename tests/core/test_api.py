"""The public API: what `apply` leaves alone, copies and files, `remove`, wrappers, inputs of all forms, errors."""

import copy
import io
import itertools
import pickle

import pytest
import timm
import torch
from breadth import breadth
from signals import deaf_layers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

import ldp_search

TINY = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 20}
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), lambda: torch.randn(4, 8)),
    "one layer": (lambda: nn.Linear(8, 2), lambda: torch.randn(4, 8)),
    "resnet": (lambda: timm.create_model("resnet10t", num_classes=3), lambda: torch.randn(2, 3, 32, 32)),
    "bert": (lambda: BertForSequenceClassification(BertConfig(**TINY)), lambda: torch.randint(20, (2, 5))),
    "gpt2": (lambda: GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, bos_token_id=0, eos_token_id=0)),
             lambda: torch.randint(20, (2, 5))),
}  # fmt: skip


def make(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]
    return model().eval(), inputs()


def run(model, x):
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("space", ["ldp", "static"])
def test_apply_leaves_everything_in_its_place_and_remove_undoes_it(name, space):
    model, x = make(name)
    calls = []
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
    layer.register_forward_hook(lambda *_: calls.append(1))
    parameters, state, output = dict(model.named_parameters()), list(model.state_dict()), run(model, x)
    before = {n: (type(m), list(m.__dict__)) for n, m in model.named_modules()}
    assert ldp_search.apply(model, space, embeddings=True, example_inputs=x) is model
    assert all(p is parameters[n] for n, p in model.named_parameters()) and len(parameters) == len(list(model.parameters()))
    assert list(model.state_dict()) == state
    assert all(isinstance(m, before[n][0]) for n, m in model.named_modules())
    ldp, calls[:] = ldp_search.controller(model), []
    with ldp.disabled():
        assert torch.equal(run(model, x), output)
    assert not torch.equal(run(model, x), output) and len(calls) == 2
    assert ldp_search.remove(model) is model
    assert {n: (type(m), list(m.__dict__)) for n, m in model.named_modules()} == before
    assert torch.equal(run(model, x), output)
    with pytest.raises(LookupError):
        ldp_search.controller(model)
    assert ldp_search.remove(model) is model, "there is nothing left to undo"


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch(model):
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


CLIPPED = {"weight_quantizer": "clip", "input_quantizer": "clip", "target_cost": 0.45}


LEARNED, MOVED = CLIPPED, CLIPPED | {"policy": "bit_gradient"}
WAYS = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch": through_torch}
COPIES = list(itertools.product(["mlp", "one layer", "gpt2"], WAYS, [True, False], ["learned", "bit_gradient"]))
SOME = [row for i, row in enumerate(COPIES) if i % 5 in (0, 3)]  # every pair of choices occurs


@breadth("name, way, counted, policy", COPIES, always=SOME)
def test_copies_are_whole_and_independent(name, way, counted, policy):
    model, x = make(name)
    ldp_search.apply(model, CLIPPED | {"policy": policy}, example_inputs=x if counted else None, sense_every=1)
    ldp_search.controller(model).parameters()["log_clips"].detach().fill_(-1)  # tight enough to have a gradient
    twin = WAYS[way](model)
    one, other = ldp_search.controller(model), ldp_search.controller(twin)
    assert other is not one and other.model is twin and ldp_search.controller(model) is one
    assert torch.equal(run(twin, x), run(model, x)) and torch.equal(run(twin, x), run(model, x))
    assert other.profiled and one.profiled and other.layers == one.layers
    before, clips = one.state_dict(), other.parameters()["log_clips"]
    assert (clips == -1).all()
    twin.train()
    for step in range(3):
        out = twin(x)
        (out if isinstance(out, torch.Tensor) else out[0]).square().sum().backward()
        assert not deaf_layers(other)
        other.step((step + 1) / 3)
    assert len(other.trajectory) == 3 and len(one.trajectory) == 0
    assert (clips != -1).any()
    assert all(torch.equal(v, before["tensors"][k]) for k, v in one.state_dict()["tensors"].items())
    ldp_search.remove(twin)
    assert ldp_search.controller(model) is one


def test_the_controller_is_found_through_wrappers():
    model, x = make("mlp")
    ldp = ldp_search.controller(ldp_search.apply(model))
    for wrapper in (torch.compile(model), nn.DataParallel(model), nn.Sequential(model)):
        assert ldp_search.controller(wrapper) is ldp
    assert ldp_search.remove(nn.Sequential(model))[0] is model and type(model[0]) is nn.Linear


@pytest.mark.parametrize("inputs", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"input": x}])
def test_forms_of_example_inputs(inputs):
    model, x = make("mlp")
    ldp = ldp_search.controller(ldp_search.apply(model, "static", example_inputs=inputs(x)))
    assert [spec.macs for spec in ldp.layers.values()] == [64, 16]


def test_without_inputs_the_first_forward_counts():
    model, x = make("mlp")
    ldp = ldp_search.controller(ldp_search.apply(model.train(), "random", target_cost=0.5))
    assert not ldp.profiled and "MACs are not counted yet" in ldp.summary() and ldp.coverage.share == 0
    assert not ldp_search.remove(ldp_search.apply(make("mlp")[0]))._forward_pre_hooks
    model(x)
    assert ldp.profiled and model.training and not model._forward_pre_hooks
    direct = ldp_search.controller(ldp_search.apply(make("mlp")[0], "random", target_cost=0.5, example_inputs=x))
    assert ldp.layers == direct.layers and ldp.bits() == direct.bits() and ldp.coverage == direct.coverage
    assert (ldp.ranges[:, 3] > 0).all(), "the forward itself was an ordinary one"


def test_own_components_by_instance_belong_to_one_model():
    policy = ldp_search.core.bits.policies.Random()
    ldps = [ldp_search.controller(ldp_search.apply(make("mlp")[0], policy=policy, seed=seed)) for seed in (0, 1)]
    assert ldps[0].policy is not ldps[1].policy and ldps[0].policy.state is not ldps[1].policy.state


OWN = """
from dataclasses import dataclass
from ldp_search import Policy, Schedule

@dataclass
class Late(Schedule):  # of docs/policies.md
    at: float = 0.5
    def fraction(self, progress):
        return float(progress >= self.at)

@dataclass
class Curious(Policy):
    needs_loss = True
    def begin(self):
        return self.problem.low.clone()
    def step(self, signals):
        return self.problem.low.clone()
"""


def test_a_policy_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_policies.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    ldp = ldp_search.controller(ldp_search.apply(make("mlp")[0], "static", policy={"name": "own_policies:Late", "at": 0.7}))
    seen = []
    for step in range(10):
        seen.append(ldp.bits()["0"].weight)
        ldp.step((step + 1) / 10)
    assert seen == [3] * 7 + [8] * 3
    ldp = ldp_search.controller(ldp_search.apply(make("mlp")[0], "static", policy="own_policies:Curious"))
    with pytest.raises(ValueError, match="'Curious' reads the training loss"):
        ldp.step(0.5)


def test_summary():
    model, x = make("mlp")
    text = ldp_search.controller(ldp_search.apply(model, "static", skip=["2"], example_inputs=x)).summary()
    lines = text.splitlines()
    assert lines[1].split() == ["0", "Linear", "64", "64", "8", "8", "8", "3-8", "3-8", "8"]
    assert "= 1.000 of the highest bits" in text and "80.0% of the MACs go through quantized products" in text
    assert lines[-1] == "  left out: 2: 16 MACs (kept in full precision (skip))"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "lpd"}, "Unknown search space 'lpd'.*Did you mean 'ldp'"),
        ({"space": "./none.yaml"}, "there is no file 'none.yaml'"),
        ({"polcy": "static"}, "Unknown field 'polcy'.*Did you mean 'policy'"),
        ({"policy": "cyclc"}, "Unknown policy 'cyclc'.*Did you mean 'cyclic'"),
        ({"skip": ["3"]}, "skip: the pattern '3' matches no layer.*Known: 0, 2"),
        ({"fixed": {"head": 8}}, "fixed: the pattern 'head' matches no layer"),
        ({"skip": "*"}, "keeps every layer in full precision"),
        (
            {"min_coverage": 0.9, "skip": ["2"]},
            r"only 0.800 is. Left out:\s+2: 16 MACs, kept in full precision \(skip\)\s+Lower",
        ),
    ],
)
def test_errors_leave_the_model_as_it_was(options, message):
    model, x = make("mlp")
    with pytest.raises(ValueError, match=message):
        ldp_search.apply(model, example_inputs=x, **options)
    assert type(model[0]) is nn.Linear and not any("_ldp" in key for m in model.modules() for key in m.__dict__)


def test_wrong_models():
    with pytest.raises(
        ValueError, match=r"ReLU has nothing that can be quantized: no layer.*embeddings=True\).*; it has \['ReLU'\]"
    ):
        ldp_search.apply(nn.ReLU())
    model, _ = make("mlp")
    for wrong in (model, "mlp"):
        with pytest.raises(LookupError, match=rf"applied to this {type(wrong).__name__}: call ldp_search.apply\(model"):
            ldp_search.controller(wrong)
    with pytest.raises(ValueError, match=r"a search space already: call ldp_search.remove\(model\) first"):
        ldp_search.apply(ldp_search.apply(model))
    whole = nn.Sequential(model)
    with pytest.raises(ValueError, match=r"'0' in this model is a search space already: call ldp_search.remove\(model\) first"):
        ldp_search.apply(whole)
    assert ldp_search.apply(ldp_search.remove(whole)) is whole


def test_a_budget_that_nobody_gave_is_named_by_its_space():
    model, x = make("mlp")
    hint = "This target is that of the space 'ldp'; target_cost=None with policy='static'"
    with pytest.raises(ValueError, match=f"target_cost=0.3165 cannot be met: .* {hint}"):
        ldp_search.apply(model, example_inputs=x, bits=8)
    with pytest.raises(ValueError, match="cannot be met") as given:
        ldp_search.apply(model, example_inputs=x, bits=8, target_cost=0.3165)
    assert "This target is that of the space" not in str(given.value)
    ldp_search.apply(model, example_inputs=x, bits=8, target_cost=None, policy="static")


def test_a_model_that_computes_something_else_every_time_can_be_trained():
    """Of numbers of its own, which no fixed state of torch's generator repeats."""

    class Drawn(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.draw = torch.nn.Linear(6, 3), torch.Generator().manual_seed(0)

        def forward(self, x):
            return self.layer(x + torch.randn(x.shape, generator=self.draw))

    model, x = Drawn(), torch.randn(4, 6)
    ldp = ldp_search.controller(ldp_search.apply(model, example_inputs=x))
    model(x).square().mean().backward()
    ldp.step(0.5)
    assert ldp.damage().total >= 0
