"""An exported file goes through integers from its first layer to its last, as onnxruntime's own static int8 does."""

import pytest
import torch
import torch.nn.functional as F
from breadth import breadth
from test_export import export, frozen, optimized, scrambled
from torch import nn

import ldp_search
from ldp_search import controller
from ldp_search.runner.exports.subject import random_inputs


class Stages(nn.Module):
    """A stem with max-pooling, a residual block with ReLU, one with linear bottlenecks and ReLU6, a linear end."""

    def __init__(self):
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.n1, self.b, self.n2 = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8),
        )
        self.wide, self.n3, self.c, self.n4 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.d, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.n0(self.stem(x))), 2)
        x = F.relu(x + self.n2(self.b(F.relu(self.n1(self.a(x))))))
        x = x + self.n4(self.c(F.relu6(self.n3(self.wide(x)))))
        return self.fc(F.relu(self.d(x)).mean((2, 3)))


def stages(bits: int, x):
    torch.manual_seed(0)
    return frozen(scrambled(Stages()), x, bits=bits, weight_quantizer="symmetric", input_quantizer="symmetric")


def test_nothing_between_integer_layers_is_floating_point(tmp_path):
    x = torch.randn(16, 3, 12, 12)
    record = export(stages(8, x), tmp_path / "m.onnx", x)
    counts = optimized(record.path, tmp_path)
    assert record.kernels == {"QLinearConv": 6, "QGemm": 1} and record.max_error < 0.03
    assert counts["QLinearAdd"] == 2 and not counts["Add"] and not counts["Relu"] and not counts["MaxPool"]
    assert counts["QuantizeLinear"] == 2 and counts["DequantizeLinear"] == 1  # of the picture, and about the mean


@pytest.mark.slow(reason="of 4 bits what is shown of 8 above; few bits always are in the two tests of max-pools and bounds")
def test_with_few_bits_a_sum_keeps_its_values_and_relu6_its_kernel(tmp_path):
    x = torch.randn(16, 3, 12, 12)
    record = export(stages(4, x), tmp_path / "m.onnx", x)
    counts = optimized(record.path, tmp_path)
    assert record.kernels == {"QLinearConv": 6, "QGemm": 1}
    assert not counts["QLinearAdd"] and counts["Add"] == 2


def test_a_max_pool_of_few_bits_is_exact(tmp_path):
    x = torch.randn(16, 3, 12, 12)
    model = frozen(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)), x, bits=3)
    record = export(model, tmp_path / "m.onnx", x)
    counts = optimized(record.path, tmp_path)
    assert record.kernels == {"QLinearConv": 2} and counts["QuantizeLinear"] == 1 and record.max_error < 0.01


def test_without_rounding_more_a_max_pool_that_others_read_stays(tmp_path):
    x = torch.randn(16, 3, 12, 12)
    record = export(stages(8, x), tmp_path / "m.onnx", x, round_outputs=False)
    counts = optimized(record.path, tmp_path)
    assert counts["MaxPool"] == 1 and not counts["QLinearAdd"] and {"stem", "b", "c", "d"} == set(record.float_layers)


@breadth("bits", [8, 4], always=[4])
def test_bounds_of_an_activation_become_bounds_of_codes(tmp_path, bits):
    """ReLU6 cuts most of the values off, and the grid reaches beyond it."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3))
    layers[0].weight.data *= 30
    x = torch.randn(16, 3, 12, 12)
    model = frozen(layers, x, bits=bits, weight_quantizer="symmetric", input_quantizer="symmetric")
    controller(model).sites[1].ranges[:, :3].mul_(1.5)
    record = export(model, tmp_path / "m.onnx", x)
    assert record.kernels == {"QLinearConv": 2} and not optimized(record.path, tmp_path)["FusedConv"]
    assert record.max_error < 0.01


@pytest.mark.slow(reason="several exports")
def test_what_passes_by_a_layer_is_not_cut_off_with_its_input(tmp_path):
    """The ranges are those of small inputs; the example shows larger ones, of which the residual sum keeps all."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(3))

        def forward(self, x):
            y = self.a(x)
            y = y + self.b(y)
            return y + self.c(y)

    x = torch.randn(16, 4, 6, 6)
    model = frozen(Block(), x, bits=8)
    small = export(model, tmp_path / "m.onnx", x)
    assert optimized(small.path, tmp_path)["QLinearAdd"] == 1 and small.max_error < 0.03  # nothing reads the last
    controller(model).sites[2].ranges[:, :3].div_(3)
    large = export(model, tmp_path / "m.onnx", x)
    assert not optimized(large.path, tmp_path)["QLinearAdd"] and large.max_error < 0.03


def test_models_of_pictures_of_any_size_have_random_inputs():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=3, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    args, kwargs = random_inputs(model, 1, 0)
    assert not args and kwargs["pixel_values"].shape == (1, 3, 224, 224)
    assert ldp_search.apply(model, example_inputs=kwargs, policy="static") is not None
