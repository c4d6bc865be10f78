"""Packed files: the size that the allocation says, weights bitwise, a reader that needs torch alone, refusals with reasons."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import ldp_search
from ldp_search import controller, export, packed
from ldp_search.core.controller.finalize import allocation as allocation_of
from ldp_search.core.quantize.fake_quantize import rounded

QUANTIZERS = ("minmax", "symmetric", "clip")


def net() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 9, 3, bias=False), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 6, 3, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    model[3].weight.data[:3].abs_()  # channels without negative weights: all their codes lie above zero
    return model


def frozen(model, inputs, **space):
    ldp_search.apply(model, example_inputs=inputs, **({"policy": "static"} | space))
    controller(model).finalize([inputs] * 2)
    return model.eval()


def gpt2():
    transformers = pytest.importorskip("transformers")
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2", **small))
    model.config.use_cache = False
    return model


# -- bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 17))
def test_codes_come_back_and_take_their_bits(bits):
    for numel in (0, 1, 7, 8, 9, 1000):
        codes = torch.randint(0, 2**bits, (numel,))
        data = packed.pack(codes, bits)
        assert data.dtype == torch.uint8 and len(data) == packed.packed_bytes(numel, bits)
        assert torch.equal(packed.unpack(data, bits, numel), codes.int())
    assert packed.packed_bytes(1000, bits) == (1000 * bits + 7) // 8


def test_the_layout_is_a_stream_of_bits_lowest_first():
    data = packed.pack(torch.tensor([5, 1, 7, 2]), 3)
    number = int.from_bytes(data.numpy().tobytes(), "little")
    assert [(number >> 3 * i) & 7 for i in range(4)] == [5, 1, 7, 2] and len(data) == 2


def test_codes_are_packed_in_parts_too(monkeypatch):
    codes = torch.randint(0, 8, (1000,))
    whole = packed.pack(codes, 3)
    monkeypatch.setattr(packed, "_CHUNK", 7)
    assert torch.equal(packed.pack(codes, 3), whole) and torch.equal(packed.unpack(whole, 3, 1000), codes.int())


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 3, 5, 8, 12])
def test_weights_are_bitwise_those_of_training_and_outputs_too(tmp_path, quantizer, bits):
    x, plain = torch.randn(4, 3, 9, 9), net()
    model = frozen(copy.deepcopy(plain), x, bits=bits, weight_quantizer=quantizer, input_quantizer=quantizer)
    record = export(model, tmp_path / "m.safetensors", x, format="packed")
    state, ldp = packed.read(record.path).state_dict(), controller(model)
    for site, (name, spec) in zip(ldp.sites, ldp.specs.items(), strict=True):
        weight = spec.module.weight.detach()
        assert torch.equal(state[f"{name}.weight"], rounded(weight, site.weight_grid(weight)))
    assert torch.equal(state["1.running_var"], model[1].running_var) and torch.equal(state["8.bias"], model[8].bias)
    with torch.no_grad():
        assert torch.equal(packed.load(record.path, plain)(x), model(x))
    assert record.max_error == 0 and not record.float_layers and set(record.layers.values()) == {bits}


def test_the_size_is_what_the_allocation_says_to_the_byte(tmp_path):
    x = torch.randn(4, 3, 9, 9)
    model = frozen(net(), x, fixed={"0": 3, "3": 5, "5": 4}, bits=7)
    record = export(model, tmp_path / "m.safetensors", format="packed")
    ldp, expected = controller(model), {"codes": 0, "grids": 0, "floats": 0}
    weights = {f"{name}.weight" for name in ldp.layers}
    for name, bits in ldp.bits().items():
        weight = model.get_submodule(name).weight
        expected["codes"] += -(-weight.numel() * bits.weight // 8)
        expected["grids"] += 2 * 4 * weight.shape[1 if name == "5" else 0]  # scale and offset of a channel, fp32
    expected["floats"] = sum(t.nbytes for name, t in model.state_dict().items() if name not in weights)
    header = int.from_bytes(record.path.read_bytes()[:8], "little") + 8
    assert (record.codes, record.grids, record.floats, record.header) == (*expected.values(), header)
    assert record.bytes == record.path.stat().st_size == header + sum(expected.values())
    assert ldp.cost().weight_mib * 2**20 == pytest.approx(record.codes, abs=4)  # without the last bits of a byte
    allocation = allocation_of(ldp).layers
    assert record.codes == sum(-(-model.get_submodule(n).weight.numel() * b.weight // 8) for n, b in allocation.items())


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_tied_weights_are_stored_once(tmp_path, quantizer, embeddings):
    """As the table in full precision, which the head reads at its bits, or as codes that both read."""
    ids = {"input_ids": torch.randint(0, 40, (4, 9))}
    plain = gpt2()
    model = frozen(copy.deepcopy(plain), ids, bits=4, embeddings=embeddings, weight_quantizer=quantizer)
    record = export(model, tmp_path / "m.safetensors", ids, format="packed")
    description = packed.read(record.path).description["tensors"]
    table, head = description["transformer.wte.weight"], description["lm_head.weight"]
    with safe_open(record.path, "pt") as file:
        large = [name for name in file.keys() if file.get_slice(name).get_shape() in ([40, 16], [320])]  # noqa: SIM118
    if not embeddings:
        assert (
            head == {"bits": 4, "rounded_from": "transformer.wte.weight"}
            and table == {}
            and large == ["transformer.wte.weight"]
        )
    elif quantizer != "clip":  # whose learned range belongs to the layer alone
        assert head == {"tied": "transformer.wte.weight"} and large == ["transformer.wte.weight:codes"]
    loaded = packed.load(record.path)  # made from its recipe
    with torch.no_grad():
        assert record.max_error == 0 and torch.equal(loaded(**ids).logits, model(**ids).logits)
        assert torch.equal(packed.load(record.path, plain)(**ids).logits, model(**ids).logits)


def test_a_layer_that_runs_twice_has_two_grids(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x):
            return self.a(5 * self.a(x).relu())

    x, plain = torch.randn(8, 6), Twice()
    model = frozen(copy.deepcopy(plain), x, bits=3)
    export(model, tmp_path / "m.safetensors", format="packed")
    loaded = packed.load(tmp_path / "m.safetensors", plain)
    assert len(packed.read(tmp_path / "m.safetensors").description["inputs"]["a"]) == 2
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("fake_first", [True, False], ids=["fake first", "real first"])
def test_rounding_within_a_trace_leaves_nothing_for_later(fake_first):
    layer = nn.Identity()
    layer.register_forward_pre_hook(packed.RoundInput([{"scale": 0.5, "low": -1.0, "high": 1.0}]), with_kwargs=True)
    for fake in (fake_first, not fake_first) * 2:
        if fake:
            with FakeTensorMode():
                assert isinstance(layer(torch.ones(3, 2)), FakeTensor)
        else:
            assert torch.equal(layer(torch.tensor([0.7, 3.0])), torch.tensor([0.5, 1.0]))


def test_what_is_no_layer_is_stored_as_it_is_and_named(tmp_path):
    x = torch.randn(4, 6, 8)
    model = frozen(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)), x, skip=["1"])
    record = export(model, tmp_path / "m.safetensors", format="packed")
    assert (
        record.float_layers["1"] == "kept in full precision (skip)"
        and "unrounded" in record.float_layers["0.self_attn.in_proj_weight"]
    )
    state = packed.read(record.path).state_dict()
    assert torch.equal(state["0.self_attn.in_proj_weight"], model[0].self_attn.in_proj_weight)


def test_timm_models_are_made_again_and_half_precision_stays(tmp_path):
    timm = pytest.importorskip("timm")
    import ldp_search.runner.models.cifar  # noqa: F401 (the import registers the names)

    x = torch.randn(2, 3, 16, 16)
    model = frozen(timm.create_model("cifar_resnet20", num_classes=4), x)
    export(model, tmp_path / "m.safetensors", format="packed")
    with torch.no_grad():
        assert torch.equal(packed.load(tmp_path / "m.safetensors")(x), model(x))
    half = frozen(nn.Sequential(nn.Linear(6, 4)).bfloat16(), torch.randn(4, 6).bfloat16(), bits=4)
    export(half, tmp_path / "h.safetensors", format="packed")
    value = packed.read(tmp_path / "h.safetensors").state_dict()["0.weight"]
    grid = controller(half).sites[0].weight_grid(half[0].weight.detach())
    assert value.dtype == torch.bfloat16 and torch.equal(value, rounded(half[0].weight.detach(), grid, torch.bfloat16))


def test_the_reader_is_one_file_that_needs_torch_alone(tmp_path):
    x, plain = torch.randn(4, 3, 9, 9), net()
    model = frozen(copy.deepcopy(plain), x, bits=4)
    export(model, tmp_path / "m.safetensors", format="packed")
    torch.save(x, tmp_path / "x.pt")
    program = f"""
import importlib.util, sys, torch
sys.modules["ldp_search"] = None  # an import of it would fail
spec = importlib.util.spec_from_file_location("packed", {str(Path(packed.__file__))!r})
packed = importlib.util.module_from_spec(spec); sys.modules["packed"] = packed; spec.loader.exec_module(packed)
state = packed.read("m.safetensors").state_dict()
torch.save({{k: v.clone() for k, v in state.items()}}, "state.pt")
assert not [name for name in sys.modules if name.startswith("ldp_search.")]
"""
    environment = os.environ | {"PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)
    found, expected = torch.load(tmp_path / "state.pt"), packed.read(tmp_path / "m.safetensors").state_dict()
    assert list(found) == list(expected) and all(torch.equal(found[k], expected[k]) for k in found)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    x = torch.randn(4, 3, 9, 9)
    return export(frozen(net(), x, bits=4), tmp_path / "m.safetensors", format="packed").path


def rewritten(path, change):
    """The file with its description or tensors changed."""
    with safe_open(path, "pt") as opened:
        description, stored = json.loads(opened.metadata()[packed.KEY]), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    change(description, stored)
    save_file(stored, path, metadata={packed.KEY: json.dumps(description)})


def test_files_that_are_not_whole_or_not_ours_are_refused_with_the_reason(file, tmp_path):
    data = file.read_bytes()
    for end in (3, 100, len(data) - 1):
        file.write_bytes(data[:end])
        with pytest.raises(ValueError, match="not a whole safetensors file.*cut short or changed"):
            packed.read(file)
    flipped = bytearray(data)
    flipped[-5] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(ValueError, match="its digest differs.*copy it again"):
        packed.read(file)
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="no packed model"):
        packed.read(file)
    with pytest.raises(FileNotFoundError, match="No packed model"):
        packed.read(tmp_path / "none.safetensors")


def test_changed_descriptions_and_other_versions_are_refused(file):
    def other_bits(description, stored):
        description["tensors"]["0.weight"]["bits"] = 3

    def newer(description, stored):
        description["version"] = 99

    def renamed(description, stored):
        stored["other"] = stored.pop("0.weight:codes")

    data = file.read_bytes()
    for change, reason in (
        (other_bits, "digest differs"),
        (renamed, "digest differs"),
        (newer, "format version 1; it is of 99"),
    ):
        file.write_bytes(data)
        rewritten(file, change)
        with pytest.raises(ValueError, match=reason):
            packed.load(file, net())


def test_models_that_do_not_fit_and_recipes_that_are_missing_are_refused(file):
    with pytest.raises(ValueError, match="these differ: .*'8.weight'"):
        packed.load(file, nn.Sequential(*net()[:8]))
    with pytest.raises(ValueError, match=r"does not say how its model is made .*load\(path, model\)"):
        packed.load(file)


def test_models_that_are_not_ready_are_refused_before_any_work(tmp_path):
    x, model, path = torch.randn(4, 3, 9, 9), net(), tmp_path / "m.safetensors"
    with pytest.raises(LookupError, match="ldp_search.apply"):
        export(model, path, format="packed")
    ldp_search.apply(model, example_inputs=x, policy="static")
    with pytest.raises(ValueError, match=r"call ldp.finalize\(loader\) first"):
        export(model, path, format="packed")
    controller(model).freeze()
    with pytest.raises(ValueError, match="none is known of 0, 3, 5, 8"):
        export(model, path, format="packed")
    with pytest.raises(ValueError, match="existing folder"):
        export(model, tmp_path / "nowhere" / "m.safetensors", format="packed")
    assert not list(tmp_path.iterdir())
