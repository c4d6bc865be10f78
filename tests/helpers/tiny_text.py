"""Small data sets of text in the hub's layout, made by the tests themselves, and the words of a run that takes a second."""

from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

from ldp_search.config.resolve import resolve
from ldp_search.runner.tasks import build_task

BERT = [f"model.{k}" for k in ("hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=32")]
GPT2 = ["model.n_embd=16", "model.n_layer=1", "model.n_head=2"]
SMALL = ["pretrained=false", "dataset.vocab_size=300", "epochs=1", "batch_size=8", "trackers=none", "lr=1e-3"]

GLUE = {
    "cola": (("sentence",), 2), "sst2": (("sentence",), 2), "mrpc": (("sentence1", "sentence2"), 2),
    "qqp": (("question1", "question2"), 2), "stsb": (("sentence1", "sentence2"), 1), "mnli": (("premise", "hypothesis"), 3),
    "qnli": (("question", "sentence"), 2), "rte": (("sentence1", "sentence2"), 2), "wnli": (("sentence1", "sentence2"), 2),
}  # fmt: skip
"""Columns and classes of the nine tasks, as the hub has them."""


def sentence(i: int) -> str:
    return " ".join(["a film", "so dull", "that nobody", "would ever", "watch it again"][: i % 5 + 1]) + f" {i}"


def write(folder: Path, splits: dict[str, dict], features: Features | None = None) -> Path:
    """{split: columns} as SPLIT-00000-of-00001.parquet; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, columns in splits.items():
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_glue(folder: Path, name: str, rows: int = 24) -> Path:
    """One of GLUE's tasks as FOLDER/NAME/SPLIT-...; labels of the test split are hidden, as they are on the hub."""
    columns, classes = GLUE[name]
    label = Value("float32") if classes == 1 else ClassLabel(names=[f"class {i}" for i in range(classes)])
    features = Features({c: Value("string") for c in columns} | {"label": label, "idx": Value("int32")})
    evaluated = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)

    def made(n: int, shift: int, hidden: bool = False) -> dict:
        labels = [(0.7 * i) % 5 if classes == 1 else (i * i + shift) % classes for i in range(n)]
        texts = {c: [sentence(i + k + shift) for i in range(n)] for k, c in enumerate(columns)}
        return texts | {"label": [-1] * n if hidden else labels, "idx": list(range(n))}

    splits = (
        {"train": made(rows, 0)} | {s: made(rows - 5 * k, k + 1) for k, s in enumerate(evaluated)} | {"test": made(4, 0, True)}
    )
    write(folder / name, splits, features)
    return folder


def make(*words: str):
    """(task, config) of the words."""
    settings = resolve(list(words))
    return build_task(settings.task, settings.config), settings.config
