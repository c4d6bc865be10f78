"""The sweep over timm's and transformers' models: its zoo, its checks on a model that breaks them, its results and tables."""

import json

import pytest
import torch
from torch import nn

from benchmarks.sweep import check, table, zoo
from benchmarks.sweep.__main__ import done, run


@pytest.mark.parametrize("name", ["timm:deit", "hf:bert", "hf:gpt2", "hf:mixtral"])
def test_models_of_the_zoo_pass(name):
    result = check.one(name)
    assert not any(result["checks"].values()) and set(result["checks"]) == set(check.CHECKS)
    assert result["numbers"]["coverage"] == 1 and sum(p.numel() for p in zoo.make(name).model.parameters()) < 3e6


class Branch(nn.Module):
    """Computes something else once its layer is of another class; where it is broken, its output is not a number."""

    def __init__(self, broken):
        super().__init__()
        self.layer, self.broken = nn.Linear(4, 4), broken

    def forward(self, x):
        return self.layer(x) / 0 * 0 if self.broken else self.layer(x) * (1 if type(self.layer) is nn.Linear else 2)


@pytest.mark.parametrize(
    ("broken", "fails", "why"), [(True, "plain", "not numbers"), (False, "off", "of the model itself differs")]
)
def test_a_model_that_breaks_a_rule_does_not_pass(broken, fails, why):
    result = check.check(zoo.Sample("own", Branch(broken), (torch.randn(2, 4),), "Branch"))
    assert why in result["checks"][fails]


def test_results_are_taken_up_again_and_counted(tmp_path, capsys):
    path = tmp_path / "sweep.jsonl"
    path.write_text(json.dumps({"name": "hf:bert", "error": "of another time"}) + "\n")
    run(path, ["hf:bert", "timm:nothing"], workers=1, seconds=1)
    assert done(path) == {"hf:bert": {"name": "hf:bert", "error": "of another time"}} and capsys.readouterr().out == ""
    passing = {"checks": {"plain": "", "off": ""}, "numbers": {"coverage": 1.0, "coverage_layers": 0.95, "coverage_swap": 0.5}}
    text = table.tables(done(path) | {"hf:gpt2": {"name": "hf:gpt2"} | passing})
    assert "| transformers model types | 2 | 1 | 1 | 100, 100 % | 95, 95 % | 50, 50 % |" in text
    assert "| hf:bert | not built: of another time |" in text and "| hf:gpt2 | 100 | 95 | 50 | - | - |" in text
