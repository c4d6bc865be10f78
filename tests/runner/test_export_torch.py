"""Torch files: int8 kernels compute what the quantized network computes, plain, eager, compiled, or loaded alone."""

import copy
import io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import ldp_search
from ldp_search import controller, export, int8
from ldp_search.runner.exports.fuse import fold_norms, fuse
from ldp_search.runner.exports.int8 import int8_module, trace

EXACT = {"weight_quantizer": "clip", "input_quantizer": "clip"}  # grids through zero


def frozen(model, inputs, **space):
    ldp_search.apply(model, example_inputs=inputs, **({"policy": "static"} | EXACT | space))
    run = (lambda batch: model(**batch)) if isinstance(inputs, dict) else (lambda batch: model(batch))
    controller(model).finalize([inputs] * 2, forward=run)
    return model.eval()


def relative(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


class Net(nn.Module):
    """A strided stem, groups, a residual sum, batch-norms, ReLU and ReLU6, a linear end."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.bn2, self.fc = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Linear(8, 5)
        for norm in (self.bn0, self.bn1, self.bn2):
            nn.init.normal_(norm.weight)  # gains of both signs
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        return self.fc(F.relu(self.bn2(self.b(F.relu6(self.bn1(self.a(x))))) + x).mean((2, 3)))


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("quantizer", ["clip", "symmetric", "minmax"])
def test_layers_alone(bits, quantizer):
    """Exactly, but for the order of sums; minmax weights have no zero on their grid and are rounded once more."""
    for layer, x in (
        (nn.Linear(20, 7), torch.randn(9, 20)),
        (nn.Linear(20, 7, bias=False), torch.randn(4, 5, 20).abs()),
        (nn.Conv2d(4, 6, 3, padding=1, stride=2), torch.randn(3, 4, 9, 9)),
        (nn.Conv2d(4, 6, (2, 4), padding="same", bias=False), torch.randn(3, 4, 9, 9)),
        (nn.Conv1d(4, 6, 3, dilation=2), torch.randn(3, 4, 9)),
        (nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular", groups=2), torch.randn(3, 4, 9)),
        (nn.Conv3d(2, 3, 3), torch.randn(2, 2, 5, 5, 5)),
    ):
        model = frozen(nn.Sequential(layer), x, bits=bits, weight_quantizer=quantizer, input_quantizer=quantizer)
        made = int8_module(model)
        assert isinstance(made.module[0], int8.Int8Layer) and made.integer_layers == ["0"]
        assert made.rounded_again == (["0"] if quantizer == "minmax" else [])
        error = relative(made.module(x), model(x))
        assert error < (0.05 if quantizer == "minmax" else 1e-5), (layer, error)
        assert not (int8.has_kernels() and torch.equal(made.module(x), layer(x)))


@pytest.mark.skipif(not int8.has_kernels(), reason="this CPU has no int8 kernels that are exact")
def test_formulas_stand_where_there_are_no_kernels(monkeypatch):
    q, codes = torch.randint(0, 256, (2, 6, 8, 8), dtype=torch.uint8), torch.randint(-127, 128, (4, 6, 3, 3), dtype=torch.int8)
    scale, bias, how = torch.rand(4), torch.randn(4), ([1, 1], [1, 1], [1, 1], 1)
    flat, table = torch.randint(0, 256, (5, 6), dtype=torch.uint8), codes[:, :, 0, 0].contiguous()
    calls = [
        lambda post, *y: torch.ops.ldp_int8.convolution(q, 0.1, 100, codes, scale, bias, *how, post, *y),
        lambda post, *y: torch.ops.ldp_int8.linear(flat, 0.1, 100, table, scale, bias, post, *y),
    ]
    for call, posts in zip(calls, (("none", "relu", "relu6"), ("none", "relu", "gelu", "gelu_tanh")), strict=True):
        for post in posts:
            for end in ((), (0.5, 3)):
                monkeypatch.setattr(int8, "has_kernels", lambda: True)
                kernel = call(post, *end)
                monkeypatch.setattr(int8, "has_kernels", lambda: False)
                formula = call(post, *end)
                assert kernel.dtype == formula.dtype == (torch.uint8 if end else torch.float32)
                if end:  # a sum on the edge of two codes may fall on either side
                    assert (kernel.int() - formula.int()).abs().max() <= 1 and (kernel != formula).float().mean() < 0.01
                else:
                    assert relative(kernel, formula) < 1e-4, (post, end)


def test_a_trace_that_asks_first_finds_the_kernels_that_are_there():
    """torch.export asks with fake tensors, which have no values to be exact in; the answer is for the whole process."""
    expected = int8.has_kernels()
    int8.has_kernels.cache_clear()
    with FakeTensorMode():
        found = int8.has_kernels()
    assert found == int8.has_kernels() == expected


def test_prepared_weights_follow_their_tensor():
    """The order that oneDNN wants is made once; another tensor, or other values in the same one, are not taken for it."""
    q, scale = torch.randint(0, 256, (3, 16), dtype=torch.uint8), torch.ones(8)
    for _ in range(20):  # memory that is handed out again
        codes = torch.randint(-127, 128, (8, 16), dtype=torch.int8)
        expected = q.float() @ codes.float().t()
        assert torch.equal(torch.ops.ldp_int8.linear(q, 1.0, 0, codes, scale, None), expected)
    alive = sum(not reference.expired() for reference, _ in int8._packed.values())
    assert alive <= 21 if int8.has_kernels() else alive == 0
    codes.neg_()
    assert torch.equal(torch.ops.ldp_int8.linear(q, 1.0, 0, codes, scale, None), -expected)


@pytest.mark.parametrize("quantizer", ["clip", "minmax"])
def test_a_residual_network_as_module_and_as_file(tmp_path, quantizer):
    torch.manual_seed(1)
    x = torch.randn(16, 3, 12, 12)
    model = frozen(Net(), x, weight_quantizer=quantizer, input_quantizer=quantizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record = export(model, tmp_path / "m.pt2", x, format="torch")
    assert record.max_error < 0.03 and record.integer_layers == ["stem", "a", "b", "fc"] and not record.float_layers
    assert record.free == {"args_0": [0]} and record.bytes == record.path.stat().st_size
    loaded, more = int8.load(record.path), torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        assert relative(loaded(more), model(more)) < 0.03 and relative(record.module(more), model(more)) < 0.03
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and controller(model).enabled
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]
    assert loaded.train().eval() is loaded  # as any module


def test_what_stands_between_two_products_goes_into_the_kernels():
    torch.manual_seed(1)
    x = torch.randn(16, 3, 12, 12)
    model = frozen(Net(), x, fixed={"b": 5})
    module = int8_module(model).module
    with torch.no_grad():
        unfused = module(x)
        assert fold_norms(module, trace(module, (x,), {})) == ["bn0", "bn1", "bn2"]
        program = trace(module, (x,), {})
        fuse(program)
        found = program.module()(x)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [t for t in targets if "batch_norm" in t or "relu6" in t]
    posts = [node.kwargs for node in program.graph.nodes if "ldp_int8.convolution" in str(node.target)]
    assert [p.get("post") for p in posts] == ["relu", "relu6", None]  # the last one's is after the residual sum
    assert posts[1]["y_scale"] > 0 and targets.count("aten.clamp.default") == 1  # codes of 5 bits are fewer than a byte has
    assert relative(found, model(x)) < 0.03 and relative(unfused, model(x)) < 0.03


def test_query_key_and_value_share_the_rounding_of_their_input():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
            self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x):
            x = x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
            return self.down(F.gelu(self.up(x), approximate="tanh"))

    x = torch.randn(4, 6, 16)
    for quantizer in ("symmetric", "minmax"):
        model = frozen(Attention(), x, weight_quantizer="symmetric", input_quantizer=quantizer)
        module = int8_module(model).module
        program = trace(module, (x,), {})
        fuse(program)
        targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert targets.count("aten.to.dtype") == (3 if quantizer == "symmetric" else 4) and "aten.gelu.default" not in targets
        with torch.no_grad():
            assert relative(program.module()(x), model(x)) < 0.05
        ldp_search.remove(model)


def test_values_written_in_place_between_two_layers_are_rounded_anew():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = x + 1
            first = self.a(x)
            x.mul_(-1)
            return first + self.b(x)

    x = torch.randn(4, 8)
    model = frozen(Writes(), x, bits=8, weight_quantizer="symmetric", input_quantizer="symmetric")
    program = trace(int8_module(model).module, (x,), {})
    fuse(program)
    with torch.no_grad():
        assert relative(program.module()(x), model(x)) < 0.02


def test_layers_without_a_kernel_stay_in_floating_point_and_say_why():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up, self.unused = nn.Embedding(11, 4), nn.ConvTranspose1d(4, 6, 4, stride=2), nn.Linear(3, 3)
            self.wide, self.kept, self.twice = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, i):
            h = self.up(self.table(i).transpose(1, 2)).transpose(1, 2)
            return self.twice(5 * self.twice(self.kept(self.wide(h)).relu()).relu())

    i = torch.randint(0, 11, (5, 7))
    model = frozen(Odd(), i, bits=8, fixed={"wide": 12}, skip=["kept"], embeddings=True)
    made = int8_module(model)
    assert made.integer_layers == ["twice"] and len(made.module.twice.grids) == 2
    reasons = {"table": "looked up", "up": "no int8 kernel", "wide": "12 weight bits", "kept": "skip", "unused": "did not run"}
    assert all(why in made.float_layers[name] for name, why in reasons.items()) and set(made.float_layers) == set(reasons)
    for _ in range(2):
        assert relative(made.module(i), model(i)) < 0.02
    assert torch.equal(made.module.kept.weight, model.kept.weight) and not torch.equal(
        made.module.wide.weight, model.wide.weight
    )


@pytest.mark.slow(reason="a language model of transformers; the tests beside it export small networks")
def test_gpt2_with_a_tied_head_and_free_lengths(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2", **small))
    inputs = {"input_ids": torch.randint(0, 40, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    frozen(model, inputs)
    record = export(model, tmp_path / "m.pt2", inputs, format="torch")
    assert record.max_error < 0.05 and len(record.integer_layers) == 5 and model.config.use_cache
    assert record.free["input_ids"] == [0, 1]
    other = {"input_ids": torch.randint(0, 40, (2, 17)), "attention_mask": torch.ones(2, 17, dtype=torch.long)}
    with torch.no_grad():
        assert relative(int8.load(record.path)(**other)["logits"], model(**other).logits) < 0.05
    assert torch.equal(record.module.transformer.wte.weight, model.transformer.wte.weight)
    assert record.module.lm_head.weight.dtype == torch.int8


def test_it_compiles(tmp_path):
    x = torch.randn(8, 20)
    model = frozen(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4)), x)
    record = export(model, tmp_path / "m.pt2", x, format="torch")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in (record.module, int8.load(record.path)):
            assert relative(torch.compile(module, backend="aot_eager", fullgraph=True)(x), model(x)) < 1e-2


@pytest.mark.slow(reason="a process of its own; the packed file, in one, always is in test_packed.py")
def test_a_file_runs_in_a_process_without_ldp_search(tmp_path):
    x = torch.randn(4, 3, 12, 12)
    model = frozen(Net(), x)
    record = export(model, tmp_path / "m.pt2", x, format="torch")
    torch.save(x, tmp_path / "x.pt")
    program = f"""
import importlib.util, sys, torch
sys.modules["ldp_search"] = None  # an import of it would fail
spec = importlib.util.spec_from_file_location("int8", {str(Path(int8.__file__))!r})
int8 = importlib.util.module_from_spec(spec); sys.modules["int8"] = int8; spec.loader.exec_module(int8)
with torch.no_grad():
    torch.save(int8.load("m.pt2")(torch.load("x.pt")), "y.pt")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "y.pt"), int8.load(record.path)(x))


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    x = torch.randn(8, 20)
    return export(frozen(nn.Sequential(nn.Linear(20, 16)), x), tmp_path / "m.pt2", x, format="torch").path


def rewritten(path, change):
    """The archive with one part changed: change(name, content) -> content."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))
    return path


def test_files_cut_short_changed_or_of_another_version_are_refused(file, tmp_path):
    data = file.read_bytes()
    for end in (10, len(data) // 2, len(data) - 3):
        file.write_bytes(data[:end])
        with pytest.raises(ValueError, match="not a whole file.*cut short or changed"):
            int8.load(file)
    flipped, place = bytearray(data), data.index(b"ldp_int8.linear")
    flipped[place] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(ValueError, match="CRC.*cut short or changed"):
        int8.load(file)
    file.write_bytes(data)
    rewritten(file, lambda name, content: content.replace(b'"version": 1', b'"version": 9') if "ldp_int8" in name else content)
    with pytest.raises(ValueError, match="format version 1; it is of 9, made with"):
        int8.load(file)
    torch.export.save(torch.export.export(nn.Linear(3, 3), (torch.zeros(1, 3),)), file)
    with pytest.raises(ValueError, match="holds .*unpickled"):
        int8.load(file)
    with pytest.raises(FileNotFoundError, match="No model at"):
        int8.load(tmp_path / "none.pt2")


def test_nothing_is_unpickled(file, tmp_path):
    marker, buffer = tmp_path / "ran", io.BytesIO()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save(Evil(), buffer)

    def with_pickle(name, content):
        return buffer.getvalue() if name.endswith("sample_inputs/model.pt") else content

    def flagged(name, content):
        if not name.endswith("weights_config.json"):
            return content
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    whole = file.read_bytes()
    for change in (with_pickle, flagged):
        file.write_bytes(whole)
        with pytest.raises(ValueError, match="would have to be unpickled"):
            int8.load(rewritten(file, change))
        assert not marker.exists()


def test_models_that_are_not_ready_are_refused_before_any_work(tmp_path):
    x, path = torch.randn(4, 8), tmp_path / "m.pt2"
    model = nn.Sequential(nn.Linear(8, 4))
    ldp_search.apply(model, example_inputs=x, policy="static")
    with pytest.raises(ValueError, match=r"call ldp.finalize\(loader\) first"):
        export(model, path, x, format="torch")
    controller(model).finalize([x])
    with pytest.raises(ValueError, match=r"fp32 weights; received .*bfloat16"):
        export(copy.deepcopy(model).bfloat16(), path, x, format="torch")

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(x) if float(x.sum()) > 0 else -self.fc(x)

    with pytest.raises(ValueError, match="torch.export cannot trace a Looks"):
        export(frozen(Looks(), x), path, x, format="torch")
    assert not list(tmp_path.iterdir())
