"""Fused functions against what they are written as: equal outputs and gradients, and their weights in the profile."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import ldp_search
from ldp_search.core.products import unfused

HIGH = {"policy": "static", "bits": 16, "grad_bits": 32}


def gradients(output, inputs):
    output = [x for x in (output if isinstance(output, tuple) else (output,)) if isinstance(x, torch.Tensor)]
    weights = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=weights)).sum() for x in output)
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.rand(6, 7) > 0.5},
        {"attn_mask": torch.randn(2, 4, 6, 7)},
        {"attn_mask": torch.zeros(6, 7, dtype=torch.bool)},
        {"enable_gqa": True},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_attention(options):
    heads = 2 if "enable_gqa" in options else 4
    q = torch.randn(2, 4, 6, 8, requires_grad=True)
    k, v = (torch.randn(2, heads, 7, width, requires_grad=True) for width in (8, 5))
    ours, theirs = unfused.attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours, (q, k, v)), gradients(theirs, (q, k, v)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bilinear():
    layer, x, y = nn.Bilinear(3, 4, 5), torch.randn(2, 6, 3), torch.randn(2, 6, 4)
    torch.testing.assert_close(unfused.bilinear(x, y, layer.weight, layer.bias), layer(x, y))


RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "lstm, two layers, both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm, projected": (nn.LSTM, {"proj_size": 3, "bidirectional": True}),
    "lstm, no bias": (nn.LSTM, {"bias": False, "batch_first": True}),
    "gru": (nn.GRU, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name, packed):
    """At 16 bits what torch's own function gives, which also tells that every weight is where it belongs."""
    cls, options = RECURRENT[name]
    model, x = cls(5, 6, **options), torch.randn(4, 3, 5)
    inputs = (
        pack_padded_sequence(x, torch.tensor([4, 2, 1]), model.batch_first, False) if packed and not model.batch_first else x
    )
    if packed and model.batch_first:
        inputs = pack_padded_sequence(x, torch.tensor([3, 3, 1, 2]), True, False)
    expected, last = model(inputs)
    ldp = ldp_search.controller(ldp_search.apply(model, example_inputs=(inputs,), **HIGH))
    assert list(ldp.layers) == [n for n, _ in model.named_parameters() if "weight" in n] and ldp.coverage.share == 1
    found, state = model(inputs)
    expected, found = (tensors(t) for t in ((expected, last), (found, state)))
    assert len(expected) == len(found)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < 1e-3 * other.abs().max()
    sum(t.square().sum() for t in found).backward()
    assert (ldp.parameters()["bits"].grad is not None) and all(p.grad.isfinite().all() for p in model.parameters())


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree] if tree.is_floating_point() else []
    return [] if tree is None else [t for part in tree for t in tensors(part)]


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(cls):
    model, x = cls(5, 6), torch.randn(3, 5)
    expected = model(x)
    ldp = ldp_search.controller(ldp_search.apply(model, example_inputs=x, **HIGH))
    assert list(ldp.layers) == ["weight_ih", "weight_hh"]
    for one, other in zip(tensors((model(x),)), tensors((expected,)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 4}], ids=["packed", "separate"])
def test_torchs_multihead_attention(widths, training):
    model = nn.MultiheadAttention(8, 2, batch_first=True, **widths).train(training)
    q, k, v = (torch.randn(3, 5, width) for width in (8, widths.get("kdim", 8), widths.get("vdim", 8)))
    expected = model(q, k, v)[0]
    ldp = ldp_search.controller(ldp_search.apply(model, example_inputs=(q, k, v), attention=True, **HIGH))
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if widths else ["in_proj_weight"]
    assert set(ldp.layers) == {*names, "products", "out_proj"} and ldp.coverage == (1, [])
    torch.testing.assert_close(model(q, k, v)[0], expected, rtol=1e-3, atol=1e-3)
    with ldp.disabled():
        assert torch.equal(model(q, k, v)[0], expected)
