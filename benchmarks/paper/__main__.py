"""The command line: `python -m benchmarks.paper KEY=VALUE ...` trains what is missing, `report=FOLDER` shows what there is.

size=proxy|short|full   data=FOLDER (of `prepare`)   output=FOLDER   device=cpu|cuda   workers=N processes side by side
cells=PATTERN,...       of NETWORK/ROW, in their order; `resnet20/*` unless given      seeds=0,1,2
deadline=SECONDS        after which no cell begins, and running ones save and stop     checkpoint=SECONDS between saves
graph=true|false        CUDA graphs        retry=true  failed cells again              commit=TEXT  where git cannot tell
limit=SAMPLES epochs=N steps=N             cut short, for trials                       list=true    only says what would run
inference=FOLDER        exports what was trained there, and runs it (see `inference`)
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import torch

from ldp_search.core.messages import did_you_mean

from .cells import choose
from .store import Store
from .work import Worker, spread


@dataclass
class Options:
    """See the module. until: the deadline as a time, for workers. begun: when the command was given."""

    size: str = "proxy"
    device: str = "cpu"
    cells: str = "resnet20/*"
    seeds: str = "0,1,2"
    data: str = "data"
    output: str = "runs/paper"
    workers: int = 1
    deadline: float | None = None
    until: float | None = None
    begun: str = ""
    checkpoint: float = 120.0
    graph: bool = True
    retry: bool = False
    commit: str | None = None
    limit: int | None = None
    epochs: int | None = None
    steps: int | None = None
    report: str | None = None
    inference: str | None = None
    list: bool = False


_READ = {
    "int": int,
    "float": float,
    "bool": {"true": True, "false": False}.__getitem__,
    "str": str,
}


def read(words: list[str]) -> Options:
    """Raises:
    ValueError: an unknown key, or a value of another type.
    """
    types = {f.name: f.type.removesuffix(" | None") for f in fields(Options)}
    options = Options()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in types:
            raise ValueError(f"Options are KEY=VALUE with a known key; received {word!r}.{did_you_mean(key, types)}")
        try:
            setattr(options, key, _READ[types[key]](value))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{key} must be of type {types[key]}; received {value!r}.") from error
    options.begun = options.begun or datetime.now(timezone.utc).isoformat(timespec="seconds")
    if options.deadline is not None and options.until is None:
        options.until = time.time() + options.deadline
    return options


def main(words: list[str]) -> int:
    if {"--help", "-h", "help"} & set(words):
        print(__doc__)
        return 0
    try:
        options = read(words)
        seeds = [int(seed) for seed in options.seeds.split(",")]
        cut = {"limit": options.limit, "epochs": options.epochs, "steps": options.steps}
        cells = choose(options.cells.split(","), options.size, seeds, **cut)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.report is not None:
        from .table import report

        return report(Path(options.report))
    if options.inference is not None:
        from .inference import report as inference

        return inference(Path(options.inference), cells, Path(options.data))
    if options.list:
        print("\n".join(cell.name for cell in cells))
        return 0
    if options.workers > 1:
        kept = [word for word in words if word.partition("=")[0] not in ("workers", "deadline")]
        until = [] if options.until is None else [f"until={options.until}"]
        return spread([*kept, f"begun={options.begun}", *until], options.workers)
    torch.set_num_threads(1)
    Worker(cells, Store(Path(options.output)), options).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
