"""Quantized layers against ground truth: the original layer on quantized operands, and the two backends against each other."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import ldp_search
from ldp_search.core.model.layers import channel_axis
from ldp_search.core.quantize.fake_quantize import rounded
from ldp_search.core.quantize.grid import measure
from ldp_search.core.registry import build, names

TABLE = {  # name: (layer, input shape, arguments of its forward)
    "linear": (lambda: nn.Linear(6, 5), (4, 6), {}),
    "linear, no bias": (lambda: nn.Linear(6, 5, bias=False), (4, 6), {}),
    "linear, one vector": (lambda: nn.Linear(6, 5), (6,), {}),
    "linear, sequences": (lambda: nn.Linear(6, 5), (2, 3, 6), {}),
    "linear, one output": (lambda: nn.Linear(6, 1), (4, 6), {}),
    "Conv1D of transformers": (lambda: Conv1D(5, 6), (2, 3, 6), {}),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9), {}),
    "conv1d, one sample": (lambda: nn.Conv1d(3, 4, 3), (3, 9), {}),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), (2, 3, 6, 6), {}),
    "conv2d, one sample": (lambda: nn.Conv2d(3, 4, 3), (3, 6, 6), {}),
    "conv2d, same": (lambda: nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1)), (2, 3, 6, 7), {}),
    "conv2d, same, even": (lambda: nn.Conv2d(3, 4, (2, 3), padding="same"), (2, 3, 6, 7), {}),
    "conv2d, valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 6, 7), {}),
    "conv2d, reflect": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (2, 3, 6, 7), {}),
    "conv2d, circular same": (lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), (2, 3, 6, 7), {}),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), dilation=(1, 2), groups=2), (2, 4, 7, 8), {}),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 6, 6), {}),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 4, 5, 4), {}),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), (2, 3, 5), {}),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2), (2, 4, 5, 4), {}),
    "transposed, size": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), (2, 3, 4, 4), {"output_size": (8, 7)}),
    "transposed, one": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), (3, 4), {"output_size": (4, 10)}),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 3, 2), {}),
}
EVERY = pytest.mark.parametrize("name", TABLE)


def wrap(name, quantizer="minmax", frozen=(), **options):
    """A layer of the table in float64, quantized, with bit gradients; returns (layer, controller, call, input)."""
    torch.manual_seed(0)
    make, shape, keywords = TABLE[name]
    model = nn.ModuleDict({"layer": make().double()})
    x = (torch.randn(shape, dtype=torch.float64) + 0.3).requires_grad_("x" not in frozen)
    for kind, parameter in model["layer"].named_parameters():
        parameter.requires_grad_(kind not in frozen)
    if "bias" not in frozen and getattr(model["layer"], "bias", None) is not None:
        nn.init.normal_(model["layer"].bias)
    ldp_search.apply(
        model,
        weight_quantizer=quantizer,
        input_quantizer=quantizer,
        policy={"name": "bit_gradient", "start": "middle"},
        **{"bits": (3, 5), "grad_bits": 8, "target_cost": 0.6} | options,
    )
    ldp = ldp_search.controller(model)
    ldp.sensing = False  # a search for the best bounds would see but a few values
    return model["layer"], ldp, keywords, x


def outcome(name, quantizer, frozen, backend, **options):
    layer, ldp, keywords, x = wrap(name, quantizer, frozen, backend=backend, **options)
    if quantizer == "clip":  # tight enough for every range to clip something
        ldp.parameters()["log_clips"].detach().fill_(-1)
    y = layer(x, **keywords)
    torch.manual_seed(1)
    y.backward(torch.randn_like(y))  # the same noise in the stochastic rounding too
    parts = {"y": y.detach(), "x": x.grad, **{k: p.grad for k, p in layer.named_parameters()}}
    return parts | {k: t.grad.clone() for k, t in ldp.parameters().items()}


def compare(one, other):
    for key, value in one.items():
        assert (value is None) == (other[key] is None), key
        if value is not None:
            tolerance = 1e-10 if value.dtype == torch.float64 and key != "x" else 1e-5
            torch.testing.assert_close(other[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}")


@EVERY
@pytest.mark.parametrize("quantizer", ["minmax", "clip"])
def test_backends_agree(name, quantizer):
    one, other = (outcome(name, quantizer, (), backend) for backend in ("reference", "simulate"))
    assert all(value is not None and value.any() for key, value in one.items()), "every gradient is there"
    compare(one, other)


@pytest.mark.parametrize("frozen", [("x",), ("weight",), ("x", "weight"), ("x", "bias"), ("weight", "bias")])
@pytest.mark.parametrize("name", ["linear", "conv2d, reflect", "transposed 1d", "Conv1D of transformers"])
def test_backends_agree_where_something_is_frozen(name, frozen):
    one, other = (outcome(name, "clip", frozen, backend) for backend in ("reference", "simulate"))
    assert one["bits"][0, :2].all(), "the bits learn from frozen operands too"
    assert all((one[kind] is None) == (kind in frozen) for kind in ("x", "weight", "bias"))
    compare(one, other)


# An odd total of padding is added before quantization, so that only an exact zero stays zero, and counts in the mean.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("name", "quantizer"), [(n, q) for n in TABLE for q in names("quantizer") if n != "conv2d, same, even" or q == "symmetric"]
)
def test_the_original_layer_on_quantized_operands(name, quantizer):
    layer, ldp, keywords, x = wrap(name, quantizer, grad_bits=32)
    y, bits = layer(x, **keywords), ldp.bits()["layer"]
    original, q = TABLE[name][0]().double(), build("quantizer", quantizer)
    padded = name in ("conv2d, reflect", "conv2d, circular same")  # copies of values: they count in the mean
    x_in = x.detach()
    seen = nn.functional.pad(x_in, layer._reversed_padding_repeated_twice, mode=layer.padding_mode) if padded else x_in
    b = [torch.tensor(float(v), dtype=torch.float64) for v in bits]
    original.load_state_dict(layer.state_dict())
    weight_grid = q.grid(measure(layer.weight.detach(), channel_axis(layer), True), b[0], True)
    original.weight.data = rounded(layer.weight.detach(), weight_grid)
    expected = original(rounded(x_in, q.grid(measure(seen, None, True), b[1], True)), **keywords)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_an_empty_batch(name):
    layer, ldp, keywords, x = wrap(name)
    ranges = ldp.ranges.clone()
    y = layer(x[:0], **keywords)
    y.sum().backward()
    assert y.shape[0] == 0 and torch.equal(ldp.ranges, ranges) and not layer.weight.grad.any()


@pytest.mark.parametrize("backend", ["simulate", "reference"])
@pytest.mark.parametrize(("relaxation", "grad_bits"), [("round", 2), ("interpolate", 2), ("round", 4), ("round", 32)])
def test_the_gradient_of_the_output_is_quantized(backend, relaxation, grad_bits):
    layer, _, _, _ = wrap("linear", grad_bits=grad_bits, backend=backend, relaxation=relaxation)
    g = torch.randn(6, 5, dtype=torch.float64)
    layer(torch.eye(6, dtype=torch.float64)).backward(g)  # then dL/dw is the gradient itself
    if grad_bits == 32:
        torch.testing.assert_close(layer.weight.grad, g.T)
    else:
        levels = layer.weight.grad.mul(1e6).round().unique()
        assert 2 ** (grad_bits - 1) < len(levels) <= 2**grad_bits
        assert (layer.weight.grad - g.T).abs().max() <= float(g.max() - g.min()) / (2**grad_bits - 1) * 1.001
    torch.testing.assert_close(layer.bias.grad, g.sum(0))  # the sum of the gradient as it came


def test_padding_same_is_the_padding_of_that_size():
    layers = [nn.Conv2d(2, 3, 3, padding=p) for p in ("same", 1)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.rand(2, 2, 5, 5) + 1  # far from zero: a quantized zero would be far off
    ys = [ldp_search.apply(nn.Sequential(layer), "static", bits=3, example_inputs=x)(x) for layer in layers]
    assert torch.equal(*ys)


@pytest.mark.parametrize("relaxation", ["round", "interpolate"])
def test_embedding_rows_are_quantized_one_by_one(relaxation):
    table = nn.Embedding(10, 6, padding_idx=0, sparse=True)
    model = nn.Sequential(table)
    index = torch.tensor([[1, 0, 3], [3, 9, 1]])
    original = model(index).detach()
    space = {"policy": "bit_gradient", "target_cost": 0.9, "bits": (2, 4), "embeddings": True, "relaxation": relaxation}
    ldp_search.apply(model, space, example_inputs=index)
    with torch.no_grad():
        ldp_search.controller(model).parameters()["bits"].fill_(3)
    rows = model(index)
    assert rows.shape == original.shape and not rows[0, 1].any()
    expected = [
        rounded(r, build("quantizer", "minmax").grid(measure(r), torch.tensor(3.0), True)) for r in original.flatten(0, 1)
    ]
    torch.testing.assert_close(rows.flatten(0, 1), torch.stack(expected))
    rows.sum().backward()
    assert table.weight.grad.is_sparse and ldp_search.controller(model).parameters()["bits"].grad[0, 0] != 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", ["simulate", "reference"])
@pytest.mark.parametrize("relaxation", ["round", "interpolate"])
def test_types_under_autocast_and_in_half_precision(dtype, backend, relaxation):
    layer, ldp, _, _ = wrap("conv2d, one sample", backend=backend, relaxation=relaxation)
    layer.to(dtype)
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    assert layer(x).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and layer.weight.grad.dtype == layer.bias.grad.dtype == dtype
    assert ldp.parameters()["bits"].grad.isfinite().all()
