"""What a training says, while it runs, of bits that it does not use: the expected loss of uniform triples, and of its own.

    python -m benchmarks.paper.expected checkpoint=CELL/checkpoint.pt row=learned_0.25 data=FOLDER [network=resnet20] [seed=0]

Read from the checkpoint of a row that learns, of [size=proxy]. Compare it with what those triples turn out to do when they
are trained: the difference of their final training losses from that of 8 bits everywhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ldp_search.core.controller.forecast import search_now

from .cells import Cell
from .training import Training

TRIPLES = ((8, 8, 8), (5, 5, 4), (4, 4, 4), (4, 5, 3), (4, 4, 3), (3, 3, 3))


def lines(training: Training) -> list[str]:
    """A table: cost, expected loss of a triple, and of the best bits at the same cost."""
    search, problem = search_now(training.ldp), training.ldp.problem.to("cpu")
    out = ["| w/x/g everywhere | cost | expected loss | of the best bits at that cost |", "|---|---|---|---|"]
    for w, x, g in TRIPLES:
        kinds = problem.low.shape[1]
        bits = torch.tensor([w, x, g, g][:kinds], dtype=torch.float64).expand(problem.low.shape).clone()
        uniform = search.choice(bits)
        best, _, _ = search.at_budget(uniform.cost, problem.high.double())
        out.append(f"| {w}/{x}/{g} | {uniform.cost:.3f} | {uniform.damage:.4f} | {best.damage:.4f} |")
    return out


def main(words: list[str]) -> None:
    options = {"checkpoint": "", "row": "learned_0.3165", "data": "data", "network": "resnet20", "size": "proxy", "seed": "0"}
    for word in words:
        key, _, value = word.partition("=")
        if key not in options:
            sys.exit(f"Unknown word {word!r}; known: {', '.join(options)}")
        options[key] = value
    path = Path(options["checkpoint"])
    if not path.is_file():
        sys.exit(f"checkpoint must be a file that a training has left; received {options['checkpoint']!r}.")
    torch.set_num_threads(1)
    cell = Cell(options["network"], options["row"], options["size"], int(options["seed"]))
    training = Training(cell, Path(options["data"]), torch.device("cpu"))
    if not training.load(path):
        sys.exit(f"The checkpoint must be of {cell.name} as it is trained today; {path} has other settings.")
    print(f"at step {training.step} of {training.data.steps}")
    print("\n".join(lines(training)))


if __name__ == "__main__":
    main(sys.argv[1:])
