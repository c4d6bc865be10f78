"""Text classification: GLUE's metrics, tokens and tokenizers, own files, and clear words on what is missing or broken."""

import json
import time

import numpy as np
import pytest
import torch
import transformers
from breadth import breadth
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tiny_text import BERT, GLUE, GPT2, SMALL, make, sentence, write, write_glue
from torch import nn

import ldp_search
from ldp_search.run import main
from ldp_search.runner.data import source_text, tokenizers
from ldp_search.runner.data.subsets import spread
from ldp_search.runner.data.tokenizers import identity, train_tokenizer
from ldp_search.runner.tasks import text
from ldp_search.runner.training import finish
from ldp_search.runner.training.batches import eval_loader, train_loader

OFFICIAL = {
    "cola": {"matthews": matthews_corrcoef},
    "mrpc": {"accuracy": accuracy_score, "f1": f1_score},
    "qqp": {"accuracy": accuracy_score, "f1": f1_score},
    "stsb": {"pearson": lambda a, b: pearsonr(a, b).statistic, "spearman": lambda a, b: spearmanr(a, b).statistic},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(finish, "write_report_page", lambda output: None)


def glue(tmp_path, name, *words):
    return make("task=glue", f"name={name}", f"data={write_glue(tmp_path / 'glue', name)}", "model=bert", *SMALL, *words)


def rows(tmp_path, texts, labels, name="data", **more):
    """A folder of `text` and `label`, the same rows for training and evaluation."""
    return write(tmp_path / name, {split: {"text": texts, "label": labels, **more} for split in ("train", "validation")})


class Says(nn.Module):
    """Gives the logits that it was made with, one call after the other, whatever it is asked."""

    def __init__(self, parts):
        super().__init__()
        self.parts = iter(parts)

    def forward(self, input_ids):
        return next(self.parts)


# -- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLUE)
def test_official_metrics_of_glue(name, tmp_path):
    """On random predictions, gathered over two processes in batches of seven, they are those of scikit-learn and SciPy."""
    task, config = glue(tmp_path, name, "eval_batch_size=7")
    classes, task._takes = GLUE[name][1], {"input_ids"}
    logits = torch.randn(task.eval_size, classes).round(decimals=1)  # with ties
    total = None
    for rank in range(2):
        batches = list(eval_loader(task, config, rank, 2))
        model = Says([logits[batch["index"]] for batch in batches])
        for batch in batches:
            sums = task.measure(model, batch)[1]
            total = sums if total is None else total + sums
    found, truth = task.metrics(total.tolist()), task.labels[1].numpy()
    said = logits[:, 0].numpy() if classes == 1 else logits.argmax(1).numpy()
    expected = {metric: function(truth, said) for metric, function in OFFICIAL.get(name, {}).items()}
    if name == "mnli":
        assert task.sizes == [24, 19]
        expected = {
            "accuracy": accuracy_score(truth[:24], said[:24]),
            "accuracy_mismatched": accuracy_score(truth[24:], said[24:]),
        }
    expected = expected or {"accuracy": accuracy_score(truth, said)}
    loss = (
        ((logits[:, 0] - task.labels[1]) ** 2).mean() if classes == 1 else nn.functional.cross_entropy(logits, task.labels[1])
    )
    assert {k: v for k, v in found.items() if k != "loss"} == pytest.approx(expected, abs=1e-6)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5) and task.metric == next(iter(expected))


def test_training_metrics_need_no_evaluation(tmp_path):
    for name, expected in (("mnli", {"loss", "accuracy"}), ("stsb", {"loss"})):
        task, _ = glue(tmp_path, name)
        task._takes = {"input_ids"}
        sums = task.measure(Says([torch.randn(4, GLUE[name][1])]), task.batch(torch.arange(4), 0))[1]
        assert set(task.metrics(sums.tolist())) == expected


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_batches_are_the_tokenizers_own(tmp_path):
    task, _ = glue(tmp_path, "mrpc", *BERT)
    task.create_model("bert", False)
    batch = task.batch(torch.tensor([0, 4, 7]), 0)
    pairs = [(sentence(i), sentence(i + 1)) for i in (0, 4, 7)]
    expected = task.tokenizer(pairs, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[key], expected[key]), key
    assert batch["labels"].tolist() == [i * i % 2 for i in (0, 4, 7)] and "index" not in batch
    assert task.batch(torch.tensor([2]), None)["index"].tolist() == [2]


def test_long_texts_are_cut_and_counted(tmp_path):
    texts = [("word " * n).strip() for n in (3, 6, 7, 30)]  # 14, 15 tokens and more with the ends
    where = f"data={rows(tmp_path, texts, [0, 1, 0, 1])}"
    task, _ = make("task=text_folder", where, "dataset.max_length=8", "model=bert", *SMALL)
    ids = task.batch(torch.arange(4), 0)["input_ids"]
    whole = [task.tokenizer(text)["input_ids"] for text in texts]
    assert ids.shape == (4, 8) and ids[3].tolist() == task.tokenizer(texts[3], truncation=True, max_length=8)["input_ids"]
    cut = sum(len(one) > 8 for one in whole)
    assert 0 < cut < 4
    assert f"cut to 8 tokens (dataset.max_length): {cut} of the 4 texts of split 'train'" in task.notes


def test_tokens_come_from_the_cache(tmp_path, monkeypatch):
    seen, real = [], text._encoder

    def watched(*options):
        encode = real(*options)
        return lambda found: seen.append(len(found["sentence1"])) or encode(found)

    monkeypatch.setattr(text, "_encoder", watched)
    words = ["task=glue", "name=rte", f"data={write_glue(tmp_path / 'glue', 'rte')}", "model=bert", *SMALL]
    tasks, most = [], []
    for more in ([], [], ["dataset.max_length=64"]):
        seen.clear()
        tasks.append(make(*words, *more)[0])
        most.append(max(seen))
    assert len(list((tmp_path / "cache" / "ldp_search").glob("*.json"))) == 1  # the tokenizer
    assert most == [24, 1, 24]  # from the cache, but for one row that tells the columns
    assert tasks[0].fingerprint == tasks[1].fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_where_they_begin(workers, tmp_path):
    task, config = glue(tmp_path, "mrpc")
    plain = list(train_loader(task, config, 0, 6, 0, 1))
    config.data_workers = workers
    again = list(train_loader(task, config, 2, 6, 0, 1))
    for one, other in zip(plain[2:], again, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["wordpiece", "roberta", "gpt"])
def test_tokenizers_trained_twice_are_equal(family, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "ALPHABET", 40)
    texts = [sentence(i) + " " + "".join(chr(0x4E00 + (i * 7 + k) % 90) for k in range(5)) for i in range(200)]
    one, other = (train_tokenizer(iter(texts), 400, family) for _ in range(2))
    assert identity(one) == identity(other) and 290 < len(one) <= 400
    tokenizers.save_tokenizer(one, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    probe = ["a film that nobody would Watch", "so dull"]
    assert loaded(*probe)["input_ids"] == one(*probe)["input_ids"] and loaded.pad_token_id == one.pad_token_id
    assert loaded.special_tokens_map == one.special_tokens_map
    if family != "wordpiece":
        assert one.decode(one(texts[3])["input_ids"], skip_special_tokens=True) == texts[3]


def test_the_tokenizer_that_is_given_and_that_of_a_folder(tmp_path):
    (tmp_path / "vocab").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "so", "dull", "##s"]
    (tmp_path / "vocab" / "vocab.txt").write_text("\n".join(words) + "\n")
    task, _ = glue(tmp_path, "sst2", f"tokenizer={tmp_path / 'vocab'}", *BERT)
    assert task.tokenizer("A films")["input_ids"] == [2, 5, 6, 9, 3]
    model = task.create_model({"name": "bert", "hidden_size": 16, "num_attention_heads": 2}, False)
    assert model.config.vocab_size == 10 and model.config.pad_token_id == 0 and model.config.num_labels == 2
    transformers.AutoConfig.for_model("bert").save_pretrained(tmp_path / "vocab")
    task, _ = make("task=glue", f"data={tmp_path / 'glue'}", f"model=hf:{tmp_path / 'vocab'}", *SMALL)
    assert len(task.tokenizer) == 10


def test_gpt2_without_a_token_to_pad_with(tmp_path):
    bare = train_tokenizer([sentence(i) for i in range(50)], 300, "gpt")
    transformers.PreTrainedTokenizerFast(tokenizer_object=bare.backend_tokenizer, eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "t"
    )
    task, _ = glue(tmp_path, "mrpc", f"tokenizer={tmp_path / 't'}", "model=gpt2")
    model = task.create_model(
        {"name": "gpt2"} | {word.split("=")[0][6:]: int(word.split("=")[1]) for word in GPT2}, False
    ).eval()
    assert task.tokenizer.pad_token == "<|endoftext|>" and model.config.pad_token_id == task.tokenizer.eos_token_id
    together, alone = task.batch(torch.arange(5), None), task.batch(torch.tensor([0]), None)
    assert together["input_ids"].shape[1] > alone["attention_mask"].sum()
    with torch.no_grad():
        assert torch.allclose(task._forward(model, together)[0], task._forward(model, alone)[0], atol=1e-5)
    assert task.tokenizer.eos_token_id in alone["input_ids"][0][: alone["attention_mask"].sum()]  # between the two texts


# -- models -----------------------------------------------------------------------------------------------------------

_DISTIL = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_LLAMA = _BERT | {"num_key_value_heads": 2}
_GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2}
SHRUNK = {"bert": _BERT, "bert-large": _BERT, "roberta": _BERT, "distilbert": _DISTIL, "deberta": _BERT, "gpt2": _GPT2,
          "distilgpt2": _GPT2, "llama-tiny": _LLAMA, "hf:electra": _BERT}  # fmt: skip


LANGUAGE = ("bert", "roberta", "distilbert", "deberta", "gpt2", "llama-tiny")


@breadth(
    "kind, name",
    [*(("text", name) for name in SHRUNK), *(("language", name) for name in LANGUAGE)],
    always=[("text", "distilbert"), ("text", "gpt2"), ("language", "roberta"), ("language", "llama-tiny")],
)
def test_every_alias_trains_a_step_from_scratch(kind, name, tmp_path):
    where = f"data={write_glue(tmp_path / 'glue', 'mrpc')}"
    words = {"text": ["task=glue", "name=mrpc", where], "language": ["task=text", f"{where}/mrpc", "dataset.text=sentence1",
             "dataset.block=16"]}[kind]  # fmt: skip
    task, config = make(*words, f"model={name}", *SMALL)
    model = task.create_model({"name": name} | SHRUNK[name], False)
    ldp_search.apply(model, example_inputs=task.example_inputs())
    assert ldp_search.controller(model).coverage.share > 0.5
    loss, _ = task.measure(model, task.batch(torch.arange(4), 0))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        model.eval()
        sums = task.measure(model, task.batch(torch.arange(2), None))[1]
    assert task.metrics(sums.tolist())[task.metric] is not None


# -- whole runs -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_and_its_tokenizer(tmp_path):
    folder = write_glue(tmp_path / "glue", "mrpc")
    words = ["task=glue", "name=mrpc", f"data={folder}", "model=bert", *SMALL, *BERT, f"output={tmp_path / 'run'}"]
    assert main(words) == 0
    model, tokenizer = (
        ldp_search.load_pretrained(tmp_path / "run"),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "run"),
    )
    held = Dataset.from_parquet(str(folder / "mrpc" / "validation-00000-of-00001.parquet"))
    with torch.no_grad():
        inputs = tokenizer(held["sentence1"][:], held["sentence2"][:], padding=True, pad_to_multiple_of=8, return_tensors="pt")
        said = model(**inputs).logits.argmax(1).numpy()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy"] == pytest.approx(accuracy_score(held["label"][:], said)) and result["metric"] == "accuracy"
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["class 0", "class 1"]
    assert model.config.id2label == {0: "class 0", 1: "class 1"}


def test_a_run_goes_on_where_it_stopped(tmp_path):
    words = ["task=glue", "name=stsb", f"data={write_glue(tmp_path / 'glue', 'stsb')}", "model=bert", *SMALL, *BERT]
    words += ["epochs=3", "checkpoint_every=4"]
    assert main([*words, f"output={tmp_path / 'whole'}"]) == 0
    from ldp_search.config.resolve import resolve
    from ldp_search.runner.training import loop
    from ldp_search.runner.training.setup import open_session
    from ldp_search.runner.training.stopping import StopRequest

    session, seen = open_session(resolve([*words, f"output={tmp_path / 'part'}"])), []

    def stop(row):
        seen.append(row)
        if len(seen) == 2:
            raise StopIteration

    with pytest.raises(StopIteration):
        loop.fit(session, StopRequest(), stop)
    session.journal.close()
    assert main([*words, f"output={tmp_path / 'part'}", "data_workers=1"]) == 0
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "part"))
    assert {k: one[k] for k in ("pearson", "loss", "mean_cost")} == {k: other[k] for k in ("pearson", "loss", "mean_cost")}


# -- own files, and what can be wrong with them -----------------------------------------------------------------------


def test_own_files_of_any_columns(tmp_path):
    table = [(sentence(i), ["bad", "fine", "good"][i % 3]) for i in range(30)]
    (tmp_path / "own.csv").write_text("review,verdict\n" + "".join(f"{text},{label}\n" for text, label in table))
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"review": t, "verdict": n}) + "\n" for t, n in table))
    words = ["task=text_folder", "dataset.text=review", "dataset.label=verdict", "model=bert", *SMALL]
    tasks = [make(*words, f"data={tmp_path / name}")[0] for name in ("own.csv", "own.jsonl")]
    for task in tasks:
        assert task.names == ["bad", "fine", "good"] and (task.train_size, task.eval_size) == (27, 3)
        assert task.labels[1].tolist() == [i % 3 for i in spread(30, 0.1)[1]]
        assert any("held out for evaluation: 3 of the 30 rows" in note for note in task.notes)
    assert torch.equal(tasks[0].batch(torch.arange(8), 0)["input_ids"], tasks[1].batch(torch.arange(8), 0)["input_ids"])


def test_streams_and_limits(tmp_path):
    folder = write_glue(tmp_path / "glue", "sst2")
    words = ["task=glue", f"data={folder}", "model=bert", "limit=9", "eval_limit=6", *SMALL]
    streamed, _ = make(*words, "dataset.streaming=true")
    assert (streamed.train_size, streamed.eval_size) == (9, 6) and streamed.labels[0].tolist() == [i * i % 2 for i in range(9)]
    some = [make(*words, f"seed={seed}")[0] for seed in (0, 0, 1)]
    assert some[0].fingerprint == some[1].fingerprint != some[2].fingerprint
    assert some[0].tokenizer_identity == some[2].tokenizer_identity  # the vocabulary is that of all training rows


def refused(capsys, tmp_path, *words):
    status = main([*SMALL, "model=bert", *words, f"output={tmp_path / 'run'}"])
    err = capsys.readouterr().err
    assert status == 2 and "Traceback" not in err and not (tmp_path / "run").exists(), err
    return err


def test_rows_that_cannot_be_used(tmp_path, capsys):
    texts, labels = [sentence(i) for i in range(12)], [i % 2 for i in range(12)]
    broken = rows(tmp_path, [*texts[:3], " ", None, *texts[5:]], [*labels[:8], -1, None, *labels[10:]])
    message = refused(capsys, tmp_path, "task=text_folder", f"data={broken}", "dataset.classes=2")
    assert "4 rows of split 'train' cannot be used" in message and "bad_rows=skip" in message
    for line in ("row 3: the text in column 'text' must not be empty; it is ' '", "row 4: the text in column 'text'",
                 "row 8: the label", "must be an integer from 0 to 1; it is -1", "row 9: the label", "it is None"):  # fmt: skip
        assert line in message
    task, _ = make("task=text_folder", f"data={broken}", "dataset.classes=2", "bad_rows=skip", "model=bert", *SMALL)
    assert task.labels[0].tolist() == [labels[i] for i in (0, 1, 2, 5, 6, 7, 10, 11)] and "left out: 4 rows" in task.notes[1]
    wanted = task.tokenizer(texts[5])["input_ids"]
    assert task.batch(torch.tensor([3]), 0)["input_ids"][0, : len(wanted)].tolist() == wanted
    scores = rows(tmp_path, texts, [*map(float, labels[:11]), None], "scores")
    message = refused(capsys, tmp_path, "task=text_folder", f"data={scores}", "dataset.classes=1")
    assert "row 11: the label in column 'label' must be a number; it is None" in message
    message = refused(capsys, tmp_path, "task=glue", f"data={write_glue(tmp_path / 'glue', 'sst2')}", "dataset.eval=test")
    assert "4 rows of split 'test' cannot be used" in message and "it is -1" in message


def test_messages(tmp_path, capsys):
    folder = write_glue(tmp_path / "glue", "sst2")
    words = ["task=glue", f"data={folder}"]
    message = refused(capsys, tmp_path, *words, *BERT, "model.max_position_embeddings=64")
    assert "max_length must be at most the 64 positions" in message and "dataset.max_length=64" in message
    assert "model.max_position_embeddings=128" in message
    status = main([*SMALL, "model=roberta", *words, "model.max_position_embeddings=64", f"output={tmp_path / 'run'}"])
    assert status == 2 and "at most the 62 positions" in capsys.readouterr().err  # its first two rows are not positions
    assert "label must be in a column called 'verdict'" in refused(capsys, tmp_path, *words, "dataset.label=verdict")
    assert "The column 'label' must hold text" in refused(capsys, tmp_path, *words, "dataset.text=label")
    assert "`metrics` of classes are accuracy, f1, matthews; received 'bleu'" in refused(
        capsys, tmp_path, *words, "dataset.metrics=bleu"
    )
    assert "vocab_size must leave room" in refused(capsys, tmp_path, *words, "dataset.vocab_size=100")
    assert "has no data set called 'mrcp'. Did you mean 'mrpc'?" in refused(capsys, tmp_path, *words, "name=mrcp")
    assert "received './nowhere'" in refused(capsys, tmp_path, *words, "tokenizer=./nowhere")
    status = main([*words, "model=resnet18", f"output={tmp_path / 'run'}"])
    assert status == 2 and "takes no models of timm; received 'resnet18'" in capsys.readouterr().err
    (tmp_path / "weights").mkdir()
    transformers.AutoConfig.for_model("bert").save_pretrained(tmp_path / "weights")
    status = main([*words, f"model=hf:{tmp_path / 'weights'}", f"output={tmp_path / 'run'}"])
    assert status == 2 and "need the tokenizer that they were trained with" in capsys.readouterr().err


def test_a_hub_out_of_reach(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", False)
    start = time.monotonic()
    assert main(["task=glue", "model=bert", f"output={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert (
        time.monotonic() - start < 15 and "'nyu-mll/glue' cannot be had: the hub at http://127.0.0.1:9 cannot be reached" in err
    )
    assert all(
        way in err for way in ("data=FOLDER", "load_dataset('nyu-mll/glue', 'sst2')", "task=stdlib_packages pretrained=false")
    )
    assert main(["task=glue", f"data={write_glue(tmp_path / 'glue', 'sst2')}", f"output={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert "The model 'bert' cannot be had" in err and "pretrained=false" in err and not (tmp_path / "run").exists()


def test_the_embedded_snippets():
    one, other = source_text.packages(), source_text.packages()
    assert one["train"][:] == other["train"][:]
    for split, least in (("train", 100), ("validation", 25)):
        counts = np.bincount(one[split]["label"][:])
        assert len(counts) == 10 and counts.min() >= least
        assert all(text.count("\n") == 7 for text in one[split]["text"][:50])
