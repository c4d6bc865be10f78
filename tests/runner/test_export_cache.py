"""Causal language models with their cache in the file: texts read in pieces give what they give at once, and go on the same."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_export import bert, export, frozen, onnx, ort
from torch import nn

import ldp_search
from ldp_search.export import main
from ldp_search.runner.exports import peers
from ldp_search.runner.exports.onnx_model import OnnxModel
from ldp_search.runner.onnx.check import difference

cache = pytest.importorskip("ldp_search.runner.onnx.cache")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WORDS, TOKENS = 40, 12
ENDS = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.2}


def gpt2(**sizes) -> nn.Module:
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": WORDS, "n_positions": 32} | sizes
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**small, **ENDS))


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=WORDS, **sizes, **heads, **ENDS))


def texts(rows: int, length: int = TOKENS, mask: bool = False) -> dict:
    ids = torch.randint(1, WORDS, (rows, length), generator=torch.Generator().manual_seed(rows))
    return {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if mask else {})


class File:
    """A file with a cache, and the model that it came from."""

    def __init__(self, make, folder, mask: bool, **options):
        torch.manual_seed(0)
        self.mask = mask
        self.model = frozen(make(), texts(4, mask=mask), bits=8)
        self.record = export(self.model, folder / "m.onnx", texts(4, mask=mask), cache=True, **options)
        self.session = ort.InferenceSession(str(self.record.path), providers=["CPUExecutionProvider"])
        self.past = {i.name: i.shape for i in self.session.get_inputs() if i.name.startswith("past_key_values.")}

    def read(self, ids: np.ndarray, mask: np.ndarray, pieces: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
        """(logits of all tokens, keys and values) when the texts are read in pieces of these lengths."""
        past = {name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32) for name, shape in self.past.items()}
        logits, start = [], 0
        for piece in pieces:
            now = {"input_ids": ids[:, start : start + piece]}
            now |= {"attention_mask": mask[:, : start + piece]} if self.mask else {}
            found, *present = self.session.run(None, now | past)
            logits.append(found)
            past, start = dict(zip(past, present, strict=True)), start + piece
        return np.concatenate(logits, 1), list(past.values())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> File, made once whatever the order of the tests."""

    @functools.cache
    def made(name: str) -> File:
        mask = name != "gpt2"
        return File(llama if mask else gpt2, tmp_path_factory.mktemp("files"), mask)

    return made


@pytest.fixture(params=["gpt2", "llama, with a mask"])
def file(request, files) -> File:
    return files(request.param)


# -- what is in the file ------------------------------------------------------------------------------------------------


def test_the_names_are_those_that_other_tools_read(file):
    total = "past_sequence + sequence"
    heads = [2, "past_sequence", 4 if file.mask else 8]
    inputs = {"input_ids": ["batch", "sequence"]} | ({"attention_mask": ["batch", total]} if file.mask else {})
    names = [f"{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    inputs |= {f"past_key_values.{name}": ["batch", *heads] for name in names}
    outputs = {"logits": ["batch", "sequence", WORDS]} | {f"present.{n}": ["batch", 2, total, heads[2]] for n in names}
    assert {i.name: i.shape for i in file.session.get_inputs()} == inputs
    assert {o.name: o.shape for o in file.session.get_outputs()} == outputs
    assert {v.type for v in [*file.session.get_inputs()[-4:], *file.session.get_outputs()]} == {"tensor(float)"}


def test_it_computes_as_the_model_both_ways(file):
    record = file.record
    assert record.cached_layers == 2 and record.free_batch and record.free_length and not record.float_layers
    assert record.max_error < 1e-5 < record.own_error and record.same_tokens == 1
    assert file.model.config.use_cache  # as before


@pytest.mark.parametrize("file", ["gpt2"], indirect=True)
def test_the_layers_are_integers_as_in_the_file_without(tmp_path, file):
    plain = export(file.model, tmp_path / "plain.onnx", texts(4))
    assert plain.integer_layers == file.record.integer_layers and plain.kernels == file.record.kernels
    assert not plain.cached_layers and plain.same_tokens is None
    for a, b in zip(*(codes(record.path) for record in (plain, file.record)), strict=True):
        assert a == b


def codes(path) -> list:
    """(name, bytes) of the integer constants and their scales."""
    stored = sorted(onnx.load(path).graph.initializer, key=lambda value: value.name)
    return [(i.name, onnx.numpy_helper.to_array(i).tobytes()) for i in stored if i.name.endswith((".codes", ".scale"))]


@pytest.mark.parametrize("file", ["llama, with a mask"], indirect=True)
def test_short_ids_and_masks_of_truth_values_become_what_runtimes_feed(tmp_path, monkeypatch, file):
    given = texts(4, mask=True)
    kept, short = [], {"input_ids": given["input_ids"].int(), "attention_mask": given["attention_mask"].bool()}
    monkeypatch.setattr(cache, "graph", lambda model, shown: kept.append(shown) or stop())
    with pytest.raises(KeyboardInterrupt):
        export(file.model, tmp_path / "m.onnx", short, cache=True)
    assert {value.dtype for value in kept[0].feed.values()} == {np.dtype("int64"), np.dtype("float32")}
    called = OnnxModel(file.record.path)
    assert torch.equal(called(**short).logits, called(**given).logits)


def stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize("make", [gpt2, llama])
def test_texts_filled_up_on_the_right_are_those_of_the_model_without_a_cache(make):
    """At their own tokens; what is computed at the padding nobody reads."""
    torch.manual_seed(0)
    model, given = make().eval(), texts(3, mask=True)
    given["attention_mask"][0, 8:] = given["attention_mask"][1, 5:] = 0
    with torch.no_grad():
        plain = model(**given, use_cache=False).logits
        cached = cache.CachedModel(model)(given["input_ids"], given["attention_mask"], [])[0]
    own = given["attention_mask"].bool()
    assert torch.allclose(cached[own], plain[own], atol=1e-6) and not torch.allclose(cached[~own], plain[~own], atol=1e-6)


# -- one call, or many ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [0, 1, 7])
@pytest.mark.parametrize("rows", [1, 2])
def test_texts_read_in_pieces_are_those_read_at_once(file, rows, past):
    """Ranges of inputs are fixed, so a token is rounded alike whoever is beside it: what differs is the order of sums."""
    ids, mask = texts(rows)["input_ids"].numpy(), np.ones((rows, TOKENS), np.int64)
    whole, kept = file.read(ids, mask, [TOKENS])
    for rest in ([TOKENS - past], [1] * (TOKENS - past)):
        logits, present = file.read(ids, mask, [past, *rest] if past else rest)
        assert difference([logits, *present], [whole, *kept]) < 1e-5
    with torch.no_grad():
        given = {"attention_mask": torch.from_numpy(mask)} if file.mask else {}
        assert difference([whole], [file.model(torch.from_numpy(ids), **given).logits.numpy()]) < 1e-5


@pytest.mark.parametrize(
    ("file", "lengths"), [("gpt2", (5, 5)), ("llama, with a mask", (5, 5)), ("llama, with a mask", (7, 3))], indirect=["file"]
)
def test_it_writes_what_the_model_writes(file, lengths):
    """Texts of unequal length are filled up on the left, and positions follow from the mask."""
    longest = max(lengths)
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    ids = texts(2, longest)["input_ids"] * mask
    with torch.no_grad():
        given = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "use_cache": True}
        expected = file.model.generate(ids, **given).numpy()
    written, seen = ids.numpy(), mask.numpy()
    for _ in range(8):
        logits, _ = file.read(written, seen, [longest, *[1] * (written.shape[1] - longest)])
        written = np.concatenate([written, logits[:, -1].argmax(-1)[:, None]], 1)
        seen = np.concatenate([seen, np.ones_like(seen[:, :1])], 1)
    assert np.array_equal(written, expected) and len(np.unique(expected[:, longest:])) > 2


def test_a_process_with_onnxruntime_alone_writes_the_same(file):
    program = f"""
import sys
sys.modules["torch"] = sys.modules["ldp_search"] = None  # an import of them would fail
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(file.record.path)!r}, providers=["CPUExecutionProvider"])
shapes = {{i.name: i.shape for i in session.get_inputs()}}
past = {{n: np.zeros((1, s[1], 0, s[3]), np.float32) for n, s in shapes.items() if n.startswith("past")}}
ids = text = np.array([[3, 1, 4, 1, 5]])
for _ in range(6):
    mask = {{"attention_mask": np.ones_like(text)}} if "attention_mask" in shapes else {{}}
    logits, *present = session.run(None, {{"input_ids": ids}} | mask | past)
    past, ids = dict(zip(past, present)), logits[:, -1:].argmax(-1)
    text = np.concatenate([text, ids], 1)
print(text.tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        ids = torch.tensor([[3, 1, 4, 1, 5]])
        expected = file.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert json.loads(done.stdout) == expected.tolist()


@pytest.mark.slow(reason="nbits and cache are tested each by itself")
def test_packed_weights_have_a_cache_too(tmp_path):
    torch.manual_seed(0)
    model, inputs = gpt2(n_embd=128, n_layer=1), {"input_ids": torch.randint(0, WORDS, (1, 1))}  # one token is read twice
    frozen(model, inputs, input_bits=8, weight_bits=4, tie=False)
    record = export(model, tmp_path / "m.onnx", inputs, cache=True, nbits=True)
    assert len(record.nbits_layers) == 5 and record.kernels == {"MatMulNBits": 5} and record.cached_layers == 1
    assert record.max_error < 0.05 and record.same_tokens == 1


# -- pieces -----------------------------------------------------------------------------------------------------------------


def test_the_last_tokens_are_read_one_by_one():
    seen = []

    def run(feed):
        ids, past = feed["input_ids"], feed["past_key_values.0.key"]
        seen.append((ids[0].tolist(), past.shape[2], feed["attention_mask"].shape[1]))
        return [10.0 * ids[..., None], np.concatenate([past, ids[:, None, :, None]], 2)]

    ids = np.array([[5, 6, 7, 8, 9]])
    feed = {"input_ids": ids, "attention_mask": np.ones((1, 5)), "past_key_values.0.key": np.zeros((1, 1, 0, 1))}
    logits, key = cache.token_by_token(run, feed, last=2)
    assert seen == [([5, 6, 7], 0, 3), ([8], 3, 4), ([9], 4, 5)]
    assert logits.ravel().tolist() == [50, 60, 70, 80, 90] and key.ravel().tolist() == [5, 6, 7, 8, 9]
    seen.clear()
    cache.token_by_token(run, feed, last=9)
    assert [ids for ids, *_ in seen] == [[5], [6], [7], [8], [9]]


def test_the_share_of_equal_next_tokens():
    a = np.eye(4)[None]
    other = a[:, [1, 1, 2, 3]]
    assert cache.same_tokens(a, a, {}) == 1 and cache.same_tokens(other, a, {}) == 0.75
    assert cache.same_tokens(other, a, {"attention_mask": np.array([[0, 1, 1, 1]])}) == 1


@pytest.mark.slow(reason="two more exports of language models with a mask")
@pytest.mark.parametrize("file", ["llama, with a mask"], indirect=True)
def test_what_lies_at_padding_is_not_compared(tmp_path, file):
    """What a model computes there nobody reads, and it depends on how much is read at once."""
    padded = texts(4, mask=True)
    padded["attention_mask"][:2, :3] = 0
    record = export(file.model, tmp_path / "m.onnx", padded, cache=True)
    assert record.max_error < 1e-5 and record.same_tokens == 1


# -- the program ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow(reason="a whole run and its export; test_export_command exports a run of pictures")
def test_a_folder_of_a_language_model(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "model"
    ldp_search.save_pretrained(frozen(gpt2(n_layer=1), texts(4, mask=True), bits=8), folder)
    capsys.readouterr()
    words = [str(folder), "cache=true", "compare=false", "batch=1", "rounds=2", "samples=8"]
    assert main(words) == 0
    report = json.loads((folder / "export.json").read_text())
    found = {row["name"]: row for row in report["rows"]}
    assert found["ours, onnx"]["agreement"] > 0.95 and found[peers.BY_TOKEN]["agreement"] > 0.95
    assert report["files"]["onnx"]["cached_layers"] == 1 and peers.BY_TOKEN in capsys.readouterr().out
    good, plain = (folder / "model.onnx").read_bytes(), cache.token_by_token

    def forgetful(run, feed):
        return plain(lambda now: run(now | {k: v * 0 for k, v in now.items() if k.startswith("past")}), feed, last=28)

    monkeypatch.setattr(cache, "token_by_token", forgetful)  # a file that does not use what it has read
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "model.onnx was put aside" in err and "with its last tokens read one by one it predicts as" in err
    assert (folder / "model.onnx").read_bytes() == good


# -- refusals ---------------------------------------------------------------------------------------------------------------


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": WORDS}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def classifier() -> nn.Module:
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": WORDS, "n_positions": 32}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**small, **ENDS))


def mamba() -> nn.Module:
    sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "vocab_size": WORDS}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, **ENDS))


@pytest.mark.parametrize(
    ("make", "more", "why"),
    [
        (bert, {}, "that of BertForSequenceClassification takes none. Export without cache"),
        (t5, {"decoder_input_ids": 1}, "T5ForConditionalGeneration is an encoder-decoder, whose caches are not exported yet"),
        (classifier, {}, "of GPT2ForSequenceClassification its forward gives no logits, keys and values of every token"),
        (mamba, {}, "cache takes models that keep keys and values of every token; of MambaForCausalLM"),
        (gpt2, {"token_type_ids": 1}, r"Received .*'input_ids': \(4, 12\), 'token_type_ids': \(4, 12\)"),
    ],
    ids=["bert", "t5", "classifier", "mamba", "another input"],
)
def test_models_without_a_cache_are_refused(tmp_path, make, more, why):
    inputs = texts(4)
    inputs |= dict.fromkeys(more, inputs["input_ids"])
    model = frozen(make(), inputs, bits=8)
    with pytest.raises(ValueError, match=why):
        export(model, tmp_path / "m.onnx", inputs, cache=True)
    assert not list(tmp_path.iterdir())


def test_a_length_that_the_model_fixes_is_refused(tmp_path, monkeypatch):
    def fix(*args):
        raise RuntimeError("Constraints violated (past_sequence)!\nand so on")

    model = frozen(gpt2(), texts(4), bits=8)
    monkeypatch.setattr("ldp_search.runner.onnx.float_graph.traced", fix)
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel cannot be exported with its cache: Constraints violated \(past_seq"):
        export(model, tmp_path / "m.onnx", texts(4), cache=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["packed", "torch"])
def test_other_formats_do_not_have_it(tmp_path, format):
    model = frozen(nn.Sequential(nn.Linear(16, 8)), torch.randn(4, 16), bits=8)
    with pytest.raises(ValueError, match=f"cache belongs to format='onnx'; received format='{format}'. Leave cache out"):
        export(model, tmp_path / "m", torch.randn(4, 16), format=format, cache=True)
    assert not list(tmp_path.iterdir())
