"""What LDP costs for one's own model on one's own machine: `python -m ldp_search.bench model=NAME [KEY=VALUE ...]`.

The plain step and the LDP step of the same model in turn, what they keep in memory, and the layers that cost most.
Nothing is written. Exit status: 0 done; 2 wrong settings or data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from .config.overlay import ConfigError
from .core.messages import did_you_mean

USAGE = """\
What a training step with LDP costs against the plain step, for a model of one's own on this machine.

  python -m ldp_search.bench model=timm:resnet18
  python -m ldp_search.bench task=cifar10 model=resnet20 batch_size=64 backend=int8
  python -m ldp_search.bench model=vit_tiny model.img_size=32 precision=bf16 bits=8 policy=static

Every key of `python -m ldp_search.run` is taken (its --help lists them); the task gives the batches. And of its own:
  rounds=7      turns of both steps; the median counts, the spread is half the range
  layers=10     how many of the layers are listed, the ones with the largest difference; 0: none
"""
OWN = {"rounds": 7, "layers": 10}
QUIET = {
    "KINETO_LOG_LEVEL": "9",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # torch's profiler, which counts the memory, remarks on itself


def main(words: Sequence[str] | None = None, as_program: bool = False) -> int:
    """Measure and print; returns the exit status. What a user can mend comes as one message, without a traceback."""
    words = list(sys.argv[1:] if words is None else words)
    if any(word in ("-h", "--help", "help") for word in words):
        print(USAGE, end="")
        return 0
    try:
        own, rest = _own(words)
        from .config.resolve import resolve

        settings = resolve(rest)
        if settings.study is not None:
            raise ConfigError("A search is not measured: leave out trials=... and what belongs to it.")
        from .run import share_cores
        from .runner.training.memory import keep_freed_memory

        if as_program:
            for name, value in QUIET.items():
                os.environ.setdefault(name, value)
            share_cores()
            keep_freed_memory()
        from .runner.bench.step import measure

        print(measure(settings, **own))
        return 0
    except ConfigError as error:
        print(f"ldp_search.bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _own(words: list[str]) -> tuple[dict[str, int], list[str]]:
    """The options of this program, and the words that are left. Raises ConfigError."""
    own: dict[str, Any] = dict(OWN)
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise ConfigError(
                f"Unknown option {word!r}.{did_you_mean(word, ['--help'])} Settings are words such as batch_size=32."
            )
        if key not in OWN or not equals:
            rest.append(word)
            continue
        lowest = 1 if key == "rounds" else 0
        if not value.isdecimal() or int(value) < lowest:
            raise ConfigError(f"{key} must be a whole number, at least {lowest}; received {value!r}.")
        own[key] = int(value)
    return own, rest


if __name__ == "__main__":
    sys.exit(main(as_program=True))
