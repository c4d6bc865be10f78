"""The words of `python -m ldp_search.profile`, as typed options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.overlay import ConfigError, parse_words
from ...config.typed import typed
from ...core.bits.latency import FLOAT, TARGETS
from ...core.messages import did_you_mean


def _is(default: Any, about: str) -> Any:
    factory = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(metadata={"help": about}, **factory)


@dataclass
class ProfileOptions:
    """rest: words of a run's settings, which say what model at which inputs."""

    target: str = _is("onnxruntime-cpu", f"what runs the network: {', '.join(TARGETS)}")
    containers: list[int] = _is([], f"numbers of bits to measure, {FLOAT} being floating point (default: those of the target)")
    output: str = _is("latency.json", "file of the table")
    batch: int = _is(1, "samples at once")
    threads: int = _is(1, "threads of the runtime")
    turns: int = _is(30, "of every layer in every container; the median counts. Fewer where they take over a minute")
    rest: list[str] = field(default_factory=list, metadata={})

    def check(self) -> None:
        """Raises ConfigError when a value is out of its range, or a file cannot be written."""
        if self.target not in TARGETS:
            raise ConfigError(f"Unknown target {self.target!r}.{did_you_mean(self.target, TARGETS)}")
        for name in ("batch", "threads", "turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be a whole number above 0; received {getattr(self, name)!r}.")
        if any(not 2 <= width <= FLOAT for width in self.containers):
            raise ConfigError(
                f"containers are numbers of bits from 2 to {FLOAT}, e.g. [8, {FLOAT}]; received {self.containers}."
            )
        place = Path(self.output).expanduser()
        if place.is_dir():
            raise ConfigError(f"output must be a file; {self.output} is a folder. Give {place / 'latency.json'}.")
        try:
            place.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output={self.output} must lie in a folder that can be made: {error}.") from error

    @property
    def measured(self) -> tuple[int, ...]:
        """The containers of the table, ascending; floating point is always among them, since layers may be kept in it."""
        return tuple(sorted({*(self.containers or TARGETS[self.target]), FLOAT}))


OWN = {f.name: f for f in dataclasses.fields(ProfileOptions) if f.metadata}


def parse(words: list[str]) -> ProfileOptions:
    """Options from words: KEY=VALUE of this program, the rest for a run's settings. Raises ConfigError."""
    own, rest = [], []
    for word in words:
        key, equals, _ = word.partition("=")
        if word.startswith("-"):
            raise ConfigError(f"Unknown option {word!r}.{did_you_mean(word, ['--help'])} Settings are words such as batch=1.")
        (own if key in OWN and equals else rest).append(word)
    values = parse_words(own, (), [name for name, f in OWN.items() if str(f.type).startswith("list")])
    options = ProfileOptions(**{k: typed(ProfileOptions, k, v, "on the command line") for k, v in values.items()}, rest=rest)
    options.check()
    return options


def keys() -> str:
    """The keys with their defaults, a line each."""
    lines = ["Keys and their defaults:"]
    for name, f in OWN.items():
        default = f.default_factory() if f.default is dataclasses.MISSING else f.default
        shown = "" if default == [] else str(default)
        lines.append(f"  {f'{name}={shown}':<26} {f.metadata['help']}")
    return "\n".join(
        [
            *lines,
            "  and those of a run (python -m ldp_search.run --help), of which model=, task= and data= say what is measured.",
        ]
    )
