"""Language modelling: blocks that lose nothing, masks, perplexity against a direct computation, and what can be wrong."""

import json
import math

import numpy as np
import pyarrow
import pytest
import torch
from breadth import breadth
from datasets import Dataset
from tiny_text import BERT, GPT2, SMALL, make
from transformers import AutoConfig, AutoTokenizer

import ldp_search
from ldp_search.run import main
from ldp_search.runner.data import source_text
from ldp_search.runner.data.masking import mask_tokens
from ldp_search.runner.data.subsets import spread
from ldp_search.runner.data.tokenized import Ragged
from ldp_search.runner.tasks.language import objective
from ldp_search.runner.training import finish
from ldp_search.runner.training.batches import eval_loader, train_loader

LINES = [
    " = A heading = \n",
    "",
    *(f" The {w} number {i} of a text that goes on . \n" for i in range(30) for w in ("red", "blue")),
]
LINES[5] = None  # a row without text is an empty line
WORDS = ["dataset.block=16", "eval_batch_size=3", *SMALL]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(finish, "write_report_page", lambda output: None)


@pytest.fixture
def folder(tmp_path):
    """Lines as WikiText has them, in the hub's layout."""
    for split, lines in (("train", LINES), ("validation", LINES[:21])):
        (tmp_path / "text").mkdir(exist_ok=True)
        Dataset.from_dict({"text": lines}).to_parquet(tmp_path / "text" / f"{split}-00000-of-00001.parquet")
    return f"data={tmp_path / 'text'}"


def stream_of(task, lines):
    """Tokens of the text, made in one go."""
    whole = "".join(line if (line or "").endswith("\n") else (line or "") + "\n" for line in lines)
    return task.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]


def test_ragged_columns_over_chunks():
    parts = [[[1, 2], []], [], [[3], [4, 5, 6]], [[7]]]
    chunks = [pyarrow.array(part, pyarrow.list_(pyarrow.int32())) for part in parts]
    column = Ragged(
        pyarrow.chunked_array([*chunks[:3], pyarrow.array([[0], [7], [0]], pyarrow.list_(pyarrow.int32())).slice(1, 1)])
    )
    rows = [row for part in parts for row in part]
    assert [column.row(i).tolist() for i in range(len(column))] == rows and column.total == 7 and column.sum() == 28
    for start in range(8):
        for stop in range(start, 8):
            assert column.span(start, stop).tolist() == list(range(1, 8))[start:stop]


# -- causal -----------------------------------------------------------------------------------------------------------


def test_blocks_by_hand(folder):
    """Every token of the evaluation text is predicted once; the first of a block from the last of the one before."""
    task, _ = make("task=text", folder, "model=gpt2", *WORDS)
    stream, start = stream_of(task, LINES[:21]), task.tokenizer.eos_token_id
    found = task.batch(torch.arange(task.eval_size), None)
    inputs, labels = ([start, *stream][:-1], stream)
    inputs, labels = (x + [fill] * (task.eval_size * 16 - len(stream)) for x, fill in ((inputs, None), (labels, -100)))
    assert task.eval_size == math.ceil(len(stream) / 16) and len(stream) % 16
    assert found["labels"].flatten().tolist() == labels
    real = [i for i, token in enumerate(inputs) if token is not None]
    assert found["input_ids"].flatten()[real].tolist() == [inputs[i] for i in real]
    whole = stream_of(task, LINES)
    assert task.train_size == len(whole) // 16
    assert task.batch(torch.tensor([2]), 0)["labels"][0].tolist() == whole[32:48]
    assert task.batch(torch.tensor([2]), 0)["input_ids"][0].tolist() == whole[31:47]


def test_perplexity_is_that_of_a_direct_computation(folder):
    task, config = make("task=text", folder, "model=gpt2", *WORDS)
    model = task.create_model({"name": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, False).eval()
    sums = None
    with torch.no_grad():
        for rank in range(2):
            for batch in eval_loader(task, config, rank, 2):
                found = task.measure(model, batch)[1]
                sums = found if sums is None else sums + found
        stream, total = [task.tokenizer.eos_token_id, *stream_of(task, LINES[:21])], 0.0
        for place in range(1, len(stream)):
            first = (place - 1) // 16 * 16
            context = torch.tensor([stream[first:place]])
            total -= model(context).logits[0, -1].log_softmax(-1)[stream[place]].item()
    words = sum(len((line or "").split()) + 1 for line in LINES[:21])  # one end of line a line
    found = task.metrics(sums.tolist())
    assert task.words == words
    assert found["loss"] == pytest.approx(total / (len(stream) - 1), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / (len(stream) - 1)), rel=1e-4)
    assert found["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-4)
    assert set(task.metrics(sums.tolist()[:2])) == {"loss", "perplexity"}  # of training batches
    assert task.metrics([1e6, 1.0])["perplexity"] == math.inf


def test_a_stream_is_as_long_as_its_rows(folder):
    words = ["task=text", folder, "model=gpt2", *WORDS, "limit=40", "eval_limit=10"]
    task, _ = make(*words, "dataset.streaming=true")
    whole = [len(stream_of(task, lines)) for lines in (LINES[:40], LINES[:10])]
    assert (task.train_size, task.eval_size) == (whole[0] // 16, -(-whole[1] // 16))
    assert make(*words)[0].train_size == 40  # else they are blocks


def test_documents_end(tmp_path):
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": f"document {i} " * 9}) + "\n" for i in range(40)))
    task, _ = make("task=text", f"data={tmp_path / 'own.jsonl'}", "dataset.documents=true", "model=gpt2", *WORDS)
    end, tokens = task.tokenizer.eos_token_id, task.streams[1].span(0, task.streams[1].total)
    assert (tokens == end).sum() == 2 and tokens[-1] == end  # a twentieth of the rows
    text = task.tokenizer.decode(tokens)
    assert text == "".join(f"document {i} " * 9 + "\n<|endoftext|>" for i in spread(40, 0.05)[1])
    task, _ = make("task=text", f"data={tmp_path / 'own.jsonl'}", "model=gpt2", *WORDS)
    text = task.tokenizer.decode(task.streams[1].span(0, task.streams[1].total))
    assert text == "".join(f"document {i} " * 9 + "\n" for i in (38, 39))  # of a running text, the end
    assert any("2 of the 40 rows of split 'train', the last ones" in note for note in task.notes)


@pytest.mark.parametrize("model", ["gpt2", "bert"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_where_they_begin(workers, model, folder):
    task, config = make("task=text", folder, f"model={model}", *WORDS)
    plain = list(train_loader(task, config, 0, 9, 0, 1))
    config.data_workers = workers
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = list(train_loader(task, config, 3, 9, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(plain[3:], again, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- masked -----------------------------------------------------------------------------------------------------------


def test_rates_of_masks():
    ids = torch.arange(10, 110).repeat(1000, 1)
    may = torch.ones_like(ids, dtype=torch.bool)
    may[:, :20] = False
    indices = torch.arange(1000)
    inputs, labels = mask_tokens(ids, may, indices, 1, 4, mask=4, vocabulary=10_000)
    hidden = labels != -100
    assert torch.equal(labels[hidden], ids[hidden]) and torch.equal(inputs[~hidden], ids[~hidden]) and not hidden[:, :20].any()
    assert hidden[:, 20:].float().mean().item() == pytest.approx(0.15, abs=0.005)
    masked, kept = inputs[hidden] == 4, inputs[hidden] == ids[hidden]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.01)
    others = inputs[hidden][~masked & ~kept].float()
    assert others.mean().item() == pytest.approx(5000, rel=0.05) and others.max() < 10_000
    some = mask_tokens(ids[5:9], may[5:9], indices[5:9], 1, 4, mask=4, vocabulary=10_000)
    assert torch.equal(some[0], inputs[5:9]) and torch.equal(some[1], labels[5:9])  # of the index, not of the batch
    for seed, epoch in ((2, 4), (1, 5)):
        assert not torch.equal(mask_tokens(ids, may, indices, seed, epoch, 4, 10_000)[1], labels)
    fixed = [mask_tokens(ids, may, indices, seed, None, 4, 10_000)[1] for seed in (1, 2)]
    assert torch.equal(*fixed) and not torch.equal(fixed[0], labels)


def test_masked_blocks_by_hand(folder):
    task, _ = make("task=text", folder, "model=bert", *WORDS)
    tokens = np.array(stream_of(task, LINES[:21]))
    batch, t = task.batch(torch.arange(task.eval_size), None), task.tokenizer
    ids = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    rows = [[t.cls_token_id, *tokens[i : i + 14], t.sep_token_id] for i in range(0, len(tokens), 14)]
    assert [row[: len(want)] for row, want in zip(ids.tolist(), rows, strict=True)] == rows
    assert batch["attention_mask"].sum(1).tolist() == [len(row) for row in rows] and len(rows[-1]) < 16
    assert (ids[-1, len(rows[-1]) :] == t.pad_token_id).all()
    first, second = (task.batch(torch.arange(4), epoch)["input_ids"] for epoch in (0, 1))
    assert not torch.equal(first, second)


# -- objectives, runs, messages ---------------------------------------------------------------------------------------


def test_the_objective_follows_from_the_model():
    for name, kind in (
        ("gpt2", "causal"),
        ("llama", "causal"),
        ("bert", "masked"),
        ("roberta", "masked"),
        ("deberta-v2", "masked"),
    ):
        assert objective("auto", AutoConfig.for_model(name)) == kind
    decoder = AutoConfig.for_model("bert", architectures=["BertLMHeadModel"])
    assert (
        objective("auto", decoder) == "causal"
        and objective("masked", decoder) == "masked"
        and objective("auto", None) == "causal"
    )


@breadth("model, more", [("gpt2", GPT2), ("bert", BERT), ("bert", [*BERT, "dataset.objective=causal"])], always=2)
def test_a_run(model, more, folder, tmp_path):
    words = ["task=text", folder, f"model={model}", *WORDS, *more, "limit=32", f"output={tmp_path / 'run'}", "data_workers=1"]
    assert main(words) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metric"] == "perplexity" and result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["split"] == "final" and ("word_perplexity" in rows[-1]) == (model == "gpt2" or len(more) > len(BERT))
    saved, tokenizer = ldp_search.load_pretrained(tmp_path / "run"), AutoTokenizer.from_pretrained(tmp_path / "run")
    assert saved.config.vocab_size == len(tokenizer) and saved.config.pad_token_id == tokenizer.pad_token_id
    task, _ = make(*words)
    batch = task.batch(torch.arange(task.eval_size), None)
    task._takes = {"input_ids", "attention_mask"}
    with torch.no_grad():
        assert task.measure(saved, batch)[0].item() == pytest.approx(result["loss"], rel=2e-3)
    if len(more) > len(BERT):  # an encoder that must not look ahead
        ids = batch["input_ids"][:1]
        with torch.no_grad(), ldp_search.controller(saved).disabled():
            one, other = (saved(x).logits[0, :8] for x in (ids, torch.cat([ids[:, :8], ids[:, 8:].flip(1)], 1)))
        assert torch.allclose(one, other, atol=1e-5)


def test_messages(folder, tmp_path, capsys):
    def refused(*words):
        assert main([*WORDS, "task=text", folder, "model=gpt2", f"output={tmp_path / 'run'}", *words]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err and not (tmp_path / "run").exists()
        return err

    message = refused("model.n_positions=8", *GPT2)
    assert "block must be at most the 8 positions that the model has; received 16" in message and "dataset.block=8" in message
    message = refused("dataset.block=4096")
    assert "split train must fill a block of 4096 tokens; it has" in message and "dataset.block=N" in message
    assert "`objective` must be one of auto, causal, masked; received 'maskd'" in refused("dataset.objective=maskd")
    assert "takes no models of timm" in refused("model=resnet18")


def test_the_embedded_corpus():
    one, other = source_text.corpus(), source_text.corpus()
    assert one["train"][:] == other["train"][:]
    assert sum(map(len, one["train"]["text"])) > 2e6 and sum(map(len, one["validation"]["text"])) > 2e5
    assert not set(one["train"]["text"][:]) & set(one["validation"]["text"][:])
