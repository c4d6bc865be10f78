"""torch.compile with the backend int8: products stay integers, forward and backward, and a compiled step is the eager one."""

from __future__ import annotations

import pytest
import torch
from breadth import breadth
from older import COMPILED
from test_compiled import OPERATORS, SEARCHED, called, compiled_pair, convolution, equal_steps, linear
from torch import nn

import ldp_search
from ldp_search.core.backends.int8 import choice
from ldp_search.core.quantize.gradient_quantizers import SymmetricStochastic

pytestmark = pytest.mark.skipif(not choice.has_integer_products("cpu"), reason="needs a CPU with VNNI")
INTEGER = {"int8_forward", "int8_backward"}
ALWAYS = {"name": "int8", "choose": "always"}
PAPER = {"policy": "bit_gradient", "target_cost": 0.45, "bits": (3, 8), "backend": ALWAYS}
LEARNED = {**SEARCHED, "grad_quantizer": "per_sample_channel", "split_gradient": True, "backend": {**ALWAYS, "keep": "input"}}
BLOCKED = {**SEARCHED, "grad_quantizer": {"name": "per_block", "size": 4}, "split_gradient": True, "backend": ALWAYS}


def transposed():
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(8, 32), nn.GELU())


def strided():
    return nn.Sequential(nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), nn.Flatten())


@COMPILED
@breadth(
    "make, space",
    [
        (linear, PAPER), (convolution, LEARNED), (convolution, BLOCKED), (strided, PAPER), (transposed, PAPER),
        (linear, {**PAPER, "grad_bits": 32}), (linear, {**PAPER, "weight_quantizer": "clip", "input_quantizer": "clip"}),
        (linear, {**PAPER, "backend": {**ALWAYS, "input_gradient": "rounded"}, "grad_quantizer": "per_sample"}),
    ],
    always=1,
    ids=["paper", "learned", "blocks", "strided", "transposed", "full-gradients", "clip", "rounded"],
)  # fmt: skip
def test_a_compiled_step_in_integers_is_the_eager_one(make, space):
    """Stochastic rounding included. A graph for steps that sense and one for those that do not, whatever the bits."""
    eager, traced, graphs = equal_steps(make, space, 4)
    assert len(graphs) == 1 + (space["policy"] == "learned")
    assert called(graphs) >= INTEGER
    assert traced[1].backend.report(list(traced[1].layers)) == eager[1].backend.report(list(eager[1].layers))


@COMPILED
@pytest.mark.slow(reason="a compilation by itself; sizes pass through the operators as they do through torch's")
def test_inputs_of_each_length_take_no_graph_of_their_own():
    (eager, _), (model, _), _, graphs = compiled_pair(linear, PAPER)

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    function = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    found = []
    for forward in (function, eager):
        found.append([])
        for rows in (16, 24, 40):
            torch.manual_seed(rows)
            x = torch.randn(rows, 32, requires_grad=True)
            forward(x).square().sum().backward()
            found[-1].append(x.grad)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(graphs) < 3 and called(graphs) >= INTEGER


class Own(SymmetricStochastic):
    """A gradient quantizer that kernels know nothing of."""

    def grid(self, g, bits):
        return super().grid(2 * g, bits)


NOT_COMPILED = {
    "backend.choose=never": {"backend": {"name": "int8", "choose": "never"}},
    "weights of up to 9 bits": {"weight_bits": (3, 9)},
    "a gradient quantizer that torch.compile cannot be told of": {"grad_quantizer": Own()},
}


@COMPILED
@breadth("reason", list(NOT_COMPILED), always=["a gradient quantizer that torch.compile cannot be told of"])
def test_what_cannot_be_compiled_in_integers_is_simulated_and_named(reason):
    _, traced, function, graphs = compiled_pair(lambda: nn.Sequential(nn.Linear(32, 4)), PAPER | NOT_COMPILED[reason])
    function(torch.randn(8, 32)).sum().backward()
    assert not called(graphs) & INTEGER
    assert f"0 of 1 layers; simulated: 0 ({reason})" in traced[1].summary()


@COMPILED
@pytest.mark.slow(reason="a compilation by itself")
def test_what_eager_steps_found_slower_stays_simulated(monkeypatch):
    """Measured in eager steps before, by this process or by the one that was resumed; a trace measures nothing."""
    seconds = iter([[1.0, 2.0], [3.0, 2.0]])
    monkeypatch.setattr(choice, "_measure", lambda call, ways: next(seconds))
    eager, traced, function, graphs = compiled_pair(linear, PAPER | {"backend": "int8"})
    eager[0](torch.randn(8, 32)).sum().backward()
    traced[1].load_state_dict(eager[1].state_dict())
    function(torch.randn(8, 32)).sum().backward()
    line = "integer arithmetic: 1 of 2 layers (forward and backward); simulated: 2 (slower in integers)"
    assert line in eager[1].summary() and line in traced[1].summary() and called(graphs) >= {*INTEGER, "rounded"}
    assert traced[1].state_dict()["backend"]["slower"] == ["2"]


@COMPILED
@pytest.mark.slow(reason="an export by itself; test_compiled.py shows the default backend's at every run")
def test_an_exported_program_is_simulated():
    model = linear()
    ldp_search.apply(model, **PAPER, example_inputs=torch.zeros(2, 32))
    program = torch.export.export(model.eval(), (torch.zeros(2, 32),), strict=True)
    assert not called([program.graph_module])


@pytest.mark.parametrize("kept", ["codes", "input"])
@pytest.mark.parametrize("kind", ["linear", "transposed", "convolution"])
def test_operators_are_what_they_say(kind, kept):
    """Schemas, and the shapes, types and strides that are promised while compiling."""
    shape, of_weight, product = {
        "linear": ((3, 5, 6), (4, 6), [0]), "transposed": ((7, 6), (6, 4), [1]),
        "convolution": ((2, 6, 5, 7), (4, 6, 3, 3), [2, 1, 1, 0, 1, 1]),
    }[kind]  # fmt: skip
    x, w, bits, codes = torch.randn(shape), torch.randn(of_weight), torch.tensor([4.0, 4.0, 4.0]), kept == "codes"
    each = (1, 4) if kind == "transposed" else (4, *[1] * (w.dim() - 1))
    low = torch.tensor(-1.0)
    grids = (torch.tensor(0.1), low, low.clone(), -low), (torch.full(each, 0.1), torch.full(each, -1.0), None, None)
    given = (x, w, torch.randn(4), *grids[0], *grids[1], bits, product, torch.float32, codes, codes)
    torch.library.opcheck(OPERATORS.int8_forward.default, given, test_utils=("test_schema", "test_faketensor"))
    y, *saved = OPERATORS.int8_forward(*given)
    first = y.new_zeros(2, dtype=torch.int64)
    for needs in ([True] * 4, [True, True, False, False], [False, True, False, True], [True, False, True, False]):
        given = (
            torch.randn_like(y), None if codes else x, w, bits[2], *grids[0], *grids[1], bits, *saved, x.dtype,
            product, [1], [1, 1 if kind == "convolution" else y.dim() - 1], 2, [False, False], needs, first[0],
        )  # fmt: skip
        torch.library.opcheck(OPERATORS.int8_backward.default, given, test_utils=("test_schema", "test_faketensor"))
