"""Model cards, and the Hugging Face hub: pushed to and loaded from a stand-in on localhost."""

import json

import pytest
import timm
import torch
from hub_standin import hub
from test_pretrained import IMAGES, TOKENS, bert, net, same, train

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401 (the import registers the names)
from ldp_search import controller, load_pretrained, push_to_hub, save_pretrained
from ldp_search.runner.pretrained.card import BEGIN, END

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def remote(monkeypatch, tmp_path):
    """The repositories of a hub that is there, with a token that may write."""
    with hub() as (address, repos):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "good")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield repos


# -- the card -------------------------------------------------------------------------------------------------------


def test_a_card_tells_what_was_learned(tmp_path, monkeypatch):
    monkeypatch.undo()  # the picture is drawn
    model = train(bert(), {"input_ids": TOKENS}, steps=5)
    ldp = controller(model)
    ldp.finalize()
    save_pretrained(model, tmp_path / "small-bert")
    card, cost = huggingface_hub.ModelCard.load(tmp_path / "small-bert" / "README.md"), ldp.cost()
    assert card.data.library_name == "transformers" and "ldp_search" in card.data.tags
    text = card.text
    assert "# small-bert" in text and "14 quantized layers were learned" in text and "They are final." in text
    assert "to a training cost of 0.5" in text
    assert (
        f"| training cost | {cost.mean_relative:.3f} |" in text
        and f"| inference cost | {cost.relative_inference:.3f} |" in text
    )
    assert f"| weights | {cost.weight_mib:.3f} MiB |" in text and f"| coverage | {ldp.coverage.share:.1%} |" in text
    for name, bits in ldp.bits().items():
        assert f"| `{name}` | Linear | {ldp.layers[name].macs:,} | {bits.weight} | {bits.input} | {bits.grad} |" in text
    assert "<details>" not in text and 'load_pretrained("small-bert")' in text
    assert "BertForSequenceClassification.from_pretrained" in text
    assert "![Bits of every layer over the training](schedule.png)" in text
    assert (tmp_path / "small-bert" / "schedule.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_table_is_folded_and_what_is_left_out_is_named(tmp_path):
    model = timm.create_model("resnet18", num_classes=3)
    ldp_search.apply(model, example_inputs=IMAGES, policy="cyclic", skip=["fc", "conv1"])
    save_pretrained(model, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "were set by the policy `cyclic`" in text and "bits are not frozen" in text
    assert "Not quantized: `conv1` (" in text and "kept in full precision (skip)" in text
    assert "schedule.png" not in text and not (tmp_path / "schedule.png").exists()  # nothing was trained
    assert "timm.create_model" in text
    model = timm.create_model("cifar_resnet32", num_classes=3)
    save_pretrained(ldp_search.apply(model, example_inputs=IMAGES), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert f"<summary>All {len(controller(model).layers)} layers</summary>" in text


def test_a_model_of_ones_own_and_uncounted_costs(tmp_path):
    save_pretrained(ldp_search.apply(net(), target_cost=0.5), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "library_name: ldp_search" in text and "model=your_model" in text and "Costs are not known" in text


def test_the_readme_of_a_user_stays(tmp_path):
    model = train(net(), IMAGES)
    (tmp_path / "README.md").write_text("My own words.\n")
    with pytest.warns(UserWarning, match="was not written by save_pretrained and stays as it is"):
        save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "My own words.\n"
    (tmp_path / "README.md").write_text(f"My own words.\n\n{BEGIN}\n{END}\n\nMore of them.\n")
    save_pretrained(model, tmp_path)
    save_pretrained(model, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"My own words.\n\n{BEGIN}\n") and text.endswith(f"{END}\n\nMore of them.\n")
    assert text.count("## Allocation") == 1 and text.count(BEGIN) == 1
    assert "| weight bits | input bits | gradient bits, dL/dx | gradient bits, dL/dw |\n|---|---|--:|--:|--:|--:|--:|\n" in text
    dashes = ["-", *(f"{bits.grad}" for bits in list(controller(model).bits().values())[1:])]  # nobody computes the first dL/dx
    for dx, (name, bits) in zip(dashes, controller(model).bits().items(), strict=True):
        assert (
            f" | {controller(model).layers[name].macs:,} | {bits.weight} | {bits.input} | {dx} | {bits.weight_grad} |" in text
        )


def test_a_picture_that_fails_costs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("ldp_search.runner.report.heatmap.schedule_figure", None)
    with pytest.warns(UserWarning, match="could not be drawn"):
        save_pretrained(train(net(), IMAGES), tmp_path)
    assert "schedule.png" not in (tmp_path / "README.md").read_text() and (tmp_path / "ldp.json").is_file()


# -- the hub --------------------------------------------------------------------------------------------------------


def test_pushed_and_loaded_again(tmp_path, remote):
    model = train(bert(), {"input_ids": TOKENS})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    (tmp_path / "out" / "secret.txt").write_text("not asked for")
    save_pretrained(model, tmp_path / "out", push_to_hub=True, repo_id="me/small-bert")
    assert set(remote["me/small-bert"]) == {
        "model.safetensors", "config.json", "ldp.json", "README.md", "schedule.png", "tokenizer.json"
    }  # fmt: skip
    assert b'load_pretrained("me/small-bert")' in remote["me/small-bert"]["README.md"]
    same(model, load_pretrained("me/small-bert"), {"input_ids": TOKENS})
    same(model, load_pretrained("me/small-bert", revision="main"), {"input_ids": TOKENS})


def test_a_model_or_its_folder_is_pushed(tmp_path, remote):
    model = train(net(), IMAGES)
    assert push_to_hub(model, "me/net", private=True, commit_message="mine").endswith(
        "/me/net/commit/" + "0123456789abcdef" * 2 + "01234567"
    )
    pushed = dict(remote["me/net"])
    push_to_hub(save_pretrained(model, tmp_path / "net"), "me/again")
    assert remote["me/again"]["model.safetensors"] == pushed["model.safetensors"]
    assert json.loads(remote["me/again"]["ldp.json"]) == json.loads(pushed["ldp.json"])


def test_a_remote_readme_of_the_user_stays(tmp_path, remote):
    remote["me/net"] = {"README.md": b"My own words."}
    push_to_hub(train(net(), IMAGES), "me/net")
    assert remote["me/net"]["README.md"] == b"My own words." and "ldp.json" in remote["me/net"]
    remote["me/net"]["README.md"] = f"Mine. {BEGIN} old {END} Mine too.".encode()
    push_to_hub(train(net(), IMAGES), "me/net")
    text = remote["me/net"]["README.md"].decode()
    assert text.startswith(f"Mine. {BEGIN}\n") and text.endswith(f"{END} Mine too.") and "## Allocation" in text


def test_without_hub_or_token_the_folder_is_saved_first(tmp_path, remote, monkeypatch):
    model = train(net(), IMAGES)
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(OSError, match=r"Pushing to me/net failed: .*401[\s\S]*is saved in .*push_to_hub\('.*a', 'me/net'\)"):
        save_pretrained(model, tmp_path / "a", push_to_hub=True, repo_id="me/net")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(OSError, match="token that may write is needed .*hf auth login"):
        save_pretrained(model, tmp_path / "b", push_to_hub=True, repo_id="me/net")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="hub must be reached .*is saved in") as caught:
        push_to_hub(model, "me/net")
    with pytest.raises(OSError, match="hub must be reached"):
        save_pretrained(model, tmp_path / "c", push_to_hub=True)
    for name in "abc":
        same(model, load_pretrained(tmp_path / name, net()), IMAGES)
    saved = str(caught.value).partition("is saved in ")[2].partition(";")[0]
    same(model, load_pretrained(saved, net()), IMAGES)
    assert not remote.get("me/net")


def test_errors_of_loading_and_of_options(tmp_path, remote, monkeypatch):
    with pytest.raises(FileNotFoundError, match="me/typo must be a folder .* or a repository of the hub"):
        load_pretrained("me/typo")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="the hub cannot be reached, and its cache has it not"):
        load_pretrained("me/typo")
    with pytest.raises(TypeError, match=r"takes \['token'\] only with push_to_hub=True"):
        save_pretrained(ldp_search.apply(net()), tmp_path, token="x")
    with pytest.raises(FileNotFoundError, match="No ldp.json"):
        push_to_hub(tmp_path, "me/net")
    with pytest.raises(LookupError, match="ldp_search.apply"):
        push_to_hub(net(), "me/net")


# -- sharded models -------------------------------------------------------------------------------------------------


def test_a_state_dict_of_whole_tensors_is_taken(tmp_path):
    model = train(bert(), {"input_ids": TOKENS})
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.classifier.weight.zero_()
    save_pretrained(model, tmp_path, state_dict=state)
    assert torch.equal(load_pretrained(tmp_path).classifier.weight, state["classifier.weight"])
    with pytest.raises(ValueError, match="state_dict must have the names of the model's own"):
        save_pretrained(model, tmp_path, state_dict={"module." + name: value for name, value in state.items()})
