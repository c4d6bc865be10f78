"""Text classification and regression: one text or two, with one label. GLUE's nine tasks are of this kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import models
from ..data import BadRows, Classes, DataError, first_rows, one_class_note, pick_column, pick_split, subset
from ..data.source_text import packages
from ..data.tokenized import Ragged, padded, tokenize
from . import metrics as measures
from .text_base import TextSource, TextTask, digest_of, one_direction

OF_CLASSES = {"accuracy": measures.accuracy, "f1": measures.f1, "matthews": measures.matthews}
OF_NUMBERS = {"pearson": measures.pearson, "spearman": measures.spearman}
OFFLINE = "task=stdlib_packages pretrained=false   the standard library's own source text, which every Python brings"


@dataclass
class TextData(TextSource):
    """`dataset:` of a task's file."""

    pair: list[str] = field(default_factory=list)  # column of the second text
    label: list[str] = field(default_factory=lambda: ["label", "labels"])
    classes: int = 0  # 0: as many as the data has; 1: the label is a number
    metrics: list[str] = field(default_factory=list)  # the first says how good a model is; by default accuracy or Pearson's
    also: dict[str, Any] = field(default_factory=dict)  # {name: split} evaluated besides, as metrics METRIC_name
    max_length: int = 128  # tokens; longer texts are cut

    def __post_init__(self):
        super().__post_init__()
        known = OF_NUMBERS if self.classes == 1 else OF_CLASSES
        self.metrics = self.metrics or list(known)[:1]
        if wrong := [name for name in self.metrics if name not in known]:
            raise DataError(
                f"`metrics` of {'numbers' if self.classes == 1 else 'classes'} are {', '.join(known)}; received {wrong[0]!r}."
            )
        if self.classes < 0 or self.max_length < 8:
            raise DataError(
                f"`classes` must be 0 or more and `max_length` 8 or more; received {self.classes}, {self.max_length}."
            )
        if self.classes == 1 and self.also:
            raise DataError("`also` is for classes; the label here is a number (classes: 1).")


class TextClassification(TextTask):
    Data = TextData
    offline = OFFLINE
    embedded = {"stdlib_packages": packages}

    def __init__(self, data: TextData, config: Any):
        super().__init__(data, config)
        self.metric, self.classes = data.metrics[0], Classes(data.classes)
        self.file = _single_file(data, config)
        self._find_tokenizer(config, *self._training_texts(config), not one_direction(self.configuration))
        self.columns: list[dict[str, Ragged]] = []
        labels = [self._read(data.train, "train", config.limit)]
        also, limit = list(data.also.values()), config.eval_limit
        share = limit and math.ceil(limit / (1 + len(also)))
        for names in (data.eval, *([str(name)] for name in also)):
            labels.append(self._read(names, "eval", share))
        self.names = self.classes.names or ["score"]
        if "f1" in data.metrics and len(self.names) != 2:
            raise DataError(f"The metric f1 is for two classes; the data has {len(self.names)}: dataset.metrics=[accuracy].")
        self.sizes = [len(found) for found in labels[1:]]  # of the sets that are evaluated, one after the other
        self.labels = labels[0], torch.cat(labels[1:])
        self.train_size, self.eval_size = (len(found) for found in self.labels)
        parts = [column for columns in self.columns for column in columns.values()]
        self.fingerprint = digest_of(*self.labels, *parts, self.tokenizer_identity)
        del self.splits

    # -- the data -----------------------------------------------------------------------------------------------------

    def _training_texts(self, config: Any) -> tuple[Any, list[str]]:
        """(split, columns) for a tokenizer: all of the split, so that neither the seed nor a limit changes it."""
        name, split = pick_split(self.splits, self.data.train, "train")
        split = self.splits[name] = first_rows(split, config.limit, "train")
        return split, self._text_columns(split)

    def _text_columns(self, split: Any) -> list[str]:
        d = self.data
        return [self._text_column(split, d.text, "text")] + ([self._text_column(split, d.pair, "pair")] if d.pair else [])

    def _read(self, names: list[str], use: str, limit: int | None) -> Tensor:
        """Tokens of a split into `columns`; returns the labels."""
        d = self.data
        name, split = pick_split(self.splits, names, use, can_hold_out=True)
        split = first_rows(split, limit, use)
        texts, label = self._text_columns(split), pick_column(split, d.label, "label")
        faults = BadRows(name, self.bad_rows, lambda row: self.file, self.origins.get(name))
        rows = subset(len(split), limit, self.seed)
        numbers = d.classes == 1
        found = _numbers(split, label, faults) if numbers else self.classes.labels(split, label, name, faults)
        chosen = split if len(rows) == len(split) else split.select(rows)  # indices make reading slow
        for column in texts:
            for row, text in zip(rows, chosen[column][:], strict=True):
                if text is None or not text.strip():
                    faults.add(row, f"the text in column {column!r} must not be empty; it is {text!r}")
        kept = faults.kept(rows)
        self.notes += (faults.note,) if faults.note else ()
        self._tokenize(name, split.select(kept) if len(kept) < len(split) else split, texts)
        labels = [found[row] for row in kept]
        if use == "eval" and not numbers:
            self.notes += one_class_note(labels, self.classes.names, name)
        return torch.tensor(labels, dtype=torch.float32 if numbers else torch.int64)

    def _tokenize(self, name: str, split: Any, texts: list[str]) -> None:
        d, tokenizer = self.data, self.tokenizer
        encode = _encoder(tokenizer, texts, d.max_length)
        made = tokenize(split.select_columns(texts), encode, [self.tokenizer_identity, texts, d.max_length, "text"])
        cut = made.pop("cut").sum()
        if cut:
            self.notes += (
                f"cut to {d.max_length} tokens (dataset.max_length): {cut:,} of the {len(split):,} texts of split {name!r}",
            )
        self.columns.append(made)

    def batch(self, indices: Tensor, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, attention_mask, perhaps token_type_ids: (N, L) int64; labels: (N,); index: (N,), of evaluation alone."""
        rows = [self._row(int(i), epoch) for i in indices]
        ids = padded([row["input_ids"] for row in rows], self.tokenizer.pad_token_id, self.data.max_length)
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        out = {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
        if "token_type_ids" in rows[0] and "token_type_ids" in self._takes:
            out["token_type_ids"] = padded([row["token_type_ids"] for row in rows], 0, self.data.max_length)
        out["labels"] = self.labels[0 if epoch is not None else 1][indices]
        return out if epoch is not None else out | {"index": indices}

    def _row(self, i: int, epoch: int | None) -> dict[str, Any]:
        """Columns of the training set, or of the one among the evaluated sets in which index `i` falls."""
        which = 0
        if epoch is None:
            which = 1
            while i >= self.sizes[which - 1]:
                i, which = i - self.sizes[which - 1], which + 1
        return {name: column.row(i) for name, column in self.columns[which].items()}

    # -- the model ----------------------------------------------------------------------------------------------------

    def create_model(self, spec: Any, pretrained: bool) -> nn.Module:
        names = {"id2label": dict(enumerate(self.names)), "label2id": {name: i for i, name in enumerate(self.names)}}
        kind = "regression" if self.data.classes == 1 else "single_label_classification"
        fields = {"num_labels": len(self.names), "problem_type": kind} | names | self._fields()
        own = {"num_classes": len(self.names), "vocab_size": len(self.tokenizer)}
        model = models.create_model(spec, pretrained, hf=("AutoModelForSequenceClassification", fields), own=own)
        return self._prepare(model, self.data.max_length, "max_length")

    def example_inputs(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.batch(torch.zeros(1, dtype=torch.long), 0).items() if k != "labels" and k in self._takes}

    # -- what is measured ---------------------------------------------------------------------------------------------

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels, index, logits = batch["labels"], batch.get("index"), self._forward(model, batch)
        if self.data.classes == 1:
            scores = logits.view(-1)
            loss = F.mse_loss(scores, labels)
            gathered = [] if index is None else [logits.new_zeros(self.eval_size).index_copy(0, index, scores.detach())]
        else:
            loss = F.cross_entropy(logits, labels)
            gathered = self._confusions(labels, logits.detach().argmax(-1), index)
        return loss, torch.cat([torch.stack([loss.detach() * len(labels), loss.new_tensor(len(labels))]), *gathered])

    def _confusions(self, truth: Tensor, predicted: Tensor, index: Tensor | None) -> list[Tensor]:
        """A flat confusion matrix of each evaluated set; of training, one."""
        classes = torch.arange(len(self.names), device=truth.device)
        truth, predicted = ((x[:, None] == classes).float() for x in (truth, predicted))
        if index is None or len(self.sizes) == 1:
            return [(truth.T @ predicted).flatten()]
        ends = torch.tensor(self.sizes, device=index.device).cumsum(0)
        belongs = torch.bucketize(index, ends, right=True)
        return [((truth * (belongs == i)[:, None]).T @ predicted).flatten() for i in range(len(self.sizes))]

    def metrics(self, sums: list[float]) -> dict[str, float]:
        total, count, *rest = sums
        out = {"loss": total / count}
        if self.data.classes == 1:  # correlations need all predictions, which training does not gather
            return out | {m: OF_NUMBERS[m](torch.tensor(rest), self.labels[1]) for m in self.data.metrics if rest}
        size = len(self.names) ** 2
        for i, suffix in enumerate(["", *(f"_{name}" for name in self.data.also)][: len(rest) // size]):
            matrix = torch.tensor(rest[i * size : (i + 1) * size]).view(len(self.names), -1)
            out |= {name + suffix: OF_CLASSES[name](matrix) for name in self.data.metrics}
        return out


def _numbers(split: Any, column: str, faults: BadRows) -> list[float]:
    """Labels that are numbers; nan of those that are not, which `faults` hears of."""
    out = []
    for row, value in enumerate(split[column][:]):
        try:
            number = float(value)  # a column of numbers in which one is a word, such as NA, is read as text
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            faults.add(row, f"the label in column {column!r} must be a number; it is {value!r}")
        out.append(number)
    return out


def _single_file(data: TextData, config: Any) -> str | None:
    """The file that all rows come from, where it is one."""
    place = Path(config.data or data.source).expanduser()
    return str(place) if place.is_file() else None


def _encoder(tokenizer: Any, texts: list[str], longest: int):
    """{column: texts} -> {input_ids, of two texts perhaps token_type_ids, cut: whether the text was}, all as lists."""
    glue = "" if tokenizer.num_special_tokens_to_add(pair=True) > 1 else tokenizer.eos_token or "\n"

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        columns = [rows[name] for name in texts]
        if glue and len(columns) == 2:  # a tokenizer that would write two texts without anything between them
            columns = [[first + glue + second for first, second in zip(*columns, strict=True)]]
        found = dict(tokenizer(*columns, verbose=False, return_attention_mask=False))
        if len(columns) == 1:  # then they are all zero
            found.pop("token_type_ids", None)
        long = [i for i, ids in enumerate(found["input_ids"]) if len(ids) > longest]
        if long:
            again = tokenizer(*([c[i] for i in long] for c in columns), truncation=True, max_length=longest, verbose=False)
            for name in found:
                for i, values in zip(long, again[name], strict=True):
                    found[name][i] = values
        cut = set(long)
        return found | {"cut": [[int(i in cut)] for i in range(len(columns[0]))]}

    return encode
