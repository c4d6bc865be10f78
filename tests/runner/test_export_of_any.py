"""Export of what is unusual: constants, nested configurations, weights that are computed, inputs of any length."""

import warnings

import pytest
import torch
import torch.nn.utils as utils
from breadth import breadth
from test_export import bert, export, frozen, ort, run
from torch import nn

from ldp_search import controller
from ldp_search.runner.onnx import float_graph
from ldp_search.runner.onnx.check import difference
from ldp_search.runner.onnx.dynamic_shapes import Freedom
from ldp_search.runner.onnx.exported_forward import ready

ir = pytest.importorskip("onnxscript").ir
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Constant(nn.Module):
    """A layer whose input is the same number everywhere."""

    def __init__(self, value: float, layer: nn.Module):
        super().__init__()
        self.value, self.layer = value, layer

    def forward(self, x):
        return self.layer(x * 0 + self.value)


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.constant_(model[0].bias, -100)
    return model


def without_gain() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
    nn.init.zeros_(model[1].weight)
    return model


def zero_weights() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.zeros_(model[2].weight)
    return model


# -- constants and empty ranges -------------------------------------------------------------------------------------

CONSTANTS = {
    "dead relu": (dead, (8, 16)),
    "no gain": (without_gain, (4, 3, 8, 8)),
    "zero inputs": (zero_weights, None),
    "3 with padding": (lambda: Constant(3.0, nn.Conv2d(3, 4, 3, padding=1)), (2, 3, 6, 6)),
    "-2 in three dimensions": (lambda: Constant(-2.0, nn.Linear(16, 4)), (2, 5, 16)),
    "too small for a grid": (lambda: Constant(1e-33, nn.Linear(16, 4, bias=False)), (8, 16)),
}


QUANTIZERS = ("symmetric", "minmax")
CASES = [(case, QUANTIZERS[i % 2]) for i, case in enumerate(CONSTANTS)]  # each case once, and two kinds under both
CASES += [("dead relu", "minmax"), ("3 with padding", "symmetric")]


@breadth("case, quantizer", CASES, always=[("3 with padding", "minmax"), ("dead relu", "symmetric")])
def test_an_input_of_one_value_has_a_code(tmp_path, case, quantizer):
    make, shape = CONSTANTS[case]
    torch.manual_seed(0)
    x = torch.zeros(8, 16) if shape is None else torch.randn(shape)
    bits = {"bits": 8, "weight_quantizer": "symmetric", "input_quantizer": quantizer}
    model = frozen(make(), x, **bits)
    record = export(model, tmp_path / "m.onnx", x, round_outputs=False)
    assert record.max_error < 1e-4 and not record.rounded_again
    far = 10 * torch.randn_like(x)  # clipped to the one value where the model does
    with torch.no_grad():
        assert difference(run(record.path, far), [model(far).numpy()]) < 1e-3


def test_differences_of_outputs_that_are_not_plain_numbers():
    inf, nan = float("inf"), float("nan")
    mask = torch.tensor([True, False]).numpy()
    scores, other = torch.tensor([1.0, -inf, nan]).numpy(), torch.tensor([1.5, -inf, nan]).numpy()
    assert difference([mask], [mask]) == 0 and difference([mask], [~mask]) == 1
    assert difference([other], [scores]) == 0.5
    assert difference([scores[:1]], [scores[1:2]]) == inf
    assert difference([scores[:0]], [scores[:0]]) == 0 and difference([], []) == 0


def test_a_training_that_diverged_is_named_before_the_export(tmp_path):
    x = torch.randn(8, 16)
    model = frozen(dead(), x)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    controller(model).ranges[1, 3] = 0  # as where every batch was broken
    for format in ("onnx", "torch", "packed"):
        with pytest.raises(ValueError, match="finite weights and input ranges; those of 2 are not"):
            export(model, tmp_path / "m", x, format=format)
    with torch.no_grad():
        model[2].weight.zero_()
    controller(model).ranges[0, 1] = float("inf")
    with pytest.raises(ValueError, match="those of 0 are not"):
        export(model, tmp_path / "m.onnx", x)


def test_a_folder_is_no_file(tmp_path):
    x = torch.randn(8, 16)
    with pytest.raises(ValueError, match="writes a file, but .* is a folder. Give a name in it"):
        export(frozen(dead(), x), tmp_path, x)


# -- caches in nested configurations --------------------------------------------------------------------------------

WORDS = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_encoder_layers": 1, "num_heads": 2,
    "vocab_size": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "hidden_size": 16, "num_attention_heads": 2,
    "intermediate_size": 32, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "num_sparse_encoder_layers": 0,
    "num_sparse_decoder_layers": 0, "num_experts": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "langs": ["en", "de"], "src_vocab_size": 64, "tgt_vocab_size": 64, "attention_window": 4,
    "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64,
}  # fmt: skip
SEQ2SEQ = [
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "fsmt", "led", "longt5", "m2m_100", "marian", "mbart", "mt5",
    "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "pop2piano", "prophetnet", "switch_transformers", "t5", "umt5",
]  # fmt: skip


def seq2seq(kind: str) -> nn.Module:
    """A tiny model of a kind of encoder-decoder."""
    plain = transformers.AutoConfig.for_model(kind)
    words = {k: v for k, v in WORDS.items() if hasattr(plain, k) and k not in plain.attribute_map}
    config = transformers.AutoConfig.for_model(kind, **words)
    if kind == "pop2piano":
        return transformers.Pop2PianoForConditionalGeneration(config)
    return transformers.AutoModelForSeq2SeqLM.from_config(config)


def nested() -> nn.Module:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
    parts = [transformers.AutoConfig.for_model("bert", **small) for _ in range(2)]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    return transformers.EncoderDecoderModel(config)


def pairs(batch: int = 2, length: int = 8, target: int = 5) -> dict:
    return {
        "input_ids": torch.randint(3, 60, (batch, length)), "decoder_input_ids": torch.randint(3, 60, (batch, target)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", [*SEQ2SEQ, "encoder-decoder"])
def test_no_encoder_decoder_returns_a_cache_while_it_is_exported(kind):
    if kind not in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES:
        pytest.skip("this transformers does not have it")
    model, inputs = (nested() if kind == "encoder-decoder" else seq2seq(kind)).eval(), pairs()
    with torch.no_grad():
        assert "past_key_values" in model(**inputs)
        with ready(model):
            assert "past_key_values" not in model(**inputs)
        assert "past_key_values" in model(**inputs)  # as it was
        with pytest.raises(KeyboardInterrupt), ready(model):
            raise KeyboardInterrupt
        assert "past_key_values" in model(**inputs)


@pytest.mark.slow(reason="two inputs of free lengths; one always is below")
@pytest.mark.parametrize("kind", ["t5", "encoder-decoder"])
def test_encoder_decoders_of_any_length(tmp_path, kind):
    torch.manual_seed(0)
    model = nested() if kind == "encoder-decoder" else seq2seq(kind)
    inputs = pairs()
    frozen(model, inputs, bits=8)
    record = export(model, tmp_path / "m.onnx", inputs)
    assert record.max_error < 0.01 and record.free_batch and record.free_length
    check_lengths(model, record, [pairs(1, 5, 9), pairs(3, 11, 4)])


# -- free lengths ---------------------------------------------------------------------------------------------------


def check_lengths(model, record, others) -> None:
    """The file computes what the model does at other batch sizes and lengths."""
    session = ort.InferenceSession(str(record.path), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "logits"
    for inputs in others:
        with torch.no_grad():
            expected = model(**inputs).logits
        found = session.run(["logits"], {k: v.numpy() for k, v in inputs.items()})
        assert found[0].shape == tuple(expected.shape) and difference(found, [expected.numpy()]) < 0.01


def gpt2() -> nn.Module:
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2", **small))


def tokens(batch: int, length: int, mask: bool = True) -> dict:
    masks = {"attention_mask": torch.ones(batch, length, dtype=torch.long)} if mask else {}
    return {"input_ids": torch.randint(0, 50, (batch, length))} | masks


@breadth(
    "make, example, mask",
    [(bert, (8, 8), True), (gpt2, (1, 1), False)],
    always=1,
    ids=["bert, a batch as long as the text", "gpt2, one token"],
)
def test_token_inputs_are_of_any_length(tmp_path, make, example, mask):
    torch.manual_seed(0)
    model, inputs = make(), tokens(*example, mask)
    frozen(model, inputs, bits=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        record = export(model, tmp_path / "m.onnx", inputs)
    assert record.free_batch and record.free_length
    check_lengths(model, record, [tokens(1, 5, mask), tokens(4, 14, mask)])


def test_a_length_that_the_model_fixes_stays_and_is_named(tmp_path):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc = nn.Embedding(20, 4), nn.Linear(4 * 6, 3)

        def forward(self, ids):
            return self.fc(self.table(ids).flatten(1))

    ids = torch.randint(0, 20, (4, 6))
    model = frozen(Classifier(), ids)
    with pytest.warns(UserWarning, match=r"length 6 stays fixed in the file, .*takes no other \(mat1 and mat2"):
        record = export(model, tmp_path / "m.onnx", ids)
    assert record.free_batch and not record.free_length
    assert run(record.path, ids[:2])[0].shape == (2, 3)


def test_pictures_and_features_have_no_free_length():
    assert Freedom.of((torch.randn(4, 3, 8, 8),), {}) == Freedom(4)
    assert Freedom.of((), {"x": torch.randn(4, 9), "labels": torch.zeros(4, dtype=torch.long)}) == Freedom(4)
    assert Freedom.of((), tokens(4, 9)) == Freedom(4, frozenset({9}))


# -- computed weights -----------------------------------------------------------------------------------------------


def multiplied(layer: nn.Module) -> nn.Module:
    """A hook that multiplies by a matrix of its own behind the layer."""
    layer.register_forward_hook(lambda module, inputs, output: output @ torch.eye(output.shape[-1]).mul(2))
    return layer


COMPUTED = {
    "spectral norm of old": lambda: utils.spectral_norm(nn.Linear(12, 8)),
    "spectral norm": lambda: utils.parametrizations.spectral_norm(nn.Linear(12, 8)),
    "orthogonal": lambda: utils.parametrizations.orthogonal(nn.Linear(12, 8)),
    "orthogonal by cayley": lambda: utils.parametrizations.orthogonal(nn.Linear(12, 8), orthogonal_map="cayley"),
    "weight norm of old": lambda: utils.weight_norm(nn.Linear(12, 8)),
    "a hook that multiplies": lambda: multiplied(nn.Linear(12, 8)),
}


@breadth("case", COMPUTED, always=["spectral norm of old", "orthogonal"])
def test_layers_whose_weight_is_computed_or_whose_hooks_multiply(tmp_path, case):
    x = torch.randn(5, 12) if "of old" in case else torch.randn(5, 3, 12)
    model = frozen(nn.Sequential(nn.Linear(12, 12), nn.ReLU(), COMPUTED[case](), nn.ReLU(), nn.Linear(8, 3)), x, bits=8)
    record = export(model, tmp_path / "m.onnx", x)
    assert len(record.integer_layers) == 3 and record.max_error < 0.02
    inside = ["2.parametrizations.weight.0.base"] if case == "orthogonal by cayley" else []  # a product that makes the weight
    assert list(record.float_layers) == inside


# -- all or nothing -------------------------------------------------------------------------------------------------

STEPS = [
    "float_graph.output_names", "float_graph.float_graph", "float_graph.product_nodes", "export._write", "check.feed",
    "check.own_error", "conv_outputs.write_biases", "pools.round_before", "check.ranges", "conv_outputs.round_outputs",
    "sums.round_sums", "clips.bound_codes", "check._tidy", "check._session", "check.difference",
]  # fmt: skip


@pytest.fixture(scope="module")
def exported_once():
    """In place of `float_graph._export`: the first graph that it makes, over and over; for tests of one model."""
    made, plain = [], float_graph._export

    def export_once(*args):
        if not made:
            graph, freedom = plain(*args)
            made.extend((ir.to_proto(graph), freedom))
        return ir.from_proto(made[0]), made[1]

    return export_once


@pytest.mark.parametrize("step", STEPS)
def test_an_export_that_stops_anywhere_leaves_file_and_model_as_they_were(tmp_path, monkeypatch, exported_once, step):
    monkeypatch.setattr(float_graph, "_export", exported_once)
    x, path = torch.randn(4, 3, 8, 8), tmp_path / "m.onnx"
    model = frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU()), x, bits=8).train()
    path.write_bytes(b"an earlier one")
    state = controller(model).state_dict()
    weights = {k: v.clone() for k, v in model.state_dict().items()}

    def stop(*args, **kwargs):
        raise KeyboardInterrupt("stopped here")

    module, name = step.split(".")
    monkeypatch.setattr(f"ldp_search.runner.onnx.{module}.{name}", stop)
    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        export(model, path, x)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"] and path.read_bytes() == b"an earlier one"
    assert model.training and controller(model).enabled and not model[0]._forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, state["tensors"][k]) for k, v in controller(model).state_dict()["tensors"].items())


def test_what_onnxruntime_refuses_is_said_with_a_remedy(tmp_path, monkeypatch):
    x = torch.randn(4, 16)
    model = frozen(dead(), x)

    def refuse(*args, **kwargs):
        raise TypeError("[ONNXRuntimeError] : 1 : FAIL : Node (2) Op (Gemm) is not for this")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(RuntimeError, match=r"(?s)cannot run what .*no file was written.*Node \(2\).*round_outputs=False"):
        export(model, tmp_path / "m.onnx", x)
    assert not list(tmp_path.iterdir())
