"""Products outside of layers in an ONNX file: their operands are rounded there as in training; what is no integer is named."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from breadth import breadth
from test_export import bert, export, frozen, ort, run
from torch import nn

from ldp_search import controller
from ldp_search.core.quantize.quantizers import Symmetric
from ldp_search.core.registry import register
from ldp_search.runner.onnx.check import difference

own_products = pytest.importorskip("ldp_search.runner.onnx.own_products")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.skipif(not hasattr(torch.onnx, "ops"), reason="torch before 2.8 has no nodes of one's own in a graph"),
]
EXACT = {"weight_quantizer": "symmetric", "input_quantizer": "symmetric"}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Raw(nn.Module):
    """One product by raw parameters. x: (batch, 4, 16)."""

    def __init__(self, multiply):
        super().__init__()
        self.multiply, self.matrix, self.bias = multiply, nn.Parameter(torch.randn(8, 16)), nn.Parameter(torch.randn(8))
        self.experts, self.kernel = nn.Parameter(torch.randn(4, 16, 8)), nn.Parameter(torch.randn(8, 4, 3))

    def forward(self, x):
        return self.multiply(self, x)


RAW = {  # product, operators that compute it, whether these are integers
    "linear": (lambda m, x: F.linear(x, m.matrix, m.bias), "MatMulIntegerToFloat"),
    "linear, a row": (lambda m, x: F.linear(x.mean(1), m.matrix, m.bias), "QGemm"),
    "matmul": (lambda m, x: x @ m.matrix.T, "MatMulIntegerToFloat"),
    "addmm": (lambda m, x: torch.addmm(m.bias, x.mean(1), m.matrix.t()), "QGemm"),
    "convolution": (lambda m, x: F.conv1d(x, m.kernel, padding=1), "QLinearConv"),
    "weight first": (lambda m, x: m.matrix @ x.transpose(1, 2), None),
    "einsum": (lambda m, x: torch.einsum("bti,tio->bto", x, m.experts), None),
    "experts": (lambda m, x: torch.bmm(x.transpose(0, 1), m.experts), None),
    "generated": (lambda m, x: F.linear(x, m.matrix * x.mean()), None),
}


@breadth("bits", [4, 8], always=1)
@breadth("name", RAW, always=["linear", "einsum"])
def test_products_by_weights_are_those_of_training(tmp_path, name, bits):
    multiply, kernel = RAW[name]
    torch.manual_seed(0)
    model, x = Raw(multiply), torch.randn(6, 4, 16)
    frozen(model, x, bits=bits, **EXACT)
    record = export(model, tmp_path / "m.onnx", x)
    # Biases are int32 codes; the outputs of convolutions are rounded to 8 bits again.
    assert record.max_error < {"QGemm": 1e-3, "QLinearConv": 0.01}.get(kernel, 1e-5)
    assert record.kernels == ({kernel: 1} if kernel else {}) and len(record.integer_layers) == bool(kernel)
    assert all("of operands rounded as in training" in why for why in record.float_layers.values())
    other = 3 * torch.randn(9, 4, 16)  # beyond the range of the input, which is cut off as in training; another batch
    with torch.no_grad():
        assert difference(run(record.path, other), [model(other).numpy()]) < (0.5 if kernel == "QLinearConv" else 1e-3)


@breadth("quantizer", ["symmetric", "mse", "clip", "minmax"], always=["mse"])
@breadth("bits", [4, 8, 12], always=1)
def test_attention_rounds_by_its_own_ranges(tmp_path, monkeypatch, quantizer, bits):
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(6, 4, 16)
    frozen(model, x, bits=bits, attention=True, weight_quantizer="symmetric", input_quantizer=quantizer)
    record = export(model, tmp_path / "m.onnx", x)
    # Of more than 8 bits there are no integers, and inputs of layers stay unrounded. A `minmax` grid has no zero, so sums are
    # in another order, which tips codes over.
    close, far = (1e-5, 0.01) if quantizer != "minmax" else (0.02, 0.05)
    assert record.max_error < (close if bits < 12 else 1e-3), record
    integers = quantizer != "minmax" and bits < 12
    assert ("attention.products" in record.integer_layers) == integers
    assert integers or "computed in floating point, of operands rounded" in record.float_layers["attention.products"]
    assert not integers or sum(record.kernels.values()) == 5  # two of attention, three of layers
    other = 3 * torch.randn(2, 4, 16)  # whose operands have other ranges
    with torch.no_grad():
        assert difference(run(record.path, other), [model(other).numpy()]) < (far if bits < 12 else 0.5)


@pytest.mark.slow(reason="a second export to compare with; parity itself always runs")
def test_left_in_floating_point_they_would_be_further_from_training(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(6, 4, 16)
    frozen(model, x, bits=4, attention=True, **EXACT)
    rounded = export(model, tmp_path / "m.onnx", x)
    monkeypatch.setattr(own_products, "_why_unrounded", lambda *_: "left alone")
    plain = export(model, tmp_path / "m.onnx", x)
    assert rounded.max_error < 1e-5 < 0.05 < plain.max_error and plain.float_layers["attention.products"] == "left alone"


def test_a_quantizer_of_ones_own_is_named(tmp_path):
    @register("quantizer", "of_the_test")
    @dataclass
    class Mine(Symmetric):
        """Another class may have another grid."""

    model, x = Attention(), torch.randn(6, 4, 16)
    frozen(model, x, bits=8, attention=True, weight_quantizer="symmetric", input_quantizer="of_the_test")
    record = export(model, tmp_path / "m.onnx", x)
    assert "the grid of Mine, a quantizer of your own, has no formula in ONNX" in record.float_layers["attention.products"]
    assert not any(node.domain == "ldp_search" for node in own_products.ir.load(record.path).graph)


def test_an_export_leaves_the_plans_as_they_were(tmp_path, monkeypatch):
    model, x = Attention(), torch.randn(6, 4, 16)
    frozen(model, x, bits=8, attention=True, **EXACT)
    plan, hooks = model.attention._ldp_site, dict(model._forward_pre_hooks)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("ldp_search.runner.onnx.float_graph.float_graph", stop)
    with pytest.raises(KeyboardInterrupt):
        export(model, tmp_path / "m.onnx", x)
    assert model.attention._ldp_site is plan and dict(model._forward_pre_hooks) == hooks and controller(model).enabled


@pytest.mark.slow(reason="a transformer twice; attention is always exported above")
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_bert_of_any_length(tmp_path, kind):
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(0, 50, (8, 12)), "attention_mask": torch.ones(8, 12, dtype=torch.long)}
    inputs["attention_mask"][:, 9:] = 0
    model = frozen(bert(attn_implementation=kind, initializer_range=0.2), inputs, bits=8, attention=True, **EXACT)
    record = export(model, tmp_path / "m.onnx", inputs)
    assert record.max_error < record.own_error and not record.float_layers and record.free_length
    assert record.kernels["MatMulIntegerToFloat"] + record.kernels["QLinearMatMul"] == 12 + 4
    other = {"input_ids": torch.randint(0, 50, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    session = ort.InferenceSession(str(record.path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        found = session.run(None, {k: v.numpy() for k, v in other.items()})
        assert difference(found, [model(**other).logits.numpy()]) < 0.05


class Beside(nn.Module):
    """Weights of layers read by their parent, as a Mamba reads its kernel; one layer is called too. x: (batch, 8)."""

    def __init__(self):
        super().__init__()
        self.read, self.both, self.called = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(F.linear(x, self.read.weight, self.read.bias))
        return self.called(F.relu(self.both(x) + 0.5 * x @ self.both.weight.T))


def test_a_layer_whose_weight_its_parent_reads_stays_a_layer_and_is_named(tmp_path):
    x = torch.randn(16, 8)
    model = frozen(Beside(), x, **EXACT, policy="static")
    record = export(model, tmp_path / "m.pt2", x, format="torch")
    assert record.integer_layers == ["called"] and set(record.float_layers) == {"read", "both"}
    assert "the model multiplies by its weight outside of its own forward" in record.float_layers["read"]
    packed = export(model, tmp_path / "m.packed.safetensors", x, format="packed")
    assert set(packed.layers) == {"read", "both", "called"} and set(packed.unrounded) == {"read", "both"}
    assert max(record.max_error, packed.max_error) < 0.1  # inputs of two layers are not rounded
