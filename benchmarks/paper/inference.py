"""What was trained, run in low precision: the network of every finished cell, exported and compared on the test pictures.

    python -m benchmarks.paper inference=FOLDER data=FOLDER [cells=PATTERN,...] [seeds=0,1,2] [size=proxy]

Each cell's network is exported in every format; accuracy on all test pictures, time and size of each stand beside the network
in fp32 and in onnxruntime's own int8 of the same weights. A line a cell and way goes to FOLDER/inference.csv and is printed.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from ldp_search.runner.exports import parity, peers, table, timing
from ldp_search.runner.exports.command import _written
from ldp_search.runner.exports.export import FORMATS
from ldp_search.runner.exports.subject import Subject

from .cells import Cell
from .data import Pictures
from .store import TRAINED, Store
from .training import Training

BATCHES, ROUNDS = [1, 32], 15
COLUMNS = ["cell", "row", "seed", "way", "accuracy", "mib", "agreement", "failed"]
COLUMNS += [f"{name}_{size}" for size in BATCHES for name in ("ms", "spread")]


class TestPictures:
    """The pictures of a training as an export wants its data: those of the test, and clean ones of the training."""

    metric = "accuracy"

    def __init__(self, data: Pictures):
        self.data, self.eval_size, self.train_size = data, len(data.test[0]), len(data.images)

    def batch(self, places: torch.Tensor, epoch: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        if epoch is None:
            return self.data._normalized(self.data.test[0][places]), self.data.test[1][places]
        pad = self.data.recipe.pad
        images = self.data.images[places, pad : pad + self.data.pixels, pad : pad + self.data.pixels]
        return self.data._normalized(images), self.data.labels[places]

    def measure(self, model, batch) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, labels = model(batch[0]), batch[1]
        loss = F.cross_entropy(outputs, labels)
        right = (outputs.argmax(1) == labels).sum()
        return loss, torch.stack([loss.detach() * len(labels), right.float(), torch.tensor(float(len(labels)))])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        return {"loss": sums[0] / sums[2], "accuracy": 100 * sums[1] / sums[2]}


def measure(cell: Cell, trained: Path, data: Path) -> list[dict[str, Any]]:
    """Rows of one cell, a way each."""
    training = Training(cell, data, torch.device("cpu"), graph=False)
    if training.ldp is None or not training.load(trained):
        return []
    training.ldp.freeze()
    task: Any = TestPictures(training.data)
    config = SimpleNamespace(eval_batch_size=100, task="cifar10")
    model = training.model.eval().to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subject = Subject(model, folder, task, config)
        ways = list(peers.peers(subject, folder, True))
        for name, file in FORMATS.items():
            _written(subject, name, folder / file)
            ways.append(peers.exported(name, folder / file, subject))
        found = parity.compare(subject, ways, task.eval_size)
        times = timing.latencies(subject, ways, BATCHES, ROUNDS, time.process_time)
        return [_flat(cell, row) for row in table.rows(ways, found, times, "accuracy")]


def _flat(cell: Cell, row: dict[str, Any]) -> dict[str, Any]:
    out = {"cell": cell.name, "row": cell.row, "seed": cell.seed, "way": row["name"]}
    for size in BATCHES:
        for name, key in (("ms", "ms"), ("spread", "ms_spread")):
            out[f"{name}_{size}"] = row.get(key, {}).get(str(size))
    return out | {name: row.get(name) for name in ("accuracy", "mib", "agreement", "failed")}


def _said(row: dict[str, Any]) -> str:
    return "  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values() if value is not None)


def report(folder: Path, cells: list[Cell], data: Path) -> int:
    """Measure all of `cells` whose weights are kept; returns the exit status."""
    torch.set_num_threads(1)
    store, rows = Store(folder), []
    for cell in cells:
        trained = store.cell_folder(cell) / TRAINED
        if trained.is_file():
            rows += measure(cell, trained, data)
            print("\n".join(_said(row) for row in rows if row["cell"] == cell.name), flush=True)
    if not rows:
        print(f"No cell of these has kept its weights under {folder}: train it first (docs/evidence.md).", file=sys.stderr)
        return 2
    with open(folder / "inference.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return 0
