"""What LDP costs for one's own model on one's own machine: `python -m ldp_search.bench model=NAME [KEY=VALUE ...]`.

The plain step and the LDP step of the same model in turn, what they keep in memory, and the layers that cost most.
Nothing is written. Exit status: 0 done; 2 wrong settings or data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .config.overlay import ConfigError
from .config.program import HELP, divided, exit_status, key_lines, option

USAGE = """\
What a training step with LDP costs against the plain step, for a model of one's own on this machine.

  python -m ldp_search.bench model=timm:resnet18
  python -m ldp_search.bench task=cifar10 model=resnet20 batch_size=64 backend=int8
  python -m ldp_search.bench model=vit_tiny model.img_size=32 precision=bf16 bits=8 policy=static

"""
QUIET = {
    "KINETO_LOG_LEVEL": "9",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # torch's profiler, which counts the memory, remarks on itself


@dataclass
class BenchOptions:
    """What this program takes beside a run's keys."""

    rounds: int = option(7, "turns of both steps; the median counts, the spread is half the range")
    layers: int = option(10, "how many of the layers are listed, the ones with the largest difference; 0: none")

    def check(self) -> None:
        """Raises ConfigError when a value is out of its range."""
        for name, lowest in (("rounds", 1), ("layers", 0)):
            if (value := getattr(self, name)) < lowest:
                raise ConfigError(f"{name} must be a whole number, at least {lowest}; received {value!r}.")


def main(words: Sequence[str] | None = None, as_program: bool = False) -> int:
    """Measure and print; returns the exit status. What a user can mend comes as one message, without a traceback."""
    words = list(sys.argv[1:] if words is None else words)
    return exit_status("ldp_search.bench", "Stopped.", lambda: _bench(words, as_program), writes=False)


def _bench(words: list[str], as_program: bool) -> int:
    if set(HELP) & set(words):
        then = "every key of a run (python -m ldp_search.run --help); the task gives the batches."
        print(USAGE + key_lines(BenchOptions, then))
        return 0
    own, rest = divided(BenchOptions, words)
    options = BenchOptions(**own)
    options.check()
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

    print(measure(settings, **asdict(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main(as_program=True))
