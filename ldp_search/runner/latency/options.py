"""The words of `python -m ldp_search.profile`, as typed options."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ...config.overlay import ConfigError
from ...config.program import divided, key_lines, option
from ...core.bits.latency import FLOAT, TARGETS
from ...core.messages import did_you_mean


@dataclass
class ProfileOptions:
    """rest: words of a run's settings, which say what model at which inputs."""

    target: str = option("onnxruntime-cpu", f"what runs the network: {', '.join(TARGETS)}")
    containers: list[int] = option([], f"numbers of bits to measure, {FLOAT}: floating point (default: the target's)")
    output: str = option("latency.json", "file of the table")
    batch: int = option(1, "samples at once")
    threads: int = option(1, "threads of the runtime")
    turns: int = option(30, "of every layer in every container; the median counts. Fewer where they take over a minute")
    rest: list[str] = field(default_factory=list, metadata={})

    def check(self) -> None:
        """Raises ConfigError when a value is out of its range, or a file cannot be written."""
        if self.target == "cuda":
            raise ConfigError(
                "target=cuda is not there: no exported file runs on CUDA in integers, so its layers would take the same time "
                f"at all bits. Measure {' or '.join(TARGETS)}, or write a table with times of your own (docs/profile.md)."
            )
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
        there = next(folder for folder in place.absolute().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ConfigError(f"output={self.output} must lie in a folder that can be made, but {there} cannot be written in.")

    @property
    def measured(self) -> tuple[int, ...]:
        """The containers of the table, ascending; floating point is always among them, since layers may be kept in it."""
        return tuple(sorted({*(self.containers or TARGETS[self.target]), FLOAT}))


def parse(words: list[str]) -> ProfileOptions:
    """Options from words: KEY=VALUE of this program, the rest for a run's settings. Raises ConfigError."""
    own, rest = divided(ProfileOptions, words)
    options = ProfileOptions(**own, rest=rest)
    options.check()
    return options


def keys() -> str:
    """The keys with their defaults, a line each."""
    then = "those of a run (python -m ldp_search.run --help), of which model=, task= and data= say what is measured."
    return key_lines(ProfileOptions, then)
