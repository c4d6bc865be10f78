"""The words of `python -m ldp_search.export`, as typed options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.overlay import ConfigError
from ...config.settings import EXPORT_FORMATS, SPACE_FIELDS, check_formats
from ...config.typed import typed
from ...core.messages import did_you_mean

DATA_KEYS = (
    "task", "name", "model", "data", "dataset", "tokenizer", "seed", "limit", "eval_limit", "eval_batch_size", "bad_rows",
)  # fmt: skip
"""Settings of a run that say what data to compare on."""


def _is(default: Any, about: str) -> Any:
    factory = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(metadata={"help": about}, **factory)


@dataclass
class ExportOptions:
    """folder: of a run or of save_pretrained. rest: words of a run's settings, which say what data to compare on."""

    folder: Path = field(default=Path("."), metadata={})
    format: list[str] = _is(["onnx"], "onnx, packed, torch, or several of them")
    output: str | None = _is(None, "file, or folder of several files (default: the folder itself)")
    batch: list[int] = _is([1, 32], "sizes of the batches whose time is measured")
    samples: int = _is(500, "evaluation samples to compare on")
    agreement: float | None = _is(None, "share of equal predictions that a file must reach (default: see docs/export.md)")
    compare: bool = _is(True, "also measure onnxruntime, in fp32 and in its own int8")
    rounds: int = _is(9, "turns of the measurement; the median counts")
    rest: list[str] = field(default_factory=list, metadata={})

    def check(self) -> None:
        """Raises ConfigError when a value is out of its range."""
        check_formats(self.format)
        if not self.format:
            raise ConfigError(f"format must name at least one of {', '.join(EXPORT_FORMATS)}; received none.")
        for name, fits, rule in (
            ("batch", self.batch and min(self.batch) > 0, "whole numbers above 0, e.g. [1, 32]"),
            ("samples", self.samples > 0, "a whole number above 0"),
            ("rounds", self.rounds > 0, "a whole number above 0"),
            ("agreement", self.agreement is None or 0 <= self.agreement <= 1, "a share from 0 to 1"),
        ):
            if not fits:
                raise ConfigError(f"{name} must be {rule}; received {getattr(self, name)!r}.")


OWN = {f.name: f for f in dataclasses.fields(ExportOptions) if f.metadata}


def parse(words: list[str]) -> ExportOptions:
    """Options from words: a folder, KEY=VALUE of this program, and KEY=VALUE of a run's data. Raises ConfigError."""
    from ...config.overlay import parse_words

    folders, own, rest = [], [], []
    for word in words:
        key, equals, _ = word.partition("=")
        if word.startswith("-"):
            hint = did_you_mean(word, ["--help"])
            raise ConfigError(f"Unknown option {word!r}.{hint} Settings are words such as format=onnx.")
        if not equals:
            folders.append(word)
        elif key in OWN:
            own.append(word)
        elif key.partition(".")[0] in DATA_KEYS:
            rest.append(word)
        else:
            learned = key.partition(".")[0] in SPACE_FIELDS
            why = " The bits are learned already." if learned else did_you_mean(key, [*OWN, *DATA_KEYS])
            raise ConfigError(f"Unknown key {key!r} on the command line.{why}")
    if len(folders) != 1:
        raise ConfigError(f"Give one folder, of a run or of save_pretrained; received {folders or 'none'}.")
    values = parse_words(own, (), [name for name, f in OWN.items() if str(f.type).startswith("list")])
    typed_values = {key: typed(ExportOptions, key, value, "on the command line") for key, value in values.items()}
    options = ExportOptions(Path(folders[0]).expanduser(), rest=rest, **typed_values)
    options.check()
    return options


def keys() -> str:
    """The keys with their defaults, a line each."""
    lines = ["Keys and their defaults:"]
    for name, f in OWN.items():
        default = f.default_factory() if f.default is dataclasses.MISSING else f.default
        shown = "" if default is None else str(default).lower().replace("'", "").replace(" ", "")
        lines.append(f"  {f'{name}={shown}':<20} {f.metadata['help']}")
    return "\n".join([*lines, f"  and those of a run that say what data to compare on: {'= '.join(DATA_KEYS)}="])
