"""Data and models from the hub, as typed: a stand-in on localhost serves them in the hub's own protocol, or fails."""

import io
import json
import os
import subprocess
import sys
import time

import datasets
import huggingface_hub
import numpy as np
import pytest
import timm
import tiny
from hub_standin import hub
from PIL import Image as Pillow
from safetensors.torch import save

from ldp_search.run import main
from ldp_search.runner.io import hub_access
from ldp_search.runner.training import finish

CARD = """---
configs:
- config_name: {name}
  data_files:
  - split: train
    path: {name}/train-*
  - split: {evaluation}
    path: {name}/{evaluation}-*
---
"""


def parquet(rows: dict, features: datasets.Features) -> bytes:
    out = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(out)
    return out.getvalue()


def pictures(n: int) -> bytes:
    """Pictures whose class is their brightness, as the hub keeps CIFAR-10."""
    encoded, random = [], np.random.default_rng(n)
    for i in range(n):
        out = io.BytesIO()
        noise = random.integers(0, 8, (32, 32, 3))
        Pillow.fromarray((24 * (i % 10) + noise).astype(np.uint8)).save(out, "PNG")
        encoded.append({"bytes": out.getvalue(), "path": None})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    return parquet({"img": encoded, "label": [i % 10 for i in range(n)]}, features)


def started(tmp_path, address: str, *command: str) -> subprocess.CompletedProcess:
    """A command that a user types, in a process of its own."""
    environment = tiny.environment() | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment = {k: v for k, v in environment.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250)


def result_of(tmp_path) -> dict:
    (folder,) = (tmp_path / "runs").iterdir()
    return json.loads((folder / "result.json").read_text())


def test_pictures_and_a_timm_checkpoint(tmp_path, pointed_to, monkeypatch):
    monkeypatch.setattr(finish, "write_report_page", lambda output: None)
    with hub() as (address, repos):
        model = timm.create_model("test_resnet", num_classes=1000)
        repos["datasets/uoft-cs/cifar10"] = {
            "README.md": CARD.format(name="plain_text", evaluation="test").encode(),
            "plain_text/train-00000-of-00001.parquet": pictures(200),
            "plain_text/test-00000-of-00001.parquet": pictures(50),
        }
        repos["timm/test_resnet.r160_in1k"] = {
            "model.safetensors": save(model.state_dict()),
            "config.json": json.dumps({"architecture": "test_resnet", "pretrained_cfg": {}}).encode(),
        }
        pointed_to(address)
        words = "task=cifar10 model=timm:test_resnet pretrained=true epochs=1 batch_size=50 lr=0.01 milestones=[] trackers=none"
        assert main([*words.split(), f"output={tmp_path / 'runs' / 'one'}"]) == 0
    result = result_of(tmp_path)
    assert result["model"] == "timm:test_resnet" and result["steps"] == 4 and result["accuracy"] >= 0.1
    assert (tmp_path / "hub" / "models--timm--test_resnet.r160_in1k").is_dir()


@pytest.fixture
def pointed_to(monkeypatch, tmp_path):
    """A function that points the clients in this process to an address, with empty caches in the test's folder."""

    def point(address):
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("HF_ENDPOINT", address)
        for module in (datasets.config, huggingface_hub.constants):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        url = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + url[url.index("/{repo_id}") :])
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    return point


@pytest.fixture
def asked(monkeypatch, tmp_path, pointed_to):
    """A function that asks an address by running words; gives (message, seconds)."""

    def run(capsys, address, *words):
        pointed_to(address)
        monkeypatch.setattr(hub_access, "REACH_SECONDS", 1.0)
        start = time.monotonic()
        status = main([*words, f"output={tmp_path / 'run'}"])
        message = capsys.readouterr().err
        assert status == 2 and "Traceback" not in message and not (tmp_path / "run").exists()
        return message, time.monotonic() - start

    return run


FAILURES = {
    "slow": "does not answer within 1 s",
    "broken": "answers with HTTP 503",
    "hanging files": "does not answer within 1 s",
    "": "the hub does not have it (HTTP 404",
}


@pytest.mark.parametrize("mood", FAILURES)
@pytest.mark.parametrize("words, name", [("task=cifar10", "uoft-cs/cifar10"), ("model=vit pretrained=true", "vit")])
def test_a_hub_that_fails_is_one_message_in_seconds(mood, words, name, asked, capsys):
    with hub(mood) as (address, repos):
        if mood:
            repos["datasets/uoft-cs/cifar10"] = repos["google/vit-base-patch16-224-in21k"] = {"config.json": b"{}"}
        message, seconds = asked(capsys, address, *words.split())
    assert seconds < 8 and f"{name!r} cannot be had: " in message and FAILURES[mood] in message
    assert message.count("cannot be had") == 1 and "Three ways out:" in message and "cache" in message
    assert ("data=FOLDER" in message and "task=digits" in message) or ("hf:FOLDER" in message and "pretrained=false" in message)


def test_no_hub_at_all(asked, capsys):
    for words, part in (
        ("task=cifar10", "data set 'uoft-cs/cifar10'"),
        ("model=resnet18 pretrained=true", "model 'resnet18'"),
    ):
        message, seconds = asked(capsys, "http://127.0.0.1:9", *words.split())
        assert seconds < 6 and f"{part} cannot be had: the hub at http://127.0.0.1:9 cannot be reached" in message


def small_bert(folder) -> dict[str, bytes]:
    """The files of a BERT checkpoint with its tokenizer, as the hub has them."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "very", "not", "the"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertForPreTraining(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def sentences(n: int) -> bytes:
    rows = {
        "sentence": [f"a {'very ' * (i % 3)}{'good' if i % 2 else 'bad'} film" for i in range(n)],
        "label": [i % 2 for i in range(n)],
        "idx": list(range(n)),
    }
    label = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")})
    return parquet(rows, features)


@pytest.mark.slow(
    reason="as typed, through accelerate launch; pictures always come from the hub, text from files in test_text.py"
)
def test_glue_with_bert_exactly_as_typed(tmp_path):
    with hub() as (address, repos):
        repos["google-bert/bert-base-uncased"] = small_bert(tmp_path / "bert")
        repos["datasets/nyu-mll/glue"] = {
            "README.md": CARD.format(name="sst2", evaluation="validation").encode(),
            "sst2/train-00000-of-00001.parquet": sentences(128),
            "sst2/validation-00000-of-00001.parquet": sentences(40),
        }
        accelerate = os.path.join(os.path.dirname(sys.executable), "accelerate")
        done = started(tmp_path, address, accelerate, "launch", "-m", "ldp_search.run", "task=glue", "model=bert")
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path)
    assert (result["task"], result["model"], result["steps"]) == ("glue", "bert", 12)
    assert result["metric"] == "accuracy" and 0 <= result["accuracy"] <= 1 and result["coverage"] > 0.9
    (folder,) = (tmp_path / "runs").iterdir()
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder)("a good film")["input_ids"] == [2, 5, 6, 8, 3]
