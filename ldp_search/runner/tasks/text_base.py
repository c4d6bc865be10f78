"""What text classification and language modelling share: splits and texts, the tokenizer, and what they ask of a model."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...config.overlay import ConfigError
from .. import models
from ..data import DataError, check_share, hold_out, load_splits, pick_column
from ..data.subsets import Origin, Parts, spread
from ..data.tokenized import quiet_tokenizers
from ..data.tokenizers import family, identity, save_tokenizer, tokenizer_of, trained_tokenizer, with_padding
from .base import Task

_POSITIONS = ("position_embeddings", "position_embedding", "wpe", "embed_positions")


@dataclass
class TextSource:
    """Fields of `dataset:` that both kinds have. Of names given as lists the first found counts."""

    source: str = ""  # a hub id, a folder or file, or the name of an embedded text
    config: str | None = None  # which of the hub's configurations
    train: list[str] = field(default_factory=lambda: ["train"])
    eval: list[str] = field(default_factory=lambda: ["validation", "test"])
    hold_out: float = 0.0  # share of the training rows to evaluate on, where the data has no split for it
    text: list[str] = field(default_factory=lambda: ["text", "sentence"])
    vocab_size: int = 8192  # of a tokenizer that is trained
    streaming: bool = False  # take the first limit= and eval_limit= rows without downloading the rest

    def __post_init__(self):
        check_share(self.hold_out)


class TextTask(Task):
    """Base of the two kinds. offline: words of the kind's embedded task, for messages. embedded: {source: function}."""

    looks_at = ("data", "limit", "eval_limit", "seed", "bad_rows", "model", "pretrained", "tokenizer")
    offline = ""
    embedded: dict[str, Any] = {}

    def __init__(self, data: Any, config: Any):
        self.data, self.seed, self.bad_rows, self.notes = data, config.seed, config.bad_rows, ()
        self.origins: dict[str, Origin] = {}  # of splits that were made out of the training rows
        self.pretrained = config.pretrained
        quiet_tokenizers()
        models.known_source(config.model)  # before the data is looked for
        self.splits = self._load(config)
        self.configuration = models.configuration_of(config.model, config.pretrained)
        self._takes: set[str] = set()

    # -- the data -----------------------------------------------------------------------------------------------------

    def _load(self, config: Any) -> dict[str, Any]:
        """{split: rows}, with a split to evaluate on made out of the training rows where that is asked for."""
        d = self.data
        if d.source in self.embedded and config.data is None:
            from ..data.source_text import NOTE

            self.notes += (NOTE,)
            return self.embedded[d.source]()
        splits = load_splits(d.source, d.config, config.data, self.offline, d.streaming)
        splits, self.origins, notes = hold_out(splits, d, config.limit, self._parts())
        self.notes += notes
        return splits

    def _parts(self) -> Callable[[int, float], Parts]:
        """How rows are held out."""
        return spread

    def _text_column(self, split: Any, names: list[str], use: str) -> str:
        column = pick_column(split, names, use)
        kind = getattr(split.features[column], "dtype", "")
        if kind not in ("string", "large_string"):
            raise DataError(f"The column {column!r} must hold text; it holds {split.features[column]}.")
        return column

    # -- the tokenizer ------------------------------------------------------------------------------------------------

    def _find_tokenizer(self, config: Any, split: Any, columns: list[str], both_directions: bool) -> None:
        """Sets `tokenizer`, and `tokenizer_identity` for the cache. split, columns: the text to train one on, if need be."""
        source, _, rest = models.source_of(config.model)
        self.tokenizer = tokenizer_of(config.tokenizer, rest if source == "hf" else "", config.pretrained)
        if self.tokenizer is None:
            kind = family(getattr(self.configuration, "model_type", ""), both_directions)
            self.tokenizer = trained_tokenizer(split.select_columns(columns), self.data.vocab_size, kind)
            self.notes += (f"a tokenizer of {len(self.tokenizer):,} tokens was trained on the task's text ({kind})",)
        self.tokenizer = with_padding(self.tokenizer)
        self.tokenizer_identity = identity(self.tokenizer)
        self._check_vocabulary()

    def _check_vocabulary(self) -> None:
        size = getattr(self.configuration, "vocab_size", None)
        if self.pretrained and isinstance(size, int) and len(self.tokenizer) > size:
            raise ConfigError(
                f"The pretrained model has {size:,} tokens, fewer than the tokenizer's {len(self.tokenizer):,}: they do not "
                "belong together. Leave tokenizer= out to take the model's own, or start from scratch with pretrained=false."
            )

    # -- the model ----------------------------------------------------------------------------------------------------

    def _fields(self) -> dict[str, Any]:
        """What a configuration must say of the tokenizer; of a pretrained one, only what it does not say itself."""
        ids = {f"{use}_token_id": getattr(self.tokenizer, f"{use}_token_id") for use in ("pad", "bos", "eos")}
        if self.pretrained:
            missing = getattr(self.configuration, "pad_token_id", None) is None
            return {"pad_token_id": ids["pad_token_id"]} if missing else {}
        return {"vocab_size": len(self.tokenizer)} | ids

    def _prepare(self, model: nn.Module, length: int, option: str) -> nn.Module:
        """Note which inputs the model takes. Raises ConfigError when it has fewer positions than `length`."""
        self._takes = set(inspect.signature(model.forward).parameters)
        if getattr(getattr(model, "config", None), "type_vocab_size", 2) < 2:
            self._takes.discard("token_type_ids")
        limit, offset = _positions(model)
        if limit is not None and length > limit:
            more = "" if self.pretrained else f", or give the model more: model.max_position_embeddings={length + offset}"
            raise ConfigError(f"{option} must be at most the {limit} positions that the model has; received {length}. "
                              f"Give dataset.{option}={limit} or less{more}.")  # fmt: skip
        return model

    def _forward(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Logits in fp32. No cache of keys and values: it is for generating text, and costs memory."""
        inputs = {key: value for key, value in inputs.items() if key in self._takes}
        outputs = model(**inputs, **({"use_cache": False} if "use_cache" in self._takes else {}))
        return getattr(outputs, "logits", outputs).float()

    def save_extras(self, folder: Path) -> None:
        super().save_extras(folder)
        save_tokenizer(self.tokenizer, folder)


def _positions(model: nn.Module) -> tuple[int | None, int]:
    """(longest sequence, rows of the table that are not positions) of a model that learns a vector a position; None: any."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _POSITIONS and isinstance(module, nn.Embedding):
            offset = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            return module.num_embeddings - offset, offset
    return None, 0


def one_direction(configuration: Any) -> bool:
    """Whether a model reads from left to right alone (GPT-2, Llama): its type has no masked language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return configuration is not None and configuration.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def digest_of(*parts: Any) -> str:
    """A hash of tensors, texts and `Ragged` columns."""
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, "update"):
            part.update(digest)
        else:
            digest.update(part.numpy() if isinstance(part, Tensor) else str(part).encode())
    return digest.hexdigest()[:16]
