"""The words of `python -m ldp_search.export`, as typed options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...config.overlay import ConfigError
from ...config.program import divided, key_lines, option, own_keys
from ...config.settings import EXPORT_FORMATS, SPACE_FIELDS, check_formats
from ...core.messages import did_you_mean

DATA_KEYS = (
    "task", "name", "model", "data", "dataset", "tokenizer", "seed", "limit", "eval_limit", "eval_batch_size", "bad_rows",
)  # fmt: skip
"""Settings of a run that say what data to compare on."""


@dataclass
class ExportOptions:
    """folder: of a run or of save_pretrained. rest: words of a run's settings, which say what data to compare on."""

    folder: Path = field(default=Path("."), metadata={})
    format: list[str] = option(["onnx"], "onnx, packed, torch, or several of them")
    nbits: bool = option(False, "of onnx: few-bit linear layers with packed weights, for one row at a time")
    cache: bool = option(False, "of onnx: keys and values of a causal language model as inputs and outputs, to write texts")
    output: str | None = option(None, "file, or folder of several files (default: the folder itself)")
    batch: list[int] = option([1, 32], "sizes of the batches whose time is measured")
    samples: int = option(500, "evaluation samples to compare on")
    agreement: float | None = option(None, "share of equal predictions that a file must reach (default: see docs/export.md)")
    compare: bool = option(True, "also measure onnxruntime, in fp32 and in its own int8")
    rounds: int = option(9, "turns of the measurement; the median counts")
    rest: list[str] = field(default_factory=list, metadata={})

    def check(self) -> None:
        """Raises ConfigError when a value is out of its range."""
        check_formats(self.format)
        if not self.format:
            raise ConfigError(f"format must name at least one of {', '.join(EXPORT_FORMATS)}; received none.")
        for name in ("nbits", "cache"):
            if getattr(self, name) and "onnx" not in self.format:
                given = ",".join(self.format)
                raise ConfigError(f"{name}=true belongs to format=onnx; received format={given}. Leave {name} out.")
        for name, fits, rule in (
            ("batch", self.batch and min(self.batch) > 0, "whole numbers above 0, e.g. [1, 32]"),
            ("samples", self.samples > 0, "a whole number above 0"),
            ("rounds", self.rounds > 0, "a whole number above 0"),
            ("agreement", self.agreement is None or 0 <= self.agreement <= 1, "a share from 0 to 1"),
        ):
            if not fits:
                raise ConfigError(f"{name} must be {rule}; received {getattr(self, name)!r}.")


def parse(words: list[str]) -> ExportOptions:
    """Options from words: a folder, KEY=VALUE of this program, and KEY=VALUE of a run's data. Raises ConfigError."""
    own, others = divided(ExportOptions, words)
    folders = [word for word in others if "=" not in word]
    rest = [word for word in others if "=" in word]
    for word in rest:
        key = word.partition("=")[0]
        if (head := key.partition(".")[0]) not in DATA_KEYS:
            known = [*own_keys(ExportOptions), *DATA_KEYS]
            why = " The bits are learned already." if head in SPACE_FIELDS else did_you_mean(key, known)
            raise ConfigError(f"Unknown key {key!r} on the command line.{why}")
    if len(folders) != 1:
        raise ConfigError(f"Give one folder, of a run or of save_pretrained; received {folders or 'none'}.")
    options = ExportOptions(Path(folders[0]).expanduser(), rest=rest, **own)
    options.check()
    return options


def keys() -> str:
    """The keys with their defaults, a line each."""
    return key_lines(ExportOptions, f"those of a run that say what data to compare on: {'= '.join(DATA_KEYS)}=")
