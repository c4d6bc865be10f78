"""Export: the file computes what the model computes, in integers, on integer kernels; and it says what it cannot do."""

import collections
import sys

import pytest
import torch
import torch.nn.functional as F
from breadth import breadth
from torch import nn

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401 (the import registers the names)
from ldp_search import controller, export

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
import onnx_functions  # noqa: E402, F401 (its import shortens every export)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

EXACT = {"weight_quantizer": "clip", "input_quantizer": "clip"}  # grids through zero


def frozen(model, inputs, **space):
    """Applied, one batch seen, frozen: no training, since the tests compare with the model in torch."""
    ldp_search.apply(model, example_inputs=inputs, **({"policy": "static"} | EXACT | space))
    controller(model).finalize([inputs] * 2, forward=lambda batch: call(model, batch))
    return model.eval()


def call(model, inputs):
    if isinstance(inputs, dict):
        return model(**inputs).logits
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def optimized(path, tmp_path):
    """Counts of the operators in the graph as onnxruntime runs it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def run(path, *arrays):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: a.numpy() for i, a in zip(session.get_inputs(), arrays, strict=True)})


def initializers(path):
    return {i.name: i for i in onnx.load(path).graph.initializer}


class Net(nn.Module):
    """Residual convolutions with batch-norm, one activation that does not fuse, groups, a strided stem, a linear end."""

    def __init__(self, channels: int = 8):
        super().__init__()
        c = channels
        self.stem, self.bn0 = nn.Conv2d(3, c, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c)
        self.a, self.bn1 = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.b, self.bn2 = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.BatchNorm2d(c)
        self.c, self.fc = nn.Conv2d(c, c, 1), nn.Linear(c, 5)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn2(self.b(F.relu(self.bn1(self.a(x))))) + x)
        return self.fc(F.silu(self.c(x)).mean((2, 3)))


def scrambled(model):
    """Batch-norms as after a training: gains of both signs, shifted."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


# -- fidelity -------------------------------------------------------------------------------------------------------


LAYERS = {
    "linear": (lambda: nn.Linear(20, 7), lambda: torch.randn(9, 20)),
    "of sequences": (lambda: nn.Linear(20, 7, bias=False), lambda: torch.randn(4, 5, 20).abs()),
    "strided": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), lambda: torch.randn(3, 4, 9, 9)),
    "padding same": (lambda: nn.Conv1d(4, 6, 3, padding="same"), lambda: torch.randn(3, 4, 9)),
    "circular": (lambda: nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular", groups=2), lambda: torch.randn(3, 4, 9)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, groups=2), lambda: torch.randn(3, 4, 9)),
}


@breadth("bits", [8, 3], always=1)
@breadth("name", LAYERS, always=["of sequences", "strided", "circular"])
def test_layers_alone_are_exact(tmp_path, name, bits):
    """One layer: nothing downstream that a rounding could tip over."""
    layer, x = (make() for make in LAYERS[name])
    model = frozen(nn.Sequential(layer), x, bits=bits)
    record = export(model, tmp_path / "m.onnx", x, round_outputs=False)
    assert record.max_error < (1e-3 if layer.bias is not None else 1e-6), record  # biases are int32 codes
    assert not record.rounded_again


@pytest.mark.slow(reason="of single layers what test_a_residual_network shows of a network")
def test_minmax_grids_come_close(tmp_path):
    for layer, x in (
        (nn.Linear(200, 7), torch.rand(9, 200) + 0.3),  # an input range away from zero
        (nn.Linear(200, 7), -torch.rand(4, 5, 200) - 3),
        (nn.Conv2d(8, 6, 3), torch.randn(3, 8, 9, 9)),
    ):
        for bits in (8, 4):
            model = frozen(nn.Sequential(layer), x, bits=bits, weight_quantizer="minmax", input_quantizer="minmax")
            record = export(model, tmp_path / "m.onnx", x, round_outputs=False)
            assert record.max_error < 0.02, (layer, bits, record)
            assert record.rounded_again == ["0"]
            ldp_search.remove(model)


@breadth("quantizer, bits", [("clip", 8), ("clip", 5), ("symmetric", 5), ("minmax", 8)], always=[("minmax", 8)])
def test_a_residual_network(tmp_path, quantizer, bits):
    torch.manual_seed(1)
    x = torch.randn(16, 3, 12, 12)
    model = frozen(scrambled(Net()), x, bits=bits, weight_quantizer=quantizer, input_quantizer=quantizer)
    record = export(model, tmp_path / "m.onnx", x)
    assert record.max_error < 0.03 * 2 ** (8 - bits)
    assert record.kernels == {"QLinearConv": 4, "QGemm": 1} and not record.float_layers
    counts = optimized(record.path, tmp_path)
    assert counts["QLinearConv"] == 4 and not counts["Conv"] and not counts["FusedConv"] and not counts["BatchNormalization"]


@pytest.mark.slow(reason="two exports; round_outputs=False is always exported in test_export_integers.py")
def test_outputs_can_be_left_in_floating_point(tmp_path):
    x = torch.randn(16, 3, 12, 12)
    model = frozen(scrambled(Net()), x, bits=8)
    rounded, exact = (export(model, tmp_path / "m.onnx", x, round_outputs=choice) for choice in (True, False))
    assert exact.max_error < rounded.max_error
    assert set(exact.float_layers) == {"stem", "b", "c"} and "round_outputs=False" in exact.float_layers["b"]
    assert exact.kernels["QLinearConv"] == 1


@pytest.mark.slow(reason="a whole network exported twice")
def test_an_unlike_example_does_not_cut_off_real_data(tmp_path):
    """Ranges inside the network are widened by what batch-norm knows of the data."""
    x = torch.randn(16, 3, 12, 12)
    model = frozen(scrambled(Net()), x, bits=8)
    good, poor = (export(model, tmp_path / f"{k}.onnx", e) for k, e in (("good", x), ("poor", torch.zeros(1, 3, 12, 12))))
    with torch.no_grad():
        expected = model(x)
    errors = [float((torch.tensor(run(r.path, x)[0]) - expected).abs().max() / expected.abs().max()) for r in (good, poor)]
    assert errors[1] < 3 * errors[0] + 0.05


@pytest.mark.slow(reason="a whole training; test_export_command.py always exports a trained run")
def test_a_trained_cifar_resnet_decides_alike(tmp_path):
    sklearn = pytest.importorskip("sklearn.datasets")
    timm = pytest.importorskip("timm")
    digits = sklearn.load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.3, torch.tensor(digits.target)
    model = timm.create_model("cifar_resnet20", num_classes=10, in_chans=1)
    steps = 50
    ldp_search.apply(model, example_inputs=x[:2], target_cost=0.4)
    ldp, optimizer = controller(model), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(steps):
        pick = torch.randint(0, 1500, (64,))
        F.cross_entropy(model(x[pick]), y[pick]).backward()
        ldp.step((step + 1) / steps)
        optimizer.step()
        optimizer.zero_grad()
    ldp.finalize([(x[i : i + 100],) for i in range(0, 1000, 100)])
    model.eval()
    assert any(max(b[:2]) < 8 for b in ldp.bits().values())  # codes of fewer bits than their containers
    record = export(model, tmp_path / "m.onnx", x[:100])
    with torch.no_grad():
        expected = model(x[1500:])
    found = torch.tensor(run(record.path, x[1500:])[0])
    agreement = (found.argmax(1) == expected.argmax(1)).float().mean()
    assert record.kernels == {"QLinearConv": 21, "QGemm": 1}
    # Half-trained networks agree on 0.95 to 0.98 of the pictures, by the seed and whoever draws the noise of the gradients.
    assert agreement > 0.93 and ((found - expected).norm() / expected.norm()) < 0.2


def bert(**options):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        "bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50,
        max_position_embeddings=16, num_labels=3, **options,
    )  # fmt: skip
    return transformers.AutoModelForSequenceClassification.from_config(config)


def test_bert(tmp_path):
    inputs = {"input_ids": torch.randint(0, 50, (8, 12)), "attention_mask": torch.ones(8, 12, dtype=torch.long)}
    inputs["attention_mask"][:, 9:] = 0
    model = frozen(bert(), inputs, bits=8)
    record = export(model, tmp_path / "m.onnx", inputs)
    assert record.max_error < 0.01 and len(record.integer_layers) == 14
    assert record.kernels["MatMulIntegerToFloat"] == 12 and record.kernels["QGemm"] == 2
    session = ort.InferenceSession(str(record.path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["logits"] and {i.name for i in session.get_inputs()} == set(inputs)
    other = {k: torch.randint(1, 2, (3, 12)) if k == "attention_mask" else torch.randint(0, 50, (3, 12)) for k in inputs}
    with torch.no_grad():
        expected = model(**other).logits
    found = torch.tensor(session.run(None, {k: v.numpy() for k, v in other.items()})[0])  # another batch size
    assert torch.equal(found.argmax(1), expected.argmax(1)) and record.free_batch


@pytest.mark.slow(reason="a second transformer beside BERT; a tied head is always exported in test_export_torch.py")
def test_gpt2_with_tied_embeddings_and_conv1d(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2", **small))
    inputs = {"input_ids": torch.randint(0, 40, (4, 9))}
    frozen(model, inputs, bits=8)
    record = export(model, tmp_path / "m.onnx", inputs)
    assert record.max_error < 0.01 and len(record.integer_layers) == 9 and model.config.use_cache
    with torch.no_grad():  # the table itself stays as it was: only the head rounds
        assert torch.equal(model.transformer.wte.weight, model.lm_head.weight)


# -- what is in the file --------------------------------------------------------------------------------------------


@pytest.mark.slow(reason="a second export, in floating point; codes of each number of bits are always read below")
def test_weights_are_integers_and_the_file_is_small(tmp_path):
    x = torch.randn(16, 64)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    torch.onnx.export(model.eval(), (x,), tmp_path / "float.onnx", dynamo=True, verbose=False, external_data=False)
    frozen(model, x, bits=6)
    record = export(model, tmp_path / "m.onnx", x)
    assert record.bytes == (tmp_path / "m.onnx").stat().st_size < 0.35 * (tmp_path / "float.onnx").stat().st_size
    stored = initializers(record.path)
    for name in ("0", "2", "4"):
        assert stored[f"{name}.weight.codes"].data_type == onnx.TensorProto.INT8
    assert not [i.name for i in stored.values() if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) > 1]
    assert optimized(record.path, tmp_path)["QGemm"] == 3


@breadth("bits", [8, 4, 2], always=[4])
def test_codes_are_those_of_the_true_bits(tmp_path, bits):
    x = torch.randn(16, 12)
    model = frozen(nn.Sequential(nn.Linear(12, 9)), x, bits=bits)
    export(model, tmp_path / "m.onnx", x)
    stored = initializers(tmp_path / "m.onnx")
    codes, zero = (torch.tensor(onnx.numpy_helper.to_array(stored[f"0.weight.{k}"]).copy()) for k in ("codes", "zero_point"))
    codes = codes.int() - zero.int()
    for column in codes.T:  # multiples of one number, at most 2^(b-1) - 1 of it on either side
        step = torch.gcd(column[0], column[0]) if column.any() else torch.tensor(1)
        for code in column:
            step = torch.gcd(step, code)
        assert (column.abs() // step.clamp(min=1)).max() <= 2 ** (bits - 1) - 1
    low, high = (int(onnx.numpy_helper.to_array(stored[f"0.input.{k}"])) for k in ("low", "high"))
    assert high - low == 2**bits - 2  # a signed grid, symmetric about zero
    far = run(tmp_path / "m.onnx", 100 * x)[0]  # far outside of the range: as the model clips it
    with torch.no_grad():
        assert torch.allclose(torch.tensor(far), model(100 * x), atol=1e-3 * float(model(100 * x).abs().max()))


@breadth("bits, kind", [(8, "uint8"), (4, "int8")], always=1)
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_weights_are_unsigned_where_sums_would_be_cut_off(tmp_path, monkeypatch, layer, bits, kind):
    monkeypatch.setattr("ldp_search.runner.onnx.writer.adds_pairs_in_16_bits", lambda: True)
    make, shape = {"linear": (nn.Linear(64, 9), (16, 64)), "convolution": (nn.Conv2d(8, 9, 3), (4, 8, 6, 6))}[layer]
    x = torch.rand(shape)  # of one sign, as behind a ReLU: sums are large
    model = frozen(nn.Sequential(make), x, bits=bits)
    record = export(model, tmp_path / "m.onnx", x)
    codes = onnx.numpy_helper.to_array(initializers(tmp_path / "m.onnx")["0.weight.codes"])
    assert codes.dtype == kind and record.integer_layers == ["0"]
    found, expected = torch.tensor(run(tmp_path / "m.onnx", x)[0]), model(x).detach()
    assert (found - expected).abs().max() <= 0.01 * expected.abs().max()


def test_float_layers_say_why(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up, self.unused = nn.Embedding(11, 4), nn.ConvTranspose1d(4, 6, 4, stride=2), nn.Linear(3, 3)
            self.wide, self.kept, self.twice = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, i):
            h = self.up(self.table(i).transpose(1, 2)).transpose(1, 2)
            return self.twice(self.twice(self.kept(self.wide(h)).relu()).relu())

    i = torch.randint(0, 11, (5, 7))
    model = frozen(Odd(), i, bits=8, fixed={"wide": 12}, skip=["kept"], embeddings=True)
    record = export(model, tmp_path / "m.onnx", i)
    assert record.integer_layers == ["twice"] and record.max_error < 0.02
    for name, why in {
        "table": "looked up", "up": "no integer kernel", "wide": "12 weight bits", "kept": "skip", "unused": "did not run",
    }.items():  # fmt: skip
        assert why in record.float_layers[name]
    assert optimized(record.path, tmp_path)["MatMulIntegerToFloat"] == 2


@pytest.mark.slow(reason="a second BERT; products outside of layers are always exported in test_export_products.py")
def test_attention_products_are_integers_too(tmp_path):
    inputs = {"input_ids": torch.randint(0, 50, (8, 12))}
    model = frozen(bert(attn_implementation="eager"), inputs, bits=8, attention=True)
    record = export(model, tmp_path / "m.onnx", inputs)
    assert not record.float_layers and len(record.integer_layers) == 16 and record.max_error < 0.1


def test_the_model_stays_as_it_was(tmp_path):
    x = torch.randn(8, 3, 12, 12)
    model = frozen(scrambled(Net()), x)
    model.train()
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    state = controller(model).state_dict()
    export(model, tmp_path / "m.onnx", x)
    assert model.training and controller(model).enabled and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, state["tensors"][k]) for k, v in controller(model).state_dict()["tensors"].items())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_batch_of_one_still_leaves_the_batch_free(tmp_path):
    x = torch.randn(1, 3, 12, 12)
    record = export(frozen(Net(), x), tmp_path / "m.onnx", x)
    assert record.free_batch and run(record.path, torch.randn(5, 3, 12, 12))[0].shape == (5, 5)


def test_a_batch_that_the_model_fixes(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x.reshape(3, 4, 4))

    x = torch.randn(3, 4, 4)
    with pytest.warns(UserWarning, match="batch size 3 stays fixed in the file"):
        record = export(frozen(Fixed(), x), tmp_path / "m.onnx", x)
    assert not record.free_batch


# -- errors ---------------------------------------------------------------------------------------------------------


def test_errors_come_before_any_work(tmp_path, monkeypatch):
    x, path = torch.randn(4, 8), tmp_path / "m.onnx"
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(LookupError, match="ldp_search.apply"):
        export(model, path, x)
    ldp_search.apply(model, example_inputs=x, policy="static")
    with pytest.raises(ValueError, match="Unknown export format 'onxx'. Did you mean 'onnx'"):
        export(model, path, x, format="onxx")
    with pytest.raises(ValueError, match=r"call ldp.finalize\(loader\) first"):
        export(model, path, x)
    controller(model).finalize()
    with pytest.raises(ValueError, match=r"none is known of 0, 2: .*ldp.finalize\(loader\)"):
        export(model, path, x)
    controller(model).finalize([(x,)])
    with pytest.raises(ValueError, match="into an existing folder"):
        export(model, tmp_path / "nowhere" / "m.onnx", x)
    with pytest.raises(ValueError, match=r"fp32 weights; received .*bfloat16.* model.float\(\)"):
        export(model.bfloat16(), path, x)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("ldp_search.runner.onnx.export._has", lambda package: package != "onnxscript")
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'ldp_search\[onnx\]'"):
        export(model.float(), path, x)
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime_the_file_is_written_but_not_claimed_to_run(tmp_path, monkeypatch):
    x = torch.randn(8, 3, 12, 12)
    monkeypatch.setattr("ldp_search.runner.onnx.export._has", lambda package: package != "onnxruntime")
    with pytest.warns(UserWarning, match="was not run, since onnxruntime is missing"):
        record = export(frozen(Net(), x), tmp_path / "m.onnx", x)
    assert record.max_error is None and record.kernels is None
    assert "onnxruntime is missing" in record.float_layers["stem"] and record.integer_layers == ["a", "fc"]
    run(record.path, x)


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.full((2, 8), float("nan")), "values that are infinite or not"), (torch.zeros(0, 8), r"of shape \(0, 8\)")],
)
@pytest.mark.parametrize("format", ["onnx", "torch", "packed"])
def test_example_inputs_that_would_show_nothing_are_refused(tmp_path, mlp, format, x, message):
    model = frozen(mlp(), torch.randn(4, 8), bits=8)
    with pytest.raises(ValueError, match=f"example_inputs must be a batch of real data; received.*{message}"):
        ldp_search.export(model, tmp_path / "m", x, format=format)
    assert not list(tmp_path.iterdir())
