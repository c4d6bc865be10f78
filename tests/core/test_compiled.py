"""torch.compile: the kernels stay, as operators; a compiled step is the eager one, of one kind, and senses without a break."""

from __future__ import annotations

import re

import pytest
import torch
from breadth import breadth
from older import COMPILED
from torch import nn

import ldp_search
from ldp_search.core import native
from ldp_search.core.model import swap
from ldp_search.core.native import library

OPERATORS = torch.ops.ldp_search
AFFINE, SYMMETRIC = 0, 1
PAPER = {"policy": "bit_gradient", "target_cost": 0.45, "bits": (3, 8)}
SEARCHED = {
    "policy": "learned", "target_cost": 0.3, "bits": (2, 8), "grad_bits": (3, 8), "grad_quantizer": "per_sample",
    "weight_quantizer": {"name": "mse", "exact_zero": False}, "input_quantizer": "mse", "sense_every": 3,
}  # fmt: skip
SPLIT = {
    **SEARCHED, "grad_quantizer": "per_sample_channel", "split_gradient": True, "weight_quantizer": "symmetric",
}  # fmt: skip
BLOCKED = {**SEARCHED, "grad_quantizer": {"name": "per_block", "size": 4}, "split_gradient": True}


class Outside(nn.Module):
    """A product outside of layers."""

    def __init__(self):
        super().__init__()
        self.layer, self.weight, self.bias = nn.Linear(32, 16), nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        return torch.addmm(self.bias, torch.relu(self.layer(x)), self.weight)


def linear():
    return nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 8))


def convolution():
    return nn.Sequential(nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8))


def compiled_pair(make, space):
    """((model, controller) eager, (model, controller), the compiled model, its graphs)."""
    torch._dynamo.reset()
    pairs, graphs = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model = make()
        pairs.append((model, ldp_search.controller(ldp_search.apply(model, **space, example_inputs=torch.zeros(2, 32)))))

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    return *pairs, torch.compile(pairs[1][0], backend=backend, fullgraph=True), graphs


def step(forward, model, ldp, x, bits, seed):
    """(the result and the weights' gradients, which are to be the same to the bit; what else there is, by name)."""
    with torch.no_grad():
        wanted = bits + torch.arange(ldp.tensors.bits.numel()).view_as(ldp.tensors.bits) % 3
        ldp.tensors.bits.copy_(wanted)
    model.zero_grad()
    torch.manual_seed(seed)
    y = forward(x)
    y.square().mean().backward()
    others = {"bits": ldp.tensors.grads.clone(), "ranges": ldp.tensors.ranges.clone(), "bounds": ldp.tensors.w_bounds.clone()}
    if ldp.sensor is not None:
        record = ldp.sensor.record
        others |= dict(zip(("curves", "scalars", "sketch"), map(torch.clone, record.tensors()), strict=True))
        others["order"] = torch.tensor(record.order)
    return [y.detach(), *(p.grad for p in model.parameters())], others


def called(graphs) -> set[str]:
    """Names of the operators that the graphs call, those of their backwards included."""
    modules = [m for graph in graphs for m in graph.modules() if isinstance(m, torch.fx.GraphModule)]
    nodes = (str(node.target) for module in modules for node in module.graph.nodes if node.op == "call_function")
    return {name.split(".")[1] for name in nodes if name.startswith("ldp_search.")}


def equal_steps(make, space, steps: int):
    """Compiled steps, held to be the eager ones beside them, at changing bits: (eager, traced, graphs)."""
    eager, traced, function, graphs = compiled_pair(make, space)
    for number in range(steps):
        x = torch.randn(16, 32)
        exact, others = step(eager[0], *eager, x, 2 + number % 3, number)
        exact_traced, others_traced = step(function, *traced, x, 2 + number % 3, number)
        assert all(torch.equal(a, b) for a, b in zip(exact_traced, exact, strict=True))
        for name, values in others.items():
            torch.testing.assert_close(others_traced[name], values, rtol=1e-5, atol=1e-8, msg=name)
        for ldp in (eager[1], traced[1]):
            ldp.step((number + 1) / steps)
    return eager, traced, graphs


@COMPILED
@breadth(
    "make, space",
    [(linear, PAPER), (convolution, PAPER), (convolution, SPLIT), (convolution, BLOCKED), (Outside, SEARCHED)],
    always=[(linear, PAPER), (convolution, SPLIT)],
    ids=["paper-linear", "paper-conv", "learned-split-conv", "learned-blocks-conv", "learned-outside"],
)
def test_a_compiled_step_is_the_eager_one(make, space):
    """Stochastic rounding included. A graph for steps that sense and one for those that do not, whatever the bits."""
    _, _, graphs = equal_steps(make, space, 5)
    assert len(graphs) == 1 + (space["policy"] == "learned")
    assert {"measure", "rounded", "gradient_values"} <= called(graphs)
    assert ("scale_gradient" if space is PAPER else "total_variances") in called(graphs)


@COMPILED
@pytest.mark.slow(reason="the formulas compile as any torch code; they always are compared, uncompiled")
def test_without_kernels_the_formulas_are_compiled(monkeypatch):
    space = {**PAPER, "grad_bits": 32}
    with native.disabled():
        eager, traced, function, graphs = compiled_pair(linear, space)
        found = [step(forward, *pair, torch.ones(4, 32), 4, 0)[0] for forward, pair in ((eager[0], eager), (function, traced))]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    monkeypatch.setattr(library, "_library", None)
    monkeypatch.setattr(library, "_reason", "no C compiler")
    _, traced, function, more = compiled_pair(linear, space)
    step(function, *traced, torch.ones(4, 32), 4, 0)
    assert len(graphs) == len(more) == 1 and not called(graphs + more)


class Twice(nn.Module):
    """One layer, whose two results get the same gradient."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 8)

    def forward(self, x):
        first, second = x.chunk(2)
        return self.layer(first) + self.layer(second)


@COMPILED
def test_the_compiler_neither_keeps_roundings_nor_merges_draws():
    """What is rounded in the forward is rounded again in backward, and two roundings of one gradient draw twice."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compile_utils import fx_graph_cse
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    torch._dynamo.reset()
    model, found = Twice(), []
    ldp_search.apply(model, **PAPER, example_inputs=torch.zeros(2, 32))

    def compiler(graph, inputs):
        targets = [str(node.target) for node in fx_graph_cse(graph.graph).nodes]
        found.append([sum(f"ldp_search.{name}." in target for target in targets) for name in ("rounded", "gradient_values")])
        return torch._dynamo.backends.debugging.boxed_nop(graph, inputs)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler, partition_fn=min_cut_rematerialization_partition)
    torch.compile(model, backend=backend, fullgraph=True)(torch.randn(8, 32)).sum().backward()
    # Two inputs, and one weight for both products.
    assert found == [[3, 0], [3, 2]]


STRIDED = {
    "plain": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "not dense": lambda x: x[:, :, ::2],
    "bf16": lambda x: x.bfloat16(),
}


@pytest.mark.parametrize("layout", STRIDED)
def test_operators_are_what_they_say(layout):
    """Schemas, and the shapes, types and strides that are promised while compiling."""
    x = STRIDED[layout](torch.randn(4, 6, 8, 5))
    g, scale, low = torch.randn_like(x), torch.full((1, 6, 1, 1), 0.1), torch.full((1, 6, 1, 1), -1.0)
    grid, bits, draw = (scale, low, low.clone(), -low), torch.tensor(4.0), torch.empty((), dtype=torch.int64)
    for operator, args in (
        (OPERATORS.measure, (x, [], True)),
        (OPERATORS.measure, (x, [1], False)),
        (OPERATORS.rounded, (x, *grid, torch.float32, None)),
        (OPERATORS.rounded, (x, scale, None, None, None, torch.bfloat16, g)),
        (OPERATORS.scale_gradient, (g, x, scale, low)),
        (OPERATORS.grid_gradients, (g, x, *grid, True)),
        (OPERATORS.grid_gradients, (g, x, *grid, False)),
    ):
        torch.library.opcheck(operator.default, args, test_utils=("test_schema", "test_faketensor"))
    for kind, axes in ((AFFINE, []), (SYMMETRIC, [0]), (SYMMETRIC, [0, 1]), (SYMMETRIC, [1])):
        args = (g, torch.arange(2.0, 9.0), kind, axes)
        torch.library.opcheck(OPERATORS.total_variances.default, args, test_utils=("test_schema", "test_faketensor"))
        args = (g, bits, kind, axes, draw)
        torch.library.opcheck(OPERATORS.gradient_values.default, args, test_utils=("test_schema", "test_faketensor"))
        torch.manual_seed(0)
        drawn = OPERATORS.gradient_values(*args)
        again = OPERATORS.gradient_values(*args)
        torch.manual_seed(0)
        assert torch.equal(OPERATORS.gradient_values(*args), drawn) and not torch.equal(again, drawn)


@COMPILED
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_needs_no_operators(strict):
    """Who loads it may not have them."""
    model = linear()
    ldp_search.apply(model, **PAPER, example_inputs=torch.zeros(2, 32))
    program = torch.export.export(model.eval(), (torch.zeros(2, 32),), strict=strict)
    assert not called([program.graph_module])


@pytest.mark.parametrize("together", [False, True], ids=["model", "step"])
def test_a_torch_that_compiles_something_else_is_refused(monkeypatch, together):
    """Rather than left to compute products unrounded. Without torch.compile the model runs."""
    torch._dynamo.reset()
    monkeypatch.setattr(swap, "COMPILES", False)
    model, x = linear(), torch.randn(2, 32)
    ldp_search.apply(model, **PAPER, example_inputs=x)
    compiled = torch.compile((lambda x: model(x).sum()) if together else model, backend="eager")
    with pytest.raises(ImportError, match=rf"needs torch >= 2.8; this is torch {re.escape(torch.__version__)}"):
        compiled(x)
    assert model(x).isfinite().all()
