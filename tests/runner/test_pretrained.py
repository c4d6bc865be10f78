"""Saved models: bitwise the same when loaded, plain files for everyone else, and clear errors for what is not whole."""

import json
import os
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from breadth import breadth
from safetensors.torch import load_file
from torch import nn

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401 (the import registers the names)
from ldp_search import controller, load_pretrained, save_pretrained
from ldp_search.runner.pretrained.recipe import recipe

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 40, (6, 9), generator=torch.Generator().manual_seed(0))


def train(model, inputs, steps: int = 3, total: int = 5, **space):
    """A few steps, so that bits, ranges and clips are no longer where they began."""
    ldp_search.apply(model, example_inputs=inputs, **(space or {"target_cost": 0.5}))
    ldp, optimizer = controller(model), torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    for step in range(steps):
        out = logits(model, inputs)
        F.cross_entropy(out, torch.arange(len(out)) % out.shape[1]).backward()
        ldp.step((step + 1) / total)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def logits(model, inputs):
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return out if isinstance(out, torch.Tensor) else out.logits.flatten(1)


def same(one, other, inputs) -> None:
    a, b = controller(one), controller(other)
    assert not other.training
    with torch.no_grad():
        assert torch.equal(logits(one, inputs), logits(other, inputs))
    assert (a.bits(), a.layers, a.cost(), a.coverage, a.frozen) == (b.bits(), b.layers, b.cost(), b.coverage, b.frozen)
    assert list(one.state_dict()) == list(other.state_dict())
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def net(width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )  # fmt: skip


def bert(**options):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        "bert", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        max_position_embeddings=16, num_labels=3, **options,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


def gpt2():
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **small))


@pytest.fixture
def saved(tmp_path):
    """A folder with a small model of one's own, and that model."""
    model = train(net(), IMAGES)
    return save_pretrained(model, tmp_path / "saved"), model


# -- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space",
    [
        {"target_cost": 0.5},
        {"space": "ldp_paper"},
        {"target_cost": 0.5, "relaxation": "interpolate"},
        {"policy": "static", "bits": 4, "weight_quantizer": "clip", "input_quantizer": "clip", "skip": ["fc"]},
    ],
    ids=["ldp", "paper", "interpolate", "static"],
)
@breadth("frozen", [False, True], always=[True])
def test_a_registered_cifar_model_comes_back_bitwise(tmp_path, space, frozen):
    model = train(timm.create_model("cifar_resnet20", num_classes=5), IMAGES, **space)
    if frozen:
        controller(model).finalize([(IMAGES,)])
        model.eval()
    state = torch.get_rng_state()
    loaded = load_pretrained(save_pretrained(model, tmp_path))
    assert torch.equal(state, torch.get_rng_state())  # saving during a training does not change it
    same(model, loaded, IMAGES)


@breadth(
    "name, options",
    [
        ("resnet18", {"in_chans": 3, "num_classes": 4, "drop_rate": 0.1}),
        ("mobilenetv3_small_050", {"num_classes": 4}),
        ("vit_tiny_patch16_224", {"img_size": 16, "num_classes": 4, "global_pool": "avg", "drop_path_rate": 0.1}),
        ("cifar_mobilenetv2", {"num_classes": 4}),
    ],
    always=1,
)
def test_timm_models_are_made_again_from_what_can_be_seen_in_them(tmp_path, name, options):
    model = train(timm.create_model(name, **options), IMAGES, steps=1)
    same(model, load_pretrained(save_pretrained(model, tmp_path)), IMAGES)


@breadth(
    "name",
    ["csatv2", "tresnet_m", "naflexvit_base_patch16_gap", "convnext_atto", "swin_tiny_patch4_window7_224"],
    always=["tresnet_m"],
)
@pytest.mark.filterwarnings("ignore:CSATv2")
def test_recipes_of_unusual_stems(name):
    if not timm.is_model(name):
        pytest.skip("this timm does not have it yet")
    found = recipe(timm.create_model(name, num_classes=7, in_chans=1))
    assert found["source"] == "timm" and found["kwargs"]["num_classes"] == 7, found.get("reason")


def test_a_plain_timm_model_loads_the_weights(tmp_path):
    model = train(timm.create_model("cifar_resnet20", num_classes=5), IMAGES)
    save_pretrained(model, tmp_path)
    plain = timm.create_model("cifar_resnet20", num_classes=5, checkpoint_path=str(tmp_path / "model.safetensors")).eval()
    with torch.no_grad(), controller(model).disabled():
        assert torch.equal(plain(IMAGES), model(IMAGES))


@pytest.mark.parametrize("options", [{}, {"attention": True}], ids=["layers", "attention"])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_transformers_models(tmp_path, make, options):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    model = train(make(), {"input_ids": TOKENS}, target_cost=0.5, **options)
    loaded = load_pretrained(save_pretrained(model, tmp_path))
    same(model, loaded, {"input_ids": TOKENS})
    if make is gpt2:
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
    auto = (AutoModelForCausalLM if make is gpt2 else AutoModelForSequenceClassification).from_pretrained(tmp_path)
    with torch.no_grad(), controller(model).disabled():
        assert torch.equal(logits(auto.eval(), {"input_ids": TOKENS}), logits(model, {"input_ids": TOKENS}))


def test_the_attention_that_was_chosen_comes_back(tmp_path):
    model = train(bert(attn_implementation="eager"), {"input_ids": TOKENS})
    loaded = load_pretrained(save_pretrained(model, tmp_path))
    assert loaded.config._attn_implementation == "eager"
    same(model, loaded, {"input_ids": TOKENS})


def test_a_model_of_ones_own_takes_weights_and_bits(saved):
    folder, model = saved
    same(model, load_pretrained(folder, net()), IMAGES)


def test_a_given_transformers_model_takes_weights_and_bits(tmp_path):
    model = train(gpt2(), {"input_ids": TOKENS})
    save_pretrained(model, tmp_path)
    given = gpt2()
    assert load_pretrained(tmp_path, given) is given
    same(model, given, {"input_ids": TOKENS})
    assert given.lm_head.weight is given.transformer.wte.weight


def test_tied_weights_of_a_plain_module(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        model[2].weight = model[0].weight
        return model

    x = torch.randn(4, 8)
    model = train(tied(), x)
    save_pretrained(model, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    same(model, load_pretrained(tmp_path, tied()), x)


def test_half_precision_weights_keep_their_type(tmp_path):
    x = IMAGES.bfloat16()
    model = timm.create_model("cifar_resnet20", num_classes=5).bfloat16()
    ldp_search.apply(model, example_inputs=x, policy="static", bits=6)
    loaded = load_pretrained(save_pretrained(model.eval(), tmp_path))
    assert loaded.fc.weight.dtype == torch.bfloat16
    same(model, loaded, x)


def test_a_loaded_model_saves_the_same_again_and_can_be_finalized(saved, tmp_path):
    folder, _ = saved
    loaded = load_pretrained(folder, net())
    again = save_pretrained(loaded, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    one, other = (json.loads((f / "ldp.json").read_text()) for f in (folder, again))
    assert one == other
    assert controller(loaded).finalize([(IMAGES,)]).layers == controller(loaded).bits()


def test_frozen_bits_do_not_need_their_policy(tmp_path):
    schedule = tmp_path / "schedule.csv"
    model = train(net(), IMAGES)
    controller(model).trajectory.save(schedule)
    model = train(ldp_search.remove(model), IMAGES, policy={"name": "replay", "path": str(schedule)})
    controller(model).finalize([(IMAGES,)])
    model.eval()
    folder = save_pretrained(model, tmp_path / "saved")
    os.remove(schedule)
    with pytest.warns(UserWarning, match="policy .* cannot be made here"):
        same(model, load_pretrained(folder, net()), IMAGES)


def test_saving_replaces_files_whole(saved, monkeypatch):
    folder, model = saved
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    with torch.no_grad():
        model[0].weight.add_(1)

    def fail(record):
        raise OSError("disk full")

    monkeypatch.setattr("ldp_search.runner.pretrained.save_load.to_text", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(model, folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


# -- recipes that do not work ----------------------------------------------------------------------------------------


def test_what_timm_was_given_can_be_said(tmp_path):
    model = train(timm.create_model("cifar_resnet20", num_classes=5, shortcut="A"), IMAGES)
    with pytest.warns(
        UserWarning, match=r"will need the model, since timm's cifar_resnet20 .* save_pretrained\(model, folder, create="
    ):
        save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match=r"does not say how to make its model .*load_pretrained\(folder, model=[^()]*\)\. W"):
        load_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_pretrained(model, tmp_path, create={"num_classes": 5, "shortcut": "A"})
    same(model, load_pretrained(tmp_path), IMAGES)


def test_another_activation_is_another_model(tmp_path):
    model = train(timm.create_model("resnet18", num_classes=4, act_layer=nn.SiLU), IMAGES, steps=1)
    with pytest.warns(UserWarning, match="SiLU"):
        save_pretrained(model, tmp_path)


def test_a_class_of_ones_own_on_top_of_transformers_needs_the_model(tmp_path):
    from transformers import BertForSequenceClassification

    class Mine(BertForSequenceClassification):
        pass

    model = train(Mine(bert().config), {"input_ids": TOKENS})
    save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="transformers has no class Mine of its own"):
        load_pretrained(tmp_path)
    same(model, load_pretrained(tmp_path, Mine(bert().config)), {"input_ids": TOKENS})


# -- errors ---------------------------------------------------------------------------------------------------------


def test_errors_of_saving(tmp_path):
    with pytest.raises(LookupError, match="ldp_search.apply"):
        save_pretrained(net(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="writes a folder, but .* is a file"):
        save_pretrained(train(net(), IMAGES), tmp_path / "file")


def test_missing_files(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(FileNotFoundError, match="No ldp.json in .*save_pretrained wrote"):
        load_pretrained(tmp_path / "nowhere")
    os.remove(folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        load_pretrained(folder, net())


def test_truncated_and_changed_weights(saved):
    folder, _ = saved
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=f"must have {len(content)} bytes; it has {len(content) - 10}"):
        load_pretrained(folder, net())
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="not the file that was saved with ldp.json"):
        load_pretrained(folder, net())


def test_truncated_and_incomplete_records(saved):
    folder, _ = saved
    path = folder / "ldp.json"
    content = path.read_text()
    path.write_text(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a whole record"):
        load_pretrained(folder, net())
    path.write_text(json.dumps({k: v for k, v in json.loads(content).items() if k != "state"}))
    with pytest.raises(ValueError, match=r"lacks \['state'\]"):
        load_pretrained(folder, net())


def test_another_format_version(saved):
    folder, _ = saved
    path = folder / "ldp.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 3; it is of 99, made with ldp_search"):
        load_pretrained(folder, net())


def test_no_model_given_and_another_model(saved):
    folder, model = saved
    with pytest.raises(ValueError, match="Sequential is neither timm's nor of transformers"):
        load_pretrained(folder)
    with pytest.raises(ValueError, match=r"is \(9,.*instead of \(6,"):
        load_pretrained(folder, net(9))
    with pytest.raises(ValueError, match=r"lacks \['5.bias', '5.weight'\]"):
        load_pretrained(folder, net()[:5])
    with pytest.raises(ValueError, match="search space already"):
        load_pretrained(folder, model)


def test_a_folder_of_an_earlier_format_is_the_same_model():
    """Format 2, with the words of then: survey, saved=half."""
    folder = Path(__file__).parents[1] / "data" / "pretrained_v1"
    expected = json.loads((folder / "expected.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody typed the old words
        model = load_pretrained(folder, net())
    ldp = controller(model)
    assert {name: list(bits) for name, bits in ldp.bits().items()} == expected["bits"]
    assert ldp.cost().relative == expected["relative_cost"] and ldp.space.activations == "16bit" and ldp.coverage.share == 1
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), torch.tensor(expected["logits"]))
