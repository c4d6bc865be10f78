"""Language modelling: the next token (causal) or hidden ones (masked), of a running text cut into blocks of equal length.

Nothing of the text is lost between blocks: in causal modelling every token of the evaluation set is predicted exactly once,
so that the perplexity per word is that of the whole text. Its words are counted as WikiText counts them, separated by spaces,
with an end-of-line token a line (arXiv:1609.07843).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.overlay import ConfigError
from .. import models
from ..data import DataError, first_rows, pick_split, subset
from ..data.masking import IGNORED, mask_tokens
from ..data.source_text import corpus
from ..data.subsets import Parts, ending
from ..data.tokenized import Ragged, tokenize
from .text_base import TextSource, TextTask, digest_of, one_direction

OBJECTIVES = ("auto", "causal", "masked")
OFFLINE = "task=stdlib pretrained=false   the standard library's own source text, which every Python brings"


@dataclass
class LanguageData(TextSource):
    """`dataset:` of a task's file."""

    objective: str = "auto"  # auto: what the model was made for
    block: int = 512  # tokens of a sample
    documents: bool = False  # each row is a text of its own, ended by the end token; else rows are lines of a running text
    mask_share: float = 0.15  # of the tokens, hidden in masked modelling

    def __post_init__(self):
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise DataError(f"`objective` must be one of {', '.join(OBJECTIVES)}; received {self.objective!r}.")
        if self.block < 8 or not 0 < self.mask_share < 1:
            raise DataError(f"`block` must be 8 or more, `mask_share` a share; received {self.block}, {self.mask_share}.")


class LanguageModelling(TextTask):
    Data = LanguageData
    metric = "perplexity"
    offline = OFFLINE
    embedded = {"stdlib": corpus}

    def __init__(self, data: LanguageData, config: Any):
        super().__init__(data, config)
        self.masked = objective(data.objective, self.configuration) == "masked"
        rows = [self._rows(use, limit) for use, limit in (("train", config.limit), ("eval", config.eval_limit))]
        column = self._text_column(rows[0], data.text, "text")
        self._find_tokenizer(config, rows[0], [column], self.masked or not _causal_type(self.configuration))
        self._set_edges()
        tokens = [self._tokenize(split) for split in rows]
        self.streams: list[Ragged] = [found["input_ids"] for found in tokens]
        streams, self.words = self.streams, tokens[1]["words"].sum()
        self.tokens_per_word = streams[1].total / max(1, self.words)
        counts = [streams[0].total // self.content, -(-streams[1].total // self.content)]
        self._check_counts(counts)
        limits = (None, None) if data.streaming else (config.limit, config.eval_limit)  # of a stream, they counted rows
        self.blocks = [torch.tensor(subset(n, limit, self.seed)) for n, limit in zip(counts, limits, strict=True)]
        self.train_size, self.eval_size = (len(blocks) for blocks in self.blocks)
        self.fingerprint = digest_of(*streams, *self.blocks, self.tokenizer_identity, data.block, self.masked)
        del self.splits

    # -- the data -----------------------------------------------------------------------------------------------------

    def _rows(self, use: str, limit: int | None) -> Any:
        return first_rows(pick_split(self.splits, getattr(self.data, use), use, can_hold_out=True)[1], limit, use)

    def _parts(self) -> Callable[[int, float], Parts]:
        return super()._parts() if self.data.documents else ending

    def _set_edges(self) -> None:
        """Tokens around a block. Masked: those that the model expects at the ends; causal: one before the text's first."""
        t, block = self.tokenizer, self.data.block
        self.before, self.behind = ([t.cls_token_id], [t.sep_token_id]) if self.masked else ([], [])
        self.before, self.behind = ([i for i in edge if i is not None] for edge in (self.before, self.behind))
        if self.masked and t.mask_token_id is None:
            raise ConfigError("Masked language modelling needs a tokenizer with a mask token; this one has none. "
                              "dataset.objective=causal, or another tokenizer=FOLDER.")  # fmt: skip
        self.content = block - len(self.before) - len(self.behind)
        known = (t.bos_token_id, t.eos_token_id, t.cls_token_id, t.pad_token_id)
        self.start = next(i for i in known if i is not None)

    def _tokenize(self, split: Any) -> dict[str, Ragged]:
        """{"input_ids", "words": how many the row has}."""
        column = self._text_column(split, self.data.text, "text")
        t, end = (
            self.tokenizer,
            self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else self.tokenizer.sep_token_id,
        )
        ends = [end] if self.data.documents and end is not None else []

        def encode(rows: dict[str, list[str]]) -> dict[str, list]:
            texts = [(text or "") if (text or "").endswith("\n") else (text or "") + "\n" for text in rows[column]]
            found = t(texts, add_special_tokens=False, verbose=False, return_attention_mask=False)["input_ids"]
            words = [len(text.split()) + text.count("\n") for text in texts]
            return {"input_ids": [ids + ends for ids in found], "words": [[n] for n in words]}

        options = [self.tokenizer_identity, column, self.data.documents, "language"]
        return tokenize(split.select_columns([column]), encode, options)

    def _check_counts(self, counts: list[int]) -> None:
        for stream, count, use in zip(self.streams, counts, ("train", "eval"), strict=True):
            if count < 1:
                names = " or ".join(getattr(self.data, use))
                raise DataError(f"The text of split {names} must fill a block of {self.data.block} tokens; it has "
                                f"{stream.total}. Give more text, or shorter blocks: dataset.block=N.")  # fmt: skip

    def batch(self, indices: Tensor, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels: (N, block) int64, labels of places that are not predicted -100; masked: attention_mask too."""
        which = 0 if epoch is not None else 1
        blocks = self.blocks[which][indices]
        if self.masked:
            return self._masked(self.streams[which], blocks, epoch)
        stream, size = self.streams[which], self.content
        ids = torch.full((len(blocks), size + 1), IGNORED)
        for i, k in enumerate(blocks.tolist()):
            start, stop = k * size - 1, min((k + 1) * size, stream.total)
            found = stream.span(max(start, 0), stop)
            ids[i, 0] = self.start
            ids[i, 1 - min(k, 1) : stop - start] = torch.from_numpy(found.astype(np.int64))
        out = {"input_ids": ids[:, :-1].clamp(min=0), "labels": ids[:, 1:].clone()}
        return out if epoch is not None else out | {"index": indices}

    def _masked(self, stream: Ragged, blocks: Tensor, epoch: int | None) -> dict[str, Tensor]:
        first, size = len(self.before), self.content
        ids = torch.full((len(blocks), self.data.block), self.tokenizer.pad_token_id)
        real, may = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for i, k in enumerate(blocks.tolist()):
            found = stream.span(k * size, min((k + 1) * size, stream.total))
            whole = [*self.before, *found.tolist(), *self.behind]
            ids[i, : len(whole)] = torch.tensor(whole)
            real[i, : len(whole)], may[i, first : first + len(found)] = True, True
        mask, vocabulary, share = self.tokenizer.mask_token_id, len(self.tokenizer), self.data.mask_share
        inputs, labels = mask_tokens(ids, may, blocks, self.seed, epoch, mask, vocabulary, share)
        out = {"input_ids": inputs, "attention_mask": real.long(), "labels": labels}
        return out if epoch is not None else out | {"index": blocks}

    # -- the model ----------------------------------------------------------------------------------------------------

    def create_model(self, spec: Any, pretrained: bool) -> nn.Module:
        auto = "AutoModelForMaskedLM" if self.masked else "AutoModelForCausalLM"
        fields = self._fields()
        if not self.masked and not _causal_type(self.configuration) and hasattr(self.configuration, "is_decoder"):
            fields["is_decoder"] = True  # an encoder that is to look to the left alone
        model = models.create_model(spec, pretrained, hf=(auto, fields), own={"vocab_size": len(self.tokenizer)})
        return self._prepare(model, self.data.block, "block")

    def example_inputs(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.batch(torch.zeros(1, dtype=torch.long), 0).items() if k != "labels" and k in self._takes}

    # -- what is measured ---------------------------------------------------------------------------------------------

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits, labels = self._forward(model, batch), batch["labels"]
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        count = (labels != IGNORED).sum()
        sums = [total.detach(), count.to(total.dtype)] + ([total.new_tensor(len(labels))] if "index" in batch else [])
        return total / count.clamp(min=1), torch.stack(sums)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        total, count, *evaluated = sums
        loss = total / count
        out = {"loss": loss, "perplexity": _exp(loss)}
        if evaluated and not self.masked:  # of a part of the text, with the whole text's tokens a word
            out["word_perplexity"] = _exp(loss * self.tokens_per_word)
        return out


def objective(wanted: str, configuration: Any) -> str:
    """causal or masked: as wanted, else what the architecture in a configuration says, else what its type was made for."""
    if wanted != "auto":
        return wanted
    for name in getattr(configuration, "architectures", None) or []:
        if name.endswith(("ForMaskedLM", "ForPreTraining")) and not _causal_type(configuration):
            return "masked"
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal"
    return "causal" if _causal_type(configuration) else "masked"


def _causal_type(configuration: Any) -> bool:
    """Whether a type of model was made to go on with a text; one's own model counts as such."""
    return configuration is None or one_direction(configuration)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
