"""Linear layers as MatMulNBits: the codes in the file are those of training, and what cannot be written so stays int8."""

import numpy as np
import pytest
import torch
from breadth import breadth
from test_export import export, frozen, onnx, optimized, ort, run
from torch import nn

from ldp_search import controller
from ldp_search.runner.onnx import nbits

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CENTRED = {"name": "mse", "exact_zero": False}


@pytest.fixture(autouse=True)
def all_kernels(monkeypatch):
    """As an onnxruntime of today has them, so that the tests see the same containers everywhere."""
    monkeypatch.setattr("ldp_search.runner.onnx.export.integer_kernels", lambda: nbits.CONTAINERS)


def unpacked(values: np.ndarray, bits: int) -> np.ndarray:
    """The codes in the last dimension's bytes, the lowest bits first."""
    return np.stack([values >> place & 2**bits - 1 for place in range(0, 8, bits)], -1).reshape(*values.shape[:-1], -1)


def weight_in(path, layer: str, bits: int) -> np.ndarray:
    """(outputs, inputs) what a MatMulNBits of the file multiplies by, from its packed codes."""
    graph = onnx.load(path).graph
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    node = next(node for node in graph.node if node.name == layer)
    found = {a.name: a.i for a in node.attribute}
    assert node.op_type == "MatMulNBits" and node.domain == "com.microsoft"
    assert (found["bits"], found["block_size"], found["accuracy_level"]) == (bits, 128, 4)
    assert stored[node.input[1]].shape == (found["N"], -(-found["K"] // 128), 16 * bits)
    codes, scale = unpacked(stored[node.input[1]], bits).astype(np.float64), stored[node.input[2]][..., None]
    zero = 2.0 ** (bits - 1)
    if len(node.input) > 3:
        zero = unpacked(stored[node.input[3]], bits)[:, : codes.shape[1], None].astype(np.float64)
    beyond = stored.get(f"{layer}.beyond", np.zeros(1, np.float32))[:, None]
    return (scale * (codes - zero)).reshape(found["N"], -1)[:, : found["K"]] + beyond


def trained(model, layer: str) -> np.ndarray:
    """(outputs, inputs) the weight as the frozen model multiplies by it."""
    ldp = controller(model)
    site = next(site for site in ldp.sites if site.name == layer)
    weight = ldp.specs[layer].module.weight.detach()
    values = nbits.rounded(weight, site.weight_grid(weight)).numpy()
    return values if site.axis == 0 else values.T


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for the order of fp32 operations."""
    return bool(np.allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max() / 255))


# -- codes ------------------------------------------------------------------------------------------------------------


def test_bytes_hold_the_first_code_lowest():
    assert nbits.packed(np.array([[1, 2, 3, 0, 2]], np.uint8), 2).tolist() == [[0b00111001, 0b10]]
    assert nbits.packed(np.array([1, 15, 7], np.uint8), 4).tolist() == [0xF1, 0x07]


@breadth(
    "quantizer, bits, container",
    [
        ("symmetric", 2, 2), ("symmetric", 3, 4), ("symmetric", 4, 4), ("clip", 4, 4), ("mse", 2, 2), ("mse", 4, 4),
        (CENTRED, 2, 2), (CENTRED, 3, 4), (CENTRED, 4, 4), ("minmax", 2, 2), ("minmax", 4, 4),
    ],
    always=[("symmetric", 3, 4), (CENTRED, 2, 2)],
)  # fmt: skip
def test_the_weights_in_the_file_are_those_of_training(tmp_path, quantizer, bits, container):
    torch.manual_seed(0)
    x = torch.randn(6, 200)  # a block, and a part of one
    model = frozen(nn.Sequential(nn.Linear(200, 24)), x, bits=bits, weight_quantizer=quantizer, input_quantizer="symmetric")
    record = export(model, tmp_path / "m.onnx", x, nbits=True)
    assert record.nbits_layers == {"0": container} and record.integer_layers == ["0"]
    assert not record.not_nbits and not record.rounded_again and record.kernels == {"MatMulNBits": 1}
    expected = trained(model, "0")
    assert close(weight_in(record.path, "0", container), expected) and len(np.unique(expected[0])) > 2
    assert record.max_error < 0.02  # the input of each block is rounded to int8 once more


def test_the_rest_of_a_zero_between_levels_is_added(tmp_path):
    """Weights far from zero on one side, and none there, beside an input whose shift the sums of the weights take."""
    torch.manual_seed(0)
    x = torch.rand(6, 3, 128) + 0.3
    layers = nn.ModuleList(nn.Linear(128, 8, bias=bias) for bias in (True, False))
    with torch.no_grad():
        layers[0].weight[2].abs_().add_(5)
        layers[0].weight[3].abs_().sub_(9)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers[0](x) + self.layers[1](x)

    quantizers = {"weight_quantizer": "minmax", "input_quantizer": "minmax"}
    model = frozen(Net(), x, input_bits=8, weight_bits=4, tie=False, **quantizers)
    record = export(model, tmp_path / "m.onnx", x, nbits=True)
    assert record.nbits_layers == {"layers.0": 4, "layers.1": 4} and record.max_error < 0.02
    assert close(weight_in(record.path, "layers.0", 4), trained(model, "layers.0"))
    assert sum(node.op_type == "ReduceSum" for node in onnx.load(record.path).graph.node) == 1  # both read one input


def test_outputs_of_one_sign_have_a_zero_point_of_their_own(tmp_path):
    x = torch.randn(6, 128)
    layer = nn.Linear(128, 10, bias=False)
    with torch.no_grad():
        layer.weight[3].abs_()
        layer.weight[7].zero_()
    model = frozen(nn.Sequential(layer), x, bits=4)
    record = export(model, tmp_path / "m.onnx", x, nbits=True)
    found = weight_in(record.path, "0", 4)
    assert close(found, trained(model, "0")) and found[3].min() >= 0 and not found[7].any()
    assert len(np.unique(found[3])) == 16 and record.max_error < 0.02


def test_inputs_of_one_magnitude_lose_nothing(tmp_path):
    """The kernel's own rounding of a block takes its largest magnitude for the scale."""
    torch.manual_seed(0)
    ones = torch.randint(0, 2, (5, 128)).float()
    model = frozen(nn.Sequential(nn.Linear(128, 16)), ones, input_bits=8, weight_bits=4, tie=False)
    assert export(model, tmp_path / "m.onnx", ones, nbits=True).max_error < 1e-6


# -- networks ---------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """A head for every kind of place: rows of three dimensions and of two, without a bias, with an input away from zero."""

    def __init__(self):
        super().__init__()
        self.first, self.plain, self.head = nn.Linear(144, 256), nn.Linear(256, 160, bias=False), nn.Linear(160, 12)

    def forward(self, x):
        return self.head(self.plain(self.first(x).sigmoid()).relu().mean(1))


@breadth("quantizer", ["symmetric", "minmax"], always=["minmax"])
def test_a_network_decides_as_its_int8_file_does(tmp_path, quantizer):
    torch.manual_seed(0)
    x = torch.randn(64, 3, 144)
    model = frozen(Words(), x, input_bits=8, weight_bits=4, tie=False, weight_quantizer="symmetric", input_quantizer=quantizer)
    few, plain = (export(model, tmp_path / f"{choice}.onnx", x, nbits=choice) for choice in (True, False))
    assert few.nbits_layers == {"first": 4, "plain": 4, "head": 4} and few.kernels == {"MatMulNBits": 3}
    assert not plain.nbits_layers and not plain.not_nbits and "MatMulNBits" not in plain.kernels
    a, b = run(few.path, x)[0], run(plain.path, x)[0]
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(a - b).max() < 0.03 * np.abs(expected).max()
    assert (a.argmax(1) == expected.argmax(1)).mean() > 0.95 and few.bytes < plain.bytes
    assert run(few.path, x[:1])[0].shape == (1, 12) and few.free_batch


@pytest.mark.slow(reason="two exports of GPT-2; a network of three layers always is exported above")
def test_gpt2_with_conv1d_and_a_tied_head(tmp_path):
    transformers = pytest.importorskip("transformers")
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    small = {"n_embd": 128, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 16}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2", **small, **ends))
    inputs = {"input_ids": torch.randint(0, 40, (4, 9))}
    frozen(model, inputs, input_bits=8, weight_bits=4, tie=False)
    record = export(model, tmp_path / "m.onnx", inputs, nbits=True)
    assert len(record.nbits_layers) == 5 and record.kernels == {"MatMulNBits": 5} and record.free_length
    for name in ("transformer.h.0.attn.c_attn", "lm_head"):
        assert close(weight_in(record.path, name, 4), trained(model, name))
    other = torch.randint(0, 40, (1, 1))  # one token
    with torch.no_grad():
        expected = model(other).logits.numpy()
    assert np.abs(run(record.path, other)[0] - expected).max() < 0.05 * np.abs(expected).max()


def test_what_cannot_be_written_so_stays_int8_and_says_why(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.small, self.wide = nn.Conv1d(4, 8, 1), nn.Linear(16, 128), nn.Linear(128, 128)
            self.kept, self.fine = nn.Linear(128, 128), nn.Linear(128, 4)

        def forward(self, x):
            return self.fine(self.kept(self.wide(self.small(self.conv(x).flatten(1))).relu()).relu())

    torch.manual_seed(0)
    x = torch.randn(9, 4, 2)
    model = frozen(Net(), x, bits=8, fixed={"wide": 12, "fine": 3}, skip=["kept"])
    record = export(model, tmp_path / "m.onnx", x, nbits=True)
    assert record.nbits_layers == {"fine": 4} and set(record.float_layers) == {"wide", "kept"}
    assert list(record.not_nbits) == ["small"] and "16 inputs are fewer than a block" in record.not_nbits["small"]
    counts = optimized(record.path, tmp_path)
    assert counts["QLinearConv"] == 1 and counts["MatMulNBits"] == 1 and counts["QGemm"] == 1


@breadth(
    "quantizer, bits, why",
    [
        ("symmetric", 5, "more than 4 bits, which win nothing"), ("symmetric", 8, "more than 4 bits"),
        (CENTRED, 5, "more than 4 bits"),
    ],
    always=1,
)  # fmt: skip
def test_grids_without_codes_stay_as_the_plain_file_has_them(tmp_path, quantizer, bits, why):
    torch.manual_seed(0)
    x = torch.randn(6, 128)
    model = frozen(nn.Sequential(nn.Linear(128, 8)), x, bits=bits, weight_quantizer=quantizer, input_quantizer="symmetric")
    few, plain = (export(model, tmp_path / f"{choice}.onnx", x, nbits=choice) for choice in (True, False))
    assert why in few.not_nbits["0"] and not few.nbits_layers and few.kernels == {"QGemm": 1}
    assert few.path.read_bytes() == plain.path.read_bytes() and not plain.not_nbits


# -- what onnxruntime can -----------------------------------------------------------------------------------------------


def test_two_bits_go_where_there_is_a_kernel(tmp_path, monkeypatch):
    x = torch.randn(6, 128)
    model = frozen(nn.Sequential(nn.Linear(128, 8)), x, bits=2)
    monkeypatch.setattr("ldp_search.runner.onnx.export.integer_kernels", lambda: (4,))  # as before onnxruntime 1.28
    record = export(model, tmp_path / "m.onnx", x, nbits=True)
    assert record.nbits_layers == {"0": 4} and close(weight_in(record.path, "0", 4), trained(model, "0"))


def test_an_onnxruntime_without_kernels_is_refused_before_any_work(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise TypeError("Only 4b quantization is supported for MatMulNBits op")

    x = torch.randn(6, 128)
    model = frozen(nn.Sequential(nn.Linear(128, 8)), x, bits=4)
    nbits.integer_kernels.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.InferenceSession", refuse)
        with pytest.raises(
            ValueError, match=rf"received {ort.__version__}.*pip install -U onnxruntime, or export without nbits"
        ):
            export(model, tmp_path / "m.onnx", x, nbits=True)
    nbits.integer_kernels.cache_clear()
    assert not list(tmp_path.iterdir())
    assert set(nbits.integer_kernels()) <= set(nbits.CONTAINERS)


def test_other_formats_do_not_have_it(tmp_path):
    x = torch.randn(6, 128)
    model = frozen(nn.Sequential(nn.Linear(128, 8)), x, bits=4)
    for format in ("packed", "torch"):
        with pytest.raises(ValueError, match=f"nbits belongs to format='onnx'; received format='{format}'"):
            export(model, tmp_path / "m", x, format=format, nbits=True)
