"""The profile: who is charged for which multiply-accumulates, and what stays as it was."""

import json

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401  (registers the CIFAR networks with timm)
from ldp_search.core.profile.profiler import profile
from ldp_search.core.profile.records import ModelProfile
from ldp_search.core.profile.samples import batch_size

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(6, 5), (3, 6), 30),
        (nn.Linear(6, 5), (3, 7, 6), 210),
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), (3, 4, 9), 4 * 6 * 2 * 3),
        (nn.Conv2d(2, 4, 3, padding=1), (3, 2, 5, 6), 5 * 6 * 4 * 2 * 9),
        (nn.Conv3d(2, 3, 2), (3, 2, 3, 3, 3), 8 * 3 * 2 * 8),
        (nn.ConvTranspose2d(2, 4, 3, stride=2), (3, 2, 3, 3), 9 * 2 * 4 * 9),
        (nn.Embedding(7, 5), (3, 4), 0),
    ],
)
def test_macs_per_sample(layer, shape, macs):
    kind = type(layer).__name__
    x = torch.zeros(shape, dtype=torch.long) if isinstance(layer, nn.Embedding) else torch.zeros(shape)
    ldp = ldp_search.controller(ldp_search.apply(nn.Sequential(layer), "static", bits=4, embeddings=True, example_inputs=x))
    spec = ldp.layers["0"]
    assert (spec.kind, spec.macs, spec.calls) == (kind, macs, 1)
    assert spec.input_numel == x[0].numel() and spec.weight_numel == layer.weight.numel()


class Odd(nn.Module):
    """Uses a layer twice, another one's weight by hand, and a raw product."""

    def __init__(self):
        super().__init__()
        self.twice, self.by_hand, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.mixing = nn.Parameter(torch.randn(4, 2))

    def forward(self, x, *, scale=1.0):
        x = self.twice(self.twice(x))
        return nn.functional.linear(x, self.by_hand.weight) @ self.mixing * scale


def test_what_happens_outside_the_layers_belongs_to_its_weight():
    ldp = ldp_search.controller(ldp_search.apply(Odd(), "static", bits=4, example_inputs={"x": torch.zeros(5, 4)}))
    found = {name: (s.kind, s.macs, s.weight_numel, s.calls) for name, s in ldp.layers.items()}
    assert found == {
        "mixing": ("matmul", 8, 8, 1),
        "twice": ("Linear", 32, 16, 2),
        "by_hand": ("Linear", 16, 16, 1),
        "never": ("Linear", 0, 16, 0),
    }
    assert ldp.coverage == (1.0, [])


def test_skipped_layers_are_named(mlp):
    ldp = ldp_search.controller(ldp_search.apply(mlp(), "static", skip=["2"], example_inputs=torch.zeros(5, 8)))
    assert ldp.coverage.left_out == [("2", 32, "kept in full precision (skip)")]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torchs_encoder_is_counted_and_quantized_in_evaluation():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        original = model(x), model(x, src_key_padding_mask=mask)
    ldp = ldp_search.controller(ldp_search.apply(model, "static", bits=3, example_inputs=x))
    assert ldp.layers["layers.0.linear1"].macs == 5 * 8 * 16
    assert {item.name for item in ldp.coverage.left_out} == {"layers.0.self_attn", "layers.1.self_attn"}
    assert all("of two activations; attention=True quantizes it" in item.reason for item in ldp.coverage.left_out)
    assert ldp.coverage.share == pytest.approx(1 - 2 * 2 * 5 * 5 * 8 / (2 * 5 * 8 * (4 * 8 + 2 * 16) + 2 * 2 * 5 * 5 * 8))
    with torch.no_grad():
        assert (model(x) - original[0]).abs().max() > 0.01, "the fused path would skip the quantizers"
        assert (model(x, src_key_padding_mask=mask) - original[1])[0].abs().max() > 0.01
        with ldp.disabled():
            assert torch.equal(model(x), original[0])
        assert torch.backends.mha.get_fastpath_enabled()
        assert torch.equal(ldp_search.remove(model)(x), original[0])
    assert type(model) is nn.TransformerEncoder and type(model.layers[0]) is nn.TransformerEncoderLayer


def test_it_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2))
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    found = profile(model, (torch.randn(3, 1, 4, 4, generator=torch.Generator()),), {})
    assert found.inputs == "(3, 1, 4, 4)" and found.modules["4"].macs.total() == 16
    assert ModelProfile.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        profile(model, (torch.zeros(1, 7),), {})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [m.training for m in model.modules()] == modes and torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((torch.zeros(5, 2),), {}, 5),
        ((), {"flag": True, "ids": torch.zeros(4, 2)}, 4),
        (({"image": torch.zeros(6, 2)},), {}, 6),
        (([torch.zeros(3)], torch.zeros(7)), {}, 3),
        ((torch.tensor(1.0), "word"), {}, 1),
    ],
)
def test_batch_size(args, kwargs, expected):
    assert batch_size(args, kwargs) == expected


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: timm.create_model("cifar_resnet20"), None),
        # These say nothing of their inputs, or what is wrong, so that the first forward is waited for.
        (
            lambda: BertForSequenceClassification(BertConfig(**SMALL, vocab_size=20)),
            {"input_ids": torch.zeros(2, 7, dtype=torch.long)},
        ),
        (lambda: timm.create_model("cifar_resnet20", in_chans=1), {"x": torch.zeros(2, 1, 28, 28)}),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24),
            {"x": torch.zeros(2, 3, 32, 32)},
        ),
        (lambda: ViTForImageClassification(ViTConfig(**SMALL, image_size=32)), {"pixel_values": torch.zeros(2, 3, 32, 32)}),
    ],
    ids=["timm", "bert", "timm, one channel", "timm, other size", "vit"],
)
def test_the_models_own_inputs(make, inputs):
    model = ldp_search.apply(make(), "static")
    ldp = ldp_search.controller(model)
    assert ldp.profiled == (inputs is None)
    if inputs is not None:
        assert "MACs are not counted yet" in ldp.summary()
        model(**inputs)
        assert f"counted on inputs {next(iter(inputs))} {tuple(next(iter(inputs.values())).shape)}" in ldp.summary()
    assert ldp.profiled and ldp.coverage.share > 0.7 and not model._forward_pre_hooks


def test_batch_size_by_the_main_input():
    inputs = {"patches": torch.zeros(6, 2), "ids": torch.zeros(3, 2)}
    assert [batch_size((), inputs, main) for main in (None, "ids", ["ids", "patches"], "absent", [])] == [6, 3, 3, 6, 6]


def test_an_empty_batch_counts_nothing():
    model = ldp_search.apply(nn.Sequential(nn.Linear(6, 3)), policy="static")
    with pytest.raises(ValueError, match="must hold a sample; this batch is empty"):
        model(torch.randn(0, 6))
    assert model(torch.randn(2, 6)).shape == (2, 3)  # counted then
