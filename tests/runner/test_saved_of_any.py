"""Saved models: every tensor keeps its type, folders with other files in them, and all or nothing."""

import copy
import json
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file
from test_pretrained import IMAGES, TOKENS, bert, gpt2, logits, net, same, train
from torch import nn

import ldp_search
from ldp_search import controller, load_pretrained, save_pretrained

transformers = pytest.importorskip("transformers")
HALF, BRAIN = torch.float16, torch.bfloat16


def llama() -> nn.Module:
    config = transformers.AutoConfig.for_model(
        "llama", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        vocab_size=40, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


class Kept(nn.Module):
    """One's own model with a buffer that is in no file."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.register_buffer("scale", torch.full((8,), 1 / 3), persistent=False)

    def forward(self, x):
        return self.fc(x * self.scale)


def some(model: nn.Module, dtype, *parts: str) -> nn.Module:
    """The named parts of a model in another type, with casts where they are entered and left."""
    for part in parts:
        module = model.get_submodule(part).to(dtype)
        module.register_forward_pre_hook(lambda _, args, dtype=dtype: tuple(a.to(dtype) for a in args))
        module.register_forward_hook(lambda _, args, output, part=part: output if part == "lm_head" else output.to(BRAIN))
    return model


# -- types ----------------------------------------------------------------------------------------------------------

TYPES = {
    "llama in bf16, norm and head in fp32": lambda: some(llama().to(BRAIN), torch.float32, "model.norm", "lm_head"),
    "llama in bf16": lambda: llama().to(BRAIN),
    "bert in fp16": lambda: bert().to(HALF),
    "gpt2 in bf16, its head with it": lambda: gpt2().to(BRAIN),
    "llama in fp32, one layer in fp16": lambda: _cast(llama(), HALF, "model.layers.0.mlp.up_proj"),
    "bert in fp16, bf16 and fp32": lambda: _cast(_cast(bert(), HALF, "bert.encoder.layer.0"), BRAIN, "classifier"),
    "bert with fp64": lambda: _cast(bert(), torch.float64, "classifier"),
}


def _cast(model: nn.Module, dtype, part: str) -> nn.Module:
    model.get_submodule(part).to(dtype)
    return model


def types(model: nn.Module) -> dict:
    return {name: value.dtype for name, value in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("given", [False, True], ids=["made again", "given"])
@pytest.mark.parametrize("case", TYPES)
def test_every_tensor_keeps_its_type_and_value(tmp_path, case, given):
    model = TYPES[case]()
    ldp_search.apply(model, policy="static", bits=6)
    save_pretrained(model, tmp_path)
    other = {"llama": llama, "bert": bert, "gpt2": gpt2}[case.split()[0]]() if given else None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = load_pretrained(tmp_path, other)
    assert types(loaded) == types(model)
    values = dict([*loaded.named_parameters(), *loaded.named_buffers()])
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(value, values[name]), name


@pytest.mark.parametrize("case", list(TYPES)[:4])
def test_logits_of_mixed_types_come_back_bitwise(tmp_path, case):
    torch.manual_seed(0)
    model, inputs = TYPES[case]().eval(), {"input_ids": TOKENS}
    ldp_search.apply(model, example_inputs=inputs, policy="static", bits=6)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    if "norm and head" in case:  # what casts between them is the caller's, and in no folder
        some(loaded, torch.float32, "model.norm", "lm_head")
    with torch.no_grad():
        assert torch.equal(logits(model, inputs), logits(loaded, inputs))


def test_buffers_that_no_file_holds_keep_their_type(tmp_path):
    x = torch.randn(3, 8).to(BRAIN)
    model = ldp_search.apply(Kept().to(BRAIN), example_inputs=x, policy="static").eval()
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path, Kept())
    assert loaded.scale.dtype == BRAIN and torch.equal(loaded(x), model(x))


def test_a_folder_from_before_types_were_recorded_is_read(tmp_path):
    model = train(bert(), {"input_ids": TOKENS})
    save_pretrained(model, tmp_path)
    record = json.loads((tmp_path / "ldp.json").read_text())
    del record["model"]["dtype"], record["model"]["other_dtypes"]
    (tmp_path / "ldp.json").write_text(json.dumps(record))
    same(model, load_pretrained(tmp_path), {"input_ids": TOKENS})


# -- other files in the folder --------------------------------------------------------------------------------------


def _adapter(folder) -> None:
    peft = pytest.importorskip("peft")
    peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"])).save_pretrained(folder)


def _adapter_of_nothing(folder) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "nobody/nothing", "peft_type": "LORA"}))


def _shards(folder) -> None:
    bert().save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("before", [_adapter, _adapter_of_nothing, _shards])
def test_other_models_files_in_the_folder_are_read_past(tmp_path, before):
    before(tmp_path)
    model = train(bert(), {"input_ids": TOKENS})
    if before is _shards:
        save_pretrained(model, tmp_path)
    else:
        with pytest.warns(UserWarning, match=r"holds the adapter_config.json of another model.*Move it away, or save"):
            save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    same(model, loaded, {"input_ids": TOKENS})
    assert loaded.name_or_path == str(tmp_path)


def test_merged_adapters_come_back_from_the_folder_of_the_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    inputs = {"input_ids": TOKENS}
    adapted = peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    model = train(adapted.merge_and_unload().requires_grad_(), inputs)
    with pytest.warns(UserWarning, match="adapter_config.json"):
        save_pretrained(model, tmp_path)
    same(model, load_pretrained(tmp_path), inputs)


def test_a_configuration_of_another_model_is_named(tmp_path):
    bert().config.save_pretrained(tmp_path)
    model = train(net(), IMAGES)
    with pytest.warns(UserWarning, match="holds the config.json of another model"):
        save_pretrained(model, tmp_path)
    same(model, load_pretrained(tmp_path, net()), IMAGES)


def test_adapters_that_are_not_merged_are_said_at_saving_and_never_lost(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted():
        torch.manual_seed(1)
        return peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"], init_lora_weights=False)).base_model.model

    inputs = {"input_ids": TOKENS}
    model = train(adapted(), inputs, steps=1)
    with pytest.warns(UserWarning, match=r"will need the model, since .*another model \(.*lora_A.*adapters are merged"):
        save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match=r"does not say how to make its model .*load_pretrained\(folder, model="):
        load_pretrained(tmp_path)
    same(model, load_pretrained(tmp_path, adapted()), inputs)


# -- all or nothing -------------------------------------------------------------------------------------------------


def content(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def state_of(model: nn.Module) -> tuple:
    config = copy.deepcopy(getattr(model, "config", None) and model.config.to_dict())
    return {k: v.clone() for k, v in model.state_dict().items()}, types(model), config, model.training, type(model)


def unchanged(model: nn.Module, before: tuple) -> None:
    values, *rest = state_of(model)
    assert rest == list(before[1:]) and values.keys() == before[0].keys()
    assert all(torch.equal(v, before[0][k]) for k, v in values.items())


SAVING = [
    "save_load.recipe", "save_load.dtypes_of", "save_load.write_weights", "weights._check_whole", "save_load.fingerprint",
    "save_load.make_record", "save_load.to_text", "save_load.write_card", "card.make_card", "save_load.replace_together",
]  # fmt: skip


@pytest.mark.parametrize("step", SAVING)
def test_saving_that_stops_anywhere_leaves_folder_and_model_as_they_were(tmp_path, monkeypatch, step):
    model = train(bert(), {"input_ids": TOKENS}, steps=1)
    folder, new = tmp_path / "old", tmp_path / "deep" / "new"
    save_pretrained(model, folder)
    with torch.no_grad():
        model.classifier.weight.add_(1)
    files, before = content(folder), state_of(model)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt("stopped here")

    monkeypatch.setattr(f"ldp_search.runner.pretrained.{step}", stop)
    for place in (folder, new):
        with pytest.raises(KeyboardInterrupt, match="stopped here"):
            save_pretrained(model, place)
    assert content(folder) == files and not (tmp_path / "deep").exists()
    unchanged(model, before)


@pytest.mark.parametrize(("moved", "error"), list(enumerate([OSError, KeyboardInterrupt] * 2 + [OSError])))
def test_files_are_put_in_place_together(tmp_path, monkeypatch, moved, error):
    model = train(bert(), {"input_ids": TOKENS}, steps=1)
    save_pretrained(model, tmp_path / "saved")
    os.remove(tmp_path / "saved" / "schedule.png")  # one that was not there before
    files, replace, calls = content(tmp_path / "saved"), os.replace, []
    with torch.no_grad():
        model.classifier.weight.add_(1)

    def stop_once(source, target):
        replace(source, target)
        calls.append(target)
        if len(calls) == moved + 1:
            raise error("stopped here")

    monkeypatch.setattr("ldp_search.runner.io.atomic.os.replace", stop_once)
    with pytest.raises(error, match="stopped here"):
        save_pretrained(model, tmp_path / "saved")
    assert content(tmp_path / "saved") == files


LOADING = [
    "pretrained.save_load.check_weights", "pretrained.save_load.read_weights", "pretrained.save_load.check_fit",
    "pretrained.save_load.take_dtypes", "pretrained.save_load.take_weights", "pretrained.save_load.restore",
    "pretrained.ldp_json.apply", "pretrained.ldp_json.controller",
]  # fmt: skip


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", LOADING)
def test_loading_that_stops_anywhere_leaves_the_given_model_as_it_was(tmp_path, monkeypatch, step, late):
    save_pretrained(train(net().to(BRAIN), IMAGES.to(BRAIN), steps=1), tmp_path)
    given = net().train()
    before, module = state_of(given), __import__("importlib").import_module(f"ldp_search.runner.{step.rpartition('.')[0]}")
    own = getattr(module, step.rpartition(".")[2])

    def stop(*args, **kwargs):
        if late:
            own(*args, **kwargs)
        raise KeyboardInterrupt("stopped here")

    monkeypatch.setattr(module, step.rpartition(".")[2], stop)
    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        load_pretrained(tmp_path, given)
    unchanged(given, before)
    with pytest.raises(LookupError):
        controller(given)
    monkeypatch.undo()
    assert load_pretrained(tmp_path, given) is given


def test_a_record_of_other_layers_leaves_the_given_model_as_it_was(tmp_path):
    save_pretrained(train(net(), IMAGES, steps=1), tmp_path)
    record = json.loads((tmp_path / "ldp.json").read_text())
    record["layers"] = dict(reversed(record["layers"].items()))
    (tmp_path / "ldp.json").write_text(json.dumps(record))
    given = net().train()
    before = state_of(given)
    with pytest.raises(ValueError, match="must have the quantized layers of the record"):
        load_pretrained(tmp_path, given)
    unchanged(given, before)
    assert set(load_file(tmp_path / "model.safetensors")) == set(given.state_dict())


def test_a_model_that_is_a_search_space_stays_one(tmp_path):
    model = train(net(), IMAGES, steps=1)
    save_pretrained(model, tmp_path)
    before = controller(model)
    with pytest.raises(ValueError, match="search space already"):
        load_pretrained(tmp_path, model)
    assert controller(model) is before
