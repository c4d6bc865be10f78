"""Tokenizers: a model's own, one that is given, or one trained on the task's own text.

Trained ones are of two families. WordPiece with lower case and BERT's special tokens, for BERT and its relatives; byte-level
BPE for all others, with RoBERTa's special tokens where the model reads in both directions, with GPT-2's where it does not.
Training is deterministic: the same text gives the same tokenizer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...config.overlay import ConfigError
from ..io.atomic import write_whole
from ..io.hub_access import settle_hub

TRAINING_CHARACTERS = 20_000_000
"""A tokenizer is trained on so much text at most: more changes little and takes minutes."""
ALPHABET = 1000
"""Distinct characters of a WordPiece vocabulary; rarer ones become [UNK]."""
WORDPIECE = (
    "albert",
    "bert",
    "convbert",
    "deberta-v2",
    "distilbert",
    "electra",
    "layoutlm",
    "mobilebert",
    "mpnet",
    "squeezebert",
)
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spm.model", "spiece.model")
_BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_ROBERTA = {
    "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>",
    "sep_token": "</s>", "mask_token": "<mask>",
}  # fmt: skip
_GPT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
_SPECIAL = {"wordpiece": _BERT, "roberta": _ROBERTA, "gpt": _GPT}


def tokenizer_of(given: str | None, model: str, pretrained: bool) -> Any | None:
    """The tokenizer that is `given` as an id or folder, else that of the model; None where one is to be trained.

    model: id or folder; an id counts only where its weights are taken too.

    Raises:
        ConfigError: there is none, or the hub cannot be reached; with the ways out.
    """
    own = Path(model).expanduser() if model else None
    if given is not None:
        return _load(given, "tokenizer=FOLDER, or leave tokenizer= out: the model's own is then taken, or one is trained")
    if own is not None and own.is_dir():
        if any((own / name).is_file() for name in FILES):
            return _load(str(own), "tokenizer=FOLDER, for the files of another one")
        if pretrained:
            raise ConfigError(
                f"The weights in {own} need the tokenizer that they were trained with, and there is none: tokenizer=FOLDER."
            )
        return None
    return (
        _load(model, "tokenizer=FOLDER; or pretrained=false, which trains one on the task's own text")
        if pretrained and model
        else None
    )


def _load(name: str, way_out: str) -> Any:
    import transformers

    folder, trouble = Path(name).expanduser(), None
    if not folder.is_dir():
        if folder.is_file() or name.startswith((".", "/", "~")):
            raise ConfigError(f"A tokenizer is an id of the hub, or a folder with its files; received {name!r}. Try {way_out}.")
        trouble = settle_hub("models", name)
    bare = folder.is_dir() and not any(
        (folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "config.json")
    )
    cls = transformers.AutoTokenizer
    if bare and (folder / "vocab.txt").is_file():
        cls = transformers.BertTokenizerFast
    elif bare and (folder / "merges.txt").is_file():
        cls = transformers.GPT2TokenizerFast
    try:
        found = cls.from_pretrained(str(folder) if folder.is_dir() else name)
    except Exception as error:  # transformers, tokenizers and the hub's client each raise their own
        why = f"{trouble}, and it is not in the cache" if trouble else " ".join(str(error).split())[:300]
        raise ConfigError(f"The tokenizer {name!r} cannot be had: {why}.\nWays out: {way_out}.") from error
    if not found.is_fast:
        raise ConfigError(
            f"The tokenizer {name!r} must be a fast one (of the `tokenizers` package); it is {type(found).__name__}."
        )
    return with_padding(found)


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer, whose end token also pads where it has no token for that (GPT-2)."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.sep_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"A token to pad with is needed; {type(tokenizer).__name__} has neither pad_token nor eos_token.")
    return tokenizer


def family(model_type: str, both_directions: bool) -> str:
    """wordpiece, roberta or gpt: which kind of tokenizer a model from scratch gets."""
    if not both_directions:
        return "gpt"
    return "wordpiece" if model_type in WORDPIECE else "roberta"


def trained_tokenizer(split: Any, size: int, family: str) -> Any:
    """A tokenizer trained on all columns of `split`, from the cache where that was done before. Raises ConfigError."""
    import datasets
    from tokenizers import Tokenizer

    parts = [split._fingerprint, split.column_names, size, family, ALPHABET, TRAINING_CHARACTERS]
    file = (
        Path(datasets.config.HF_DATASETS_CACHE) / "ldp_search" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.json"
    )
    if file.is_file():
        return _wrapped(Tokenizer.from_str(file.read_text(encoding="utf-8")), family)
    texts = (text for rows in split.iter(1000) for column in split.column_names for text in rows[column] if text)
    found = train_tokenizer(texts, size, family)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, found.backend_tokenizer.to_str())
    return found


def train_tokenizer(texts: Iterable[str], size: int, family: str) -> Any:
    """A tokenizer of at most `size` tokens, trained on the first 20 million characters of `texts`.

    Raises:
        ConfigError: `size` is smaller than the alphabet and the special tokens.
    """
    tokens = list(dict.fromkeys(_SPECIAL[family].values()))
    if size < 256 + len(tokens):
        raise ConfigError(f"vocab_size must leave room for 256 bytes and {len(tokens)} special tokens; received {size}.")
    texts = tqdm(list(_first(texts)), desc="training a tokenizer", delay=3, leave=False, disable=None)
    if family == "wordpiece":
        return _wrapped(_wordpiece(texts, size, tokens), family)
    return _wrapped(_byte_pairs(texts, size, tokens, family == "roberta"), family)


def _wrapped(tokenizer: Any, family: str) -> Any:
    """A tokenizer of `tokenizers` as one of transformers."""
    from transformers import PreTrainedTokenizerFast

    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (family == "wordpiece")
    options = {"model_input_names": names, "clean_up_tokenization_spaces": False} | _SPECIAL[family]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def _byte_pairs(texts: Iterable[str], size: int, special: list[str], ends: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    if ends:
        first, last = (("<s>", made.token_to_id("<s>")), ("</s>", made.token_to_id("</s>")))
        made.post_processor = processors.RobertaProcessing(last, first, add_prefix_space=False)
    return made


def _wordpiece(texts: Iterable[str], size: int, special: list[str]) -> Any:
    """The trainer of `tokenizers` numbers the pieces inside words in an order that differs from run to run, and from there on
    ties too. So these pieces are given to it, as special tokens, and the vocabulary is then taken over without this rank.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    normalizer, splitter, counts = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer(), Counter()
    texts = list(texts)
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    letters = sorted(c for c in counts if not c.isspace())
    letters = sorted(sorted(letters, key=lambda c: -counts[c])[: min(ALPHABET, size // 4)])
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special + [f"##{c}" for c in letters], initial_alphabet=letters,
        limit_alphabet=len(letters), show_progress=False,
    )  # fmt: skip
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trained.train_from_iterator(texts, trainer)
    made = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, splitter, decoders.WordPiece()
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    return made


def _first(texts: Iterable[str]) -> Iterator[str]:
    left = TRAINING_CHARACTERS
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def identity(tokenizer: Any) -> str:
    """A hash of all that a tokenizer does. Take it before the tokenizer is used, which may leave a truncation in it."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write it so that AutoTokenizer.from_pretrained(folder) gives it back, without truncation and padding."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
